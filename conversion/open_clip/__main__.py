"""Import and export open_clip models: `python -m conversion.open_clip import SOURCE DIR | export DIR DST_FOLDER`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from clipa_eqx.cli import run
from conversion.weights.arguments import import_options, import_parser, parse


def main(argv: Sequence[str] | None = None) -> None:
    command = import_parser(
        "open_clip",
        __doc__,
        purpose="an open_clip model to a model folder",
        source="FILE|FOLDER|hf-hub:REPO",
        source_help=".safetensors, .bin (needs torch), a folder with open_clip_config.json, or a hub repository",
    )
    exporter = command.add_command("export", help="a model folder to a folder that open_clip loads as local-dir:")
    exporter.add_argument("folder", metavar="DIR", type=Path, help="a model folder")
    exporter.add_argument("target", metavar="DST_FOLDER", type=Path, help="the folder to write")
    exporter.add_argument("--overwrite", action="store_true", help="replace a folder that was exported here")
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
