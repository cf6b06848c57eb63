"""Score a model on records and write the result as JSON."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipa_eqx.argument_parser import ArgumentParser
from clipa_eqx.buckets.bucket import address
from clipa_eqx.cli import run
from clipa_eqx.commands import command_line, next_lines
from clipa_eqx.errors import ConfigError
from clipa_eqx.programs.distributed import add_distributed_flags, processes_of

if TYPE_CHECKING:
    from clipa_eqx.evals.evaluation import EvaluationConfig

EPILOG = """A model folder is scored with the tokenizer and the image preprocessing saved in it. A run folder is scored
by its model if training has ended, else by its last checkpoint, with eval_image and vocab of its config.json.
The suite zero-shot ranks class names for labeled records (labels index the class names), retrieval finds images by
captions and captions by images, contrastive gives loss and accuracy of pairs within batches, few-shot and linear-probe
fit a classifier to the images of --train. All devices take part, with --distributed those of all hosts; process 0 then
writes the result.
Exit codes: 0 done, 2 a mistake in model, data or arguments, 1 anything else."""

PROMPT_SETS = ("clip_paper", "clip_best", "class_name_only", "open_clip", "manifest")
TEMPLATES_HELP = "default: clip_paper; manifest: those in the data folder's manifest, which CLIP_benchmark's sets have"
CLASS_NAME_SETS = ("manifest", "imagenet", "imagenet_a", "imagenet_r")


SUITES: Mapping[str, tuple[str, ...]] = {
    "zero-shot": (
        "templates",
        "templates_file",
        "class_names",
        "no_canonicalize",
        "commas_in_names",
        "text_reduction",
        "max_labels",
        "predictions",
    ),
    "retrieval": ("text_reduction", "max_captions"),
    "contrastive": ("text_reduction",),
    "few-shot": ("train", "shots", "seeds", "regularization"),
    "linear-probe": ("train", "validation", "strengths"),
}
"""The flags of each suite, in addition to those of all."""


def main(argv: Sequence[str] | None = None) -> None:
    """Score, print the scores, and write the result file. Raises ClipaError for a mistake of the user."""
    given = sys.argv[1:] if argv is None else argv
    arguments = _parser().parse_args(given)
    _check_flags(arguments)
    processes = processes_of(arguments)
    if processes is None:
        _check_out(arguments)

    # The work needs jax; --help does not.
    from clipa_eqx.programs.connection import connect_processes, is_first_process
    from clipa_eqx.programs.score import Request, name_lines, score, set_lines, write_result

    if processes is not None:
        connect_processes(processes, check=partial(_check_out, arguments))

    content = score(
        Request(
            model=arguments.model,
            evaluation=_evaluation(arguments),
            keeps_reduction=arguments.text_reduction is not None,
            workers=arguments.workers,
            image_mode=arguments.image_mode,
            with_predictions=bool(arguments.predictions),
            expect_fingerprint=arguments.expect_fingerprint,
        )
    )
    if not is_first_process():
        return
    passport = content["passport"]
    lines = [*_score_lines(arguments.suite, content), *set_lines(passport["set"]), *name_lines(passport)]
    # First the terminal, so that the scores are not lost if the file cannot be written.
    print("\n".join(lines), flush=True)
    try:
        write_result(arguments.out, content)
    except OSError as error:
        raise ConfigError(f"--out {arguments.out} cannot be written ({error.strerror}); give another name") from error
    print(f"written to {arguments.out}")
    print("\n".join(_next_lines(arguments, given)))


def program() -> int:
    """Run the command on ``sys.argv`` and return its exit code."""
    return run(main)


def _check_out(arguments: argparse.Namespace) -> None:
    """Refuse a result file that exists or cannot be written, before the hours that scoring may take."""
    if arguments.out.is_dir():
        raise ConfigError(f"--out {arguments.out} is a folder; give the name of a JSON file")
    if arguments.out.exists() and not arguments.overwrite:
        raise ConfigError(f"--out {arguments.out} exists already; give another name, or --overwrite")
    folder: Path = next(one for one in arguments.out.absolute().parents if one.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        what = "is not writable" if folder.is_dir() else "is a file"
        raise ConfigError(f"--out {arguments.out} cannot be written: {folder} {what}; give another name")


def _check_flags(arguments: argparse.Namespace) -> None:
    """Refuse flags of other suites, and ask for those that the suite needs."""
    suite: str = arguments.suite
    for name in dict.fromkeys(name for names in SUITES.values() for name in names):
        flag = f"--{name.replace('_', '-')}"
        if getattr(arguments, name) is not None and name not in SUITES[suite]:
            owners = " and ".join(other for other, names in SUITES.items() if name in names)
            raise ConfigError(f"{flag} is for the suite {owners} and has no effect on {suite}; leave it out")
    if "train" in SUITES[suite] and arguments.train is None:
        raise ConfigError(f"--suite {suite} fits a classifier: give labeled records for it with --train DIR")


def _evaluation(arguments: argparse.Namespace) -> "EvaluationConfig":
    """The config of the suite; flags that were not given keep its defaults."""
    from clipa_eqx.evals.contrastive import ContrastiveConfig
    from clipa_eqx.evals.few_shot import FewShotConfig
    from clipa_eqx.evals.linear_probe import LinearProbeConfig
    from clipa_eqx.evals.retrieval import RetrievalConfig
    from clipa_eqx.evals.zero_shot import ZeroShotConfig

    given: dict[str, Any] = {name: getattr(arguments, name) for name in SUITES[arguments.suite]}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    given = {name: value for name, value in given.items() if value is not None} | {
        "data": arguments.data,
        "batch_size": arguments.batch_size,
    }
    match arguments.suite:
        case "retrieval":
            return RetrievalConfig(**given)
        case "contrastive":
            return ContrastiveConfig(**given)
        case "few-shot":
            return FewShotConfig(**given)
        case "linear-probe":
            return LinearProbeConfig(**given)
        case _:
            given.pop("predictions", None)
            given["canonicalize"] = not given.pop("no_canonicalize", False)
            if (file := given.pop("templates_file", None)) is not None:
                given["templates"] = _templates(file)
            if (names := given.get("class_names")) is not None and names not in CLASS_NAME_SETS:
                given |= {"class_names": "file", "class_names_file": names}
            return ZeroShotConfig(**given)


def _score_lines(suite: str, content: Mapping[str, Any]) -> list[str]:
    """The scores for the terminal."""
    images = f"{content['count']:,} images"
    match suite:
        case "retrieval":
            ways = (("image_to_text", "captions of an image"), ("text_to_image", "the image of a caption"))
            return [
                f"{what}: "
                + ", ".join(f"R@{k} {100 * content[f'{way}_recall@{k}']:.2f} %" for k in (1, 5, 10))
                + f" ({images}, {content['caption_count']:,} captions)"
                for way, what in ways
            ]
        case "contrastive":
            return [f"loss {content['loss']:.4f}, accuracy {100 * content['accuracy']:.2f} % of {images}"]
        case "few-shot":
            shots = [name for name in content if name.endswith("_shot")]
            return [
                f"{name.replace('_', '-')}: {100 * content[name]:.2f} % of {images}, mean of the seeds"
                for name in shots
            ]
        case "linear-probe":
            return [f"top-1 {100 * content['top1']:.2f} % of {images}, regularization {content['regularization']:g}"]
        case _:
            return [f"top-1 {100 * content['top1']:.2f} %, top-5 {100 * content['top5']:.2f} % of {images}"]


def _next_lines(arguments: argparse.Namespace, given: Sequence[str]) -> list[str]:
    path: Path = arguments.out
    out = path.with_stem(f"{path.stem}-predictions")
    # The same flags again, except the result file.
    others = [
        word for i, word in enumerate(given) if word.partition("=")[0] != "--out" and given[i - 1 : i] != ["--out"]
    ]
    with_classes = command_line("evaluate", *others, "--predictions", "--out", out)
    tune = command_line("train", "CONFIG.py", "--workdir", "NEW_RUN", "--init-from", address(arguments.model))
    has_classes = arguments.suite == "zero-shot" and not arguments.predictions
    return next_lines(
        *([] if not has_classes else [(with_classes, "the five likeliest classes of each image")]),
        (tune, "train on from these weights"),
    )


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "model", type=Path, metavar="MODEL_OR_RUN", help="a model folder, a run folder, or the name of a model"
    )
    parser.add_argument("--suite", choices=tuple(SUITES), required=True)
    parser.add_argument("--data", required=True, metavar="DIR", help="folder of records with its manifest")
    parser.add_argument("--out", type=Path, required=True, metavar="RESULT.json")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --out")
    parser.add_argument(
        "--batch-size", type=int, default=256, help="images at once over all devices; changes no count; default: 256"
    )
    parser.add_argument(
        "--expect-fingerprint",
        metavar="HEX",
        help="content_fingerprint that the records must have, as in the passport of a result; others are refused",
    )
    parser.add_argument("--workers", type=int, default=0, help="extra processes that decode images; default: 0")
    parser.add_argument("--image-mode", choices=("exact", "fast"), help="default: the mode saved with the model")
    parser.add_argument(
        "--text-reduction",
        choices=("truncate", "syntax"),
        help="how texts longer than the text tower are cut; default: as in the model's training",
    )
    zero_shot = parser.add_argument_group("zero-shot")
    prompts = zero_shot.add_mutually_exclusive_group()
    prompts.add_argument("--templates", choices=PROMPT_SETS, help=TEMPLATES_HELP)
    prompts.add_argument(
        "--templates-file", type=Path, metavar="FILE", help="one template per line, {} or {c} for the name"
    )
    zero_shot.add_argument(
        "--class-names",
        metavar="|".join((*CLASS_NAME_SETS, "FILE")),
        help="default: manifest, the names in the data folder's manifest; a file has one name per line",
    )
    zero_shot.add_argument(
        "--no-canonicalize",
        "--no-canonicalise",
        action="store_const",
        const=True,
        help="keep case and punctuation of class names and templates",
    )
    zero_shot.add_argument(
        "--commas-in-names",
        action="store_const",
        const=True,
        help="commas are part of class names; else only the part before the first one is used",
    )
    zero_shot.add_argument("--max-labels", type=int, help="most labels that one image has; default: 1")
    zero_shot.add_argument(
        "--predictions", action="store_const", const=True, help="also write the five likeliest classes per image"
    )
    retrieval = parser.add_argument_group("retrieval")
    retrieval.add_argument("--max-captions", type=int, help="use only the first captions of each image; default: all")
    fitted = parser.add_argument_group("few-shot and linear-probe")
    fitted.add_argument("--train", metavar="DIR", help="labeled records that the classifier is fitted to")
    fitted.add_argument("--shots", type=int, nargs="+", help="images per class; default: 1 5 10")
    fitted.add_argument("--seeds", type=int, help="choices of images for each number of shots; default: 3")
    fitted.add_argument("--regularization", type=float, help="of few-shot; default: 1024")
    fitted.add_argument("--validation", type=float, help="share of --train that chooses the strength; default: 0.1")
    fitted.add_argument("--strengths", type=float, nargs="+", help="of the linear probe; default: 1e-6 to 100")
    add_distributed_flags(parser)
    return parser


def _templates(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--templates-file {path} cannot be read ({error}); give a UTF-8 file, one template per line"
        ) from error
    return tuple(line for line in lines if line.strip())
