"""Export a model for programs without this package: StableHLO, ONNX, open_clip files, a Hugging Face repository."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from clipa_eqx.argument_parser import ArgumentParser
from clipa_eqx.cli import program_name, run
from clipa_eqx.errors import ConfigError
from conversion.weights.arguments import parse

EPILOG = """stablehlo: each tower as a program for JAX on CPU, GPU and TPU, for any batch size, with its weights.
Needs the package flatbuffers. onnx: each tower as an ONNX graph. Needs jax2onnx and onnxruntime; docs/export.md has the
commands that install them. Both take uint8 images and int32 tokens and return unit embeddings. Each program is loaded
again and compared with the model before the folder appears. open-clip: config, float32 weights and tokenizer, as
open_clip loads them. huggingface: the same with a model card, to be uploaded.
A run folder is exported by its model, once training has ended.
Exit codes: 0 done, 2 a mistake in model, folder or flags, 1 anything else, 130 and 143 after Ctrl-C and SIGTERM, which
leave nothing half-written."""

FORMATS = ("stablehlo", "onnx", "open-clip", "huggingface")
_FLAGS = {"tower": ("stablehlo", "onnx"), "dtype": ("stablehlo",), "license": ("huggingface",)}
"""The formats that a flag is for; all others are for each format."""


def main(argv: Sequence[str] | None = None) -> None:
    """Export a model. Raises ClipaError for a mistake of the user."""
    arguments = parse(_parser(), argv)
    _check_flags(arguments)

    # The work needs jax; --help does not.
    from conversion.export.source import finished_model

    target, overwrite = arguments.target, arguments.overwrite
    with finished_model(arguments.model) as model:
        match arguments.to:
            case "stablehlo":
                from conversion.export.stablehlo import export_stablehlo

                export_stablehlo(
                    model.folder,
                    target,
                    tower=arguments.tower or "both",
                    dtype=arguments.dtype or "float32",
                    overwrite=overwrite,
                )
            case "onnx":
                from conversion.export.onnx_graph import export_onnx

                export_onnx(model.folder, target, tower=arguments.tower or "both", overwrite=overwrite)
            case "open-clip":
                from conversion.open_clip.exporting import export_open_clip

                export_open_clip(model.folder, target, overwrite=overwrite)
            case _:
                from conversion.export.hugging_face import export_hugging_face

                export_hugging_face(model, target, license_name=arguments.license, overwrite=overwrite)


def program() -> int:
    """Run the command on ``sys.argv`` and return its exit code."""
    return run(main)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog=None if Path(sys.argv[0]).name == "export.py" else program_name("conversion.export"),
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", metavar="MODEL_OR_RUN", help="a model folder, the folder of a finished run, or the name of a model"
    )
    parser.add_argument("target", metavar="DIR", type=Path, help="the folder to write")
    parser.add_argument("--to", choices=FORMATS, required=True, help="what to write")
    parser.add_argument(
        "--tower", choices=("image", "text", "both"), help="of stablehlo and onnx: the towers; default: both"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of stablehlo: dtype of weights and activations; embeddings are float32; default: float32",
    )
    parser.add_argument(
        "--license", metavar="ID", help="of huggingface: the license of the weights for the card, such as apache-2.0"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an export of the same kind in DIR")
    return parser


def _check_flags(arguments: argparse.Namespace) -> None:
    for name, formats in _FLAGS.items():
        if getattr(arguments, name) is not None and arguments.to not in formats:
            raise ConfigError(f"--{name} is for --to {' and '.join(formats)}, not for {arguments.to}; leave it out")


if __name__ == "__main__":
    sys.exit(program())
