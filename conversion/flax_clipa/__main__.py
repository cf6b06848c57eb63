"""Official Flax checkpoints in and out: `python -m conversion.flax_clipa import SRC.npz DIR | export DIR DST.npz`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from clipa_eqx.cli import run
from conversion.weights.arguments import import_options, import_parser, parse


def main(argv: Sequence[str] | None = None) -> None:
    command = import_parser(
        "flax_clipa",
        __doc__,
        purpose="a checkpoint of the reference's JAX code to a model folder",
        source="SRC.npz[:subtree]",
    )
    exporter = command.add_command("export", help="a model folder or run folder to such a checkpoint")
    exporter.add_argument("folder", metavar="DIR", type=Path, help="a model folder, or the folder of a run")
    exporter.add_argument("target", metavar="DST.npz", type=Path)
    exporter.add_argument("--overwrite", action="store_true", help="replace DST.npz once the new file is complete")
    arguments = parse(command.parser, argv)
    if arguments.command == "import":
        from conversion.flax_clipa.importing import import_flax

        import_flax(arguments.source, import_options(arguments))
    else:
        from conversion.flax_clipa.exporting import export_flax

        export_flax(arguments.folder, arguments.target, overwrite=arguments.overwrite)


def program() -> int:
    """Run the command on ``sys.argv`` and return its exit code."""
    return run(main)


if __name__ == "__main__":
    sys.exit(program())
