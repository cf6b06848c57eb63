"""Official Flax checkpoints in and out: `python -m conversion.flax_clipa import SRC.npz DIR | export DIR DST.npz`."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from clipa_eqx.cli import exit_on_sigterm, run
from conversion.weights.arguments import EPILOG, TERMINATED, add_import_arguments

_log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m conversion.flax_clipa", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    importer = commands.add_parser(
        "import",
        help="a checkpoint of the reference's JAX code to a model folder",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    importer.add_argument("source", metavar="SRC.npz[:subtree]")
    add_import_arguments(importer)
    exporter = commands.add_parser(
        "export", help="a model folder or work folder to such a checkpoint", allow_abbrev=False
    )
    exporter.add_argument("folder", metavar="DIR", type=Path, help="a model folder, or the work folder of a run")
    exporter.add_argument("target", metavar="DST.npz", type=Path)
    exporter.add_argument("--overwrite", action="store_true", help="replace DST.npz, once the new one is done")
    arguments = parser.parse_args(argv)
    exit_on_sigterm(TERMINATED)
    # Nothing here needs an accelerator, and on a TPU host a training run may hold them.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if arguments.command == "import":
        from conversion.flax_clipa.files import open_flax
        from conversion.flax_clipa.importing import import_checkpoint

        with open_flax(arguments.source) as found:
            import_checkpoint(found.checkpoint(), arguments)
    else:
        from conversion.flax_clipa.exporting import export_flax

        written = export_flax(arguments.folder, arguments.target, overwrite=arguments.overwrite)
        _log.info("%s written: %s", arguments.target, written)


def program() -> int:
    """Run the command on ``sys.argv`` and return its exit code."""
    return run(main)


if __name__ == "__main__":
    sys.exit(program())
