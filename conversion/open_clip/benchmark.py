"""Score a model folder with CLIP_benchmark itself: `python -m conversion.open_clip.benchmark DIR --dataset NAME`."""

import argparse
import importlib
import importlib.metadata
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipa_eqx.argument_parser import ArgumentParser
from clipa_eqx.cli import program_name, run
from clipa_eqx.errors import ConfigError, ConversionError, pip_install
from conversion.open_clip.adapter import (
    OpenClipModel,
    OpenClipTokenizer,
    OpenClipTransform,
    load_open_clip_interface,
)

EPILOG = """All other flags are those of `clip_benchmark eval`, such as --dataset wds/NAME --dataset_root DIR --task
zeroshot_retrieval --recall_k 1 5 10 --output FILE. --model_type, --model, --pretrained and --no_amp are set here: the
embeddings are those of this package's own scoring, in float32. Images are decoded in this process unless --num_workers
is given.
Exit codes: 0 done, 2 a mistake in model, packages or arguments, 1 anything else."""

_KIND = "clipa_eqx"
_OWN = ("--model_type", "--model", "--pretrained", "--pretrained_model", "--no_amp", "--skip_load")
_PACKAGES = ("clip-benchmark==1.6.2", "requests", "numpy<2.4")
_BROKEN = "1.6.2"  # takes the float of an array with one element, which NumPy 2.4 refuses; see findings/


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``clip_benchmark eval`` on a model folder. Raises ClipaError for a mistake of the user."""
    parser = ArgumentParser(
        prog=program_name("conversion.open_clip.benchmark"),
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="a model folder")
    arguments, flags = parser.parse_known_args(argv)
    folder: Path = arguments.folder
    given = [flag for flag in (word.partition("=")[0] for word in flags) if flag in _OWN]
    if given:
        raise ConfigError(f"{given[0]} is set by this command to score {folder}; leave it out")
    models, command = _clip_benchmark()
    loaded = load_open_clip_interface(folder)

    def load(*, device: str, **_: object) -> tuple[OpenClipModel, OpenClipTransform, OpenClipTokenizer]:
        model, transform, tokenizer = loaded
        return model.to(device), transform, tokenizer

    ours = ["--model_type", _KIND, "--model", _KIND, "--pretrained", folder.resolve().name, "--no_amp"]
    # The lists of models and the flags are global there; this program ends with the command.
    models.TYPE2FUNC[_KIND] = load
    models.MODEL_TYPES.append(_KIND)
    sys.argv = ["clip_benchmark", "eval", *ours, "--num_workers", "0", *flags]
    command.main()


def program() -> int:
    """Run the command on ``sys.argv`` and return its exit code."""
    return run(main)


def _clip_benchmark() -> tuple[Any, Any]:
    """The modules of clip_benchmark that list the kinds of models, and that hold its command.

    Raises:
        ConversionError: a package is missing, or NumPy is too new for clip_benchmark.
    """
    install = pip_install(*_PACKAGES)
    try:
        found = importlib.import_module("clip_benchmark.models"), importlib.import_module("clip_benchmark.cli")
        version, numpy = (importlib.metadata.version(name) for name in ("clip-benchmark", "numpy"))
    except ImportError as error:
        raise ConversionError(f"this command needs clip_benchmark ({error}): {install}") from error
    if version == _BROKEN and tuple(map(int, numpy.split(".")[:2])) >= (2, 4):
        raise ConversionError(
            f"clip-benchmark {version} cannot compute accuracies with NumPy {numpy}, and says so after all images are "
            f"encoded: {install}"
        )
    return found


if __name__ == "__main__":
    sys.exit(program())
