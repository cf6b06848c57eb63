"""Score a model on labeled records and write the result as JSON."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from clipa_eqx.argument_parser import ArgumentParser
from clipa_eqx.cli import run
from clipa_eqx.commands import command_line, next_lines
from clipa_eqx.errors import ConfigError

EPILOG = """A model folder is scored with the tokenizer and the image preprocessing saved in it. A run folder is scored
by its model if training has ended, else by its last checkpoint, with eval_image and vocab of its config.json.
The data folder holds labeled records; labels index the class names. All devices of this process take part.
Exit codes: 0 done, 2 a mistake in model, data or arguments, 1 anything else."""

PROMPT_SETS = ("clip_paper", "clip_best", "class_name_only", "open_clip", "manifest")
TEMPLATES_HELP = "default: clip_paper; manifest: those in the data folder's manifest, which CLIP_benchmark's sets have"
CLASS_NAME_SETS = ("manifest", "imagenet", "imagenet_a", "imagenet_r")


def main(argv: Sequence[str] | None = None) -> None:
    """Score, print top-1 and top-5, and write the result file. Raises ClipaError for a mistake of the user."""
    given = sys.argv[1:] if argv is None else argv
    arguments = _parser().parse_args(given)
    if arguments.out.is_dir():
        raise ConfigError(f"--out {arguments.out} is a folder; give the name of a JSON file")
    if arguments.out.exists() and not arguments.overwrite:
        raise ConfigError(f"--out {arguments.out} exists already; give another name, or --overwrite")

    # The work needs jax; --help does not.
    from clipa_eqx.programs.score import Request, score, write_result

    names = arguments.class_names
    content = score(
        Request(
            model=arguments.model,
            suite=arguments.suite,
            data=arguments.data,
            templates=arguments.templates if arguments.templates_file is None else _templates(arguments.templates_file),
            class_names=names if names in CLASS_NAME_SETS else "file",
            class_names_file=None if names in CLASS_NAME_SETS else names,
            canonicalize=not arguments.no_canonicalize,
            commas_in_names=arguments.commas_in_names,
            text_reduction=arguments.text_reduction,
            max_labels=arguments.max_labels,
            batch_size=arguments.batch_size,
            workers=arguments.workers,
            image_mode=arguments.image_mode,
            with_predictions=arguments.predictions,
        )
    )
    write_result(arguments.out, content)
    print(f"top-1 {100 * content['top1']:.2f} %, top-5 {100 * content['top5']:.2f} % of {content['count']:,} images")
    print(f"written to {arguments.out}")
    print("\n".join(_next_lines(arguments, given)))


def program() -> int:
    """Run the command on ``sys.argv`` and return its exit code."""
    return run(main)


def _next_lines(arguments: argparse.Namespace, given: Sequence[str]) -> list[str]:
    path: Path = arguments.out
    out = path.with_stem(f"{path.stem}-predictions")
    # The same flags again, except the result file.
    others = [
        word for i, word in enumerate(given) if word.partition("=")[0] != "--out" and given[i - 1 : i] != ["--out"]
    ]
    with_classes = command_line("evaluate", *others, "--predictions", "--out", out)
    tune = command_line("train", "CONFIG.py", "--workdir", "NEW_RUN", "--init-from", arguments.model)
    return next_lines(
        *([] if arguments.predictions else [(with_classes, "the five likeliest classes of each image")]),
        (tune, "train on from these weights"),
    )


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL_OR_RUN", help="a model folder or a run folder")
    parser.add_argument("--suite", choices=("zero-shot",), required=True)
    parser.add_argument("--data", required=True, metavar="DIR", help="folder of labeled records with its manifest")
    parser.add_argument("--out", type=Path, required=True, metavar="RESULT.json")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --out")
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--templates", choices=PROMPT_SETS, default="clip_paper", help=TEMPLATES_HELP)
    prompts.add_argument(
        "--templates-file", type=Path, metavar="FILE", help="one template per line, {} or {c} for the name"
    )
    parser.add_argument(
        "--class-names",
        default="manifest",
        metavar="|".join((*CLASS_NAME_SETS, "FILE")),
        help="default: manifest, the names in the data folder's manifest; a file has one name per line",
    )
    parser.add_argument(
        "--no-canonicalize",
        "--no-canonicalise",
        action="store_true",
        help="keep case and punctuation of class names and templates",
    )
    parser.add_argument(
        "--commas-in-names",
        action="store_true",
        help="commas are part of class names; else only the part before the first one is used",
    )
    parser.add_argument(
        "--text-reduction",
        choices=("truncate", "syntax"),
        help="how prompts longer than the text tower are cut; default: as in the model's training",
    )
    parser.add_argument("--max-labels", type=int, default=1, help="most labels that one image has; default: 1")
    parser.add_argument(
        "--batch-size", type=int, default=256, help="images at once over all devices; changes no count; default: 256"
    )
    parser.add_argument("--workers", type=int, default=0, help="extra processes that decode images; default: 0")
    parser.add_argument("--image-mode", choices=("exact", "fast"), help="default: the mode saved with the model")
    parser.add_argument("--predictions", action="store_true", help="also write the five likeliest classes per image")
    return parser


def _templates(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--templates-file {path} cannot be read ({error}); give a UTF-8 file, one template per line"
        ) from error
    return tuple(line for line in lines if line.strip())
