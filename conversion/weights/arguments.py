"""The command line that all importers of weights share. Nothing here loads jax, so that ``--help`` is quick."""

import argparse
import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from clipa_eqx.argument_parser import ArgumentParser
from clipa_eqx.cli import exit_on_sigterm, program_name
from conversion.weights.choices import Choices, ImportOptions

_EPILOG = """Names and shapes do not determine everything: pooling, computed positions and the image size that goes with
them, and the heads of flat attention come from --preset, --released or --config, or from the flag that names them.
They are never guessed. Every difference between the file and the named config is printed. Exit codes: 0 done, 2 a
mistake in file, folder or flags, 1 anything else, 130 and 143 after Ctrl-C and SIGTERM, which leave nothing
half-written."""


class ImportParser(NamedTuple):
    """The parser of a command and of its subcommand ``import``; ``add_command`` adds other subcommands."""

    parser: argparse.ArgumentParser
    importer: argparse.ArgumentParser
    add_command: Callable[..., argparse.ArgumentParser]


def import_parser(
    command: str, description: str | None, *, purpose: str, source: str, source_help: str | None = None
) -> ImportParser:
    """The command line of ``python -m conversion.COMMAND import SOURCE DIR``.

    Args:
        description: docstring of the command.
        purpose: help text of ``import``.
        source: name of the positional argument SOURCE in the usage line; its value is a string.
    """
    parser = ArgumentParser(prog=program_name(f"conversion.{command}"), description=description)
    commands = parser.add_subparsers(dest="command", required=True)
    importer = commands.add_parser(
        "import",
        help=purpose,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    importer.add_argument("source", metavar=source, help=source_help)
    importer.add_argument("folder", metavar="DIR", type=Path, help="the model folder to write")
    add_config_arguments(importer)
    importer.add_argument(
        "--vocab", metavar="F", type=Path, help="vocabulary file or tokenizer folder; default: BERT's"
    )
    importer.add_argument("--overwrite", action="store_true", help="replace the model in DIR once the import is done")
    return ImportParser(parser, importer, commands.add_parser)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments, then prepare this process for a conversion."""
    arguments = parser.parse_args(argv)
    exit_on_sigterm("terminated; nothing was written")
    # A conversion needs no accelerator, and on a TPU host a training run may hold them.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    return arguments


def import_options(arguments: argparse.Namespace) -> ImportOptions:
    """The options of ``import`` in parsed arguments."""
    return ImportOptions(
        folder=arguments.folder,
        choices=choices_of(arguments),
        vocab=arguments.vocab,
        overwrite=arguments.overwrite,
    )


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags for what a weight file does not record about its model."""
    named = parser.add_mutually_exclusive_group()
    named.add_argument("--preset", metavar="N", help="an architecture: L/14, H/14, bigG/14, ...")
    named.add_argument("--released", metavar="N", help="a released model; `python -m conversion.released` lists them")
    named.add_argument("--config", metavar="F.json", type=Path, help="a model config as clipa-show prints it")
    parser.add_argument("--image-pool", choices=("gap", "tok", "first", "map"))
    parser.add_argument("--text-pool", choices=("last", "tok", "gap"))
    parser.add_argument("--image-position", choices=("sincos2d", "learned"))
    parser.add_argument("--image-heads", metavar="N", type=int)
    parser.add_argument("--text-heads", metavar="N", type=int)
    parser.add_argument("--image-size", metavar="N", type=int, help="pixels per side")
    parser.add_argument("--profile", choices=("flax", "open_clip"), help="norm epsilon and kind of GELU")


def choices_of(arguments: argparse.Namespace) -> Choices:
    """The values of the flags of ``add_config_arguments``."""
    return Choices(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Choices)})
