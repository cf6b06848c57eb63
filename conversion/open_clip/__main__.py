"""open_clip models in and out: `python -m conversion.open_clip import FILE|FOLDER|hf-hub:REPO DIR | export DIR DST`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from clipa_eqx.cli import exit_on_sigterm, run
from conversion.weights.arguments import EPILOG, TERMINATED, add_import_arguments


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m conversion.open_clip", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    importer = commands.add_parser(
        "import",
        help="weights of open_clip to a model folder",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    importer.add_argument(
        "source",
        metavar="FILE|FOLDER|hf-hub:REPO",
        help=".safetensors, .bin (needs torch), a folder with open_clip_config.json, or a repository to download",
    )
    add_import_arguments(importer)
    exporter = commands.add_parser(
        "export", help="a model folder to a folder for open_clip's local-dir:", allow_abbrev=False
    )
    exporter.add_argument("folder", metavar="DIR", type=Path)
    exporter.add_argument("target", metavar="DST_FOLDER", type=Path)
    exporter.add_argument("--overwrite", action="store_true", help="replace a folder that was exported here, once done")
    arguments = parser.parse_args(argv)
    exit_on_sigterm(TERMINATED)
    # Nothing here needs an accelerator, and on a TPU host a training run may hold them.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if arguments.command == "import":
        from conversion.open_clip.importing import import_open_clip
        from conversion.weights.arguments import choices_of

        import_open_clip(
            arguments.source,
            arguments.folder,
            choices_of(arguments),
            vocab=arguments.vocab,
            overwrite=arguments.overwrite,
        )
    else:
        from conversion.open_clip.exporting import export_open_clip

        export_open_clip(arguments.folder, arguments.target, overwrite=arguments.overwrite)


def program() -> int:
    """Run the command on ``sys.argv`` and return its exit code."""
    return run(main)


if __name__ == "__main__":
    sys.exit(program())
