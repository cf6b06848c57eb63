"""open_clip models in and out: `python -m conversion.open_clip import FILE|FOLDER|hf-hub:REPO DIR | export DIR DST`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from clipa_eqx.cli import run
from conversion.weights.arguments import import_options, import_parser, parse


def main(argv: Sequence[str] | None = None) -> None:
    command = import_parser(
        "open_clip",
        __doc__,
        purpose="weights of open_clip to a model folder",
        source="FILE|FOLDER|hf-hub:REPO",
        source_help=".safetensors, .bin (needs torch), a folder with open_clip_config.json, or a repository",
    )
    exporter = command.add_command(
        "export", help="a model folder to a folder for open_clip's local-dir:", allow_abbrev=False
    )
    exporter.add_argument("folder", metavar="DIR", type=Path)
    exporter.add_argument("target", metavar="DST_FOLDER", type=Path)
    exporter.add_argument("--overwrite", action="store_true", help="replace a folder that was exported here, once done")
    arguments = parse(command.parser, argv)
    if arguments.command == "import":
        from conversion.open_clip.importing import import_open_clip

        import_open_clip(arguments.source, import_options(arguments))
    else:
        from conversion.open_clip.exporting import export_open_clip

        export_open_clip(arguments.folder, arguments.target, overwrite=arguments.overwrite)


def program() -> int:
    """Run the command on ``sys.argv`` and return its exit code."""
    return run(main)


if __name__ == "__main__":
    sys.exit(program())
