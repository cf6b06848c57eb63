"""Score a model: `python scripts/evaluate.py MODEL_OR_WORKDIR --suite zero-shot --data DIR --out result.json`."""

import argparse
import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from clipa_eqx.cli import run
from clipa_eqx.errors import CheckpointError, ConfigError
from clipa_eqx.replacing import write_text

EPILOG = """A saved model is scored with the tokenizer and the picture preparation saved with it; of a work folder its
model if training ended, else its last checkpoint, with eval_image and vocab of its config.json.
The data folder holds labeled records; labels index the class names. All devices of this process take part.
Exit codes: 0 done, 2 a mistake in model, data or arguments, 1 anything else."""

PROMPT_SETS = ("clip_paper", "clip_best", "class_name_only", "open_clip")
CLASS_NAME_SETS = ("manifest", "imagenet", "imagenet_a", "imagenet_r")
PACKAGES = ("clipa_eqx", "jax", "equinox", "numpy", "grain", "pillow", "simplejpeg", "safetensors")

_log = logging.getLogger(__name__)


class Scored(NamedTuple):
    """A model with all that belongs to it, and what names it in the result."""

    model: Any
    tokenizer: Any
    length: int
    preprocess: Any
    text_reduction: str
    identity: Mapping[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    if arguments.out.is_dir():
        raise ConfigError(f"--out {arguments.out} is a folder; give the name of a JSON file")
    if arguments.out.exists() and not arguments.overwrite:
        raise ConfigError(f"--out {arguments.out} exists already; give another name, or --overwrite")
    _task_config(arguments, text_reduction="truncate")  # a bad template or file is said before the model is loaded

    from clipa_eqx.data.array_record_reader import open_records
    from clipa_eqx.json_config import to_json
    from clipa_eqx.sharding import MeshConfig, make_mesh

    source = open_records(arguments.data)
    mesh = make_mesh(MeshConfig())
    scored = _load(arguments.model, mesh)
    task_config = _task_config(arguments, text_reduction=arguments.text_reduction or scored.text_reduction)
    _log.info("prompts longer than %d tokens: %s", scored.length, task_config.text_reduction)
    preprocess = scored.preprocess
    if arguments.image_mode is not None:
        preprocess = dataclasses.replace(preprocess, mode=arguments.image_mode)
    _log.info("%s on %d devices, pictures %s", arguments.model, mesh.size, preprocess)
    since = time.perf_counter()
    result = _zero_shot(scored, task_config, source, preprocess, workers=arguments.workers, mesh=mesh)
    content = {
        "suite": arguments.suite,
        **result.to_json(with_predictions=arguments.predictions),
        "model": dict(scored.identity),
        "preprocess": to_json(preprocess),
        "settings": to_json(task_config),
        "versions": _versions(),
        "devices": {"count": mesh.size, "kind": mesh.devices.flat[0].device_kind},
        "seconds": time.perf_counter() - since,
    }
    write_text(arguments.out, json.dumps(content, indent=1) + "\n")
    print(f"top-1 {100 * result.top1:.2f} %, top-5 {100 * result.top5:.2f} % of {result.count:,} pictures")
    print(f"written to {arguments.out}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("model", type=Path, metavar="MODEL_OR_WORKDIR")
    parser.add_argument("--suite", choices=("zero-shot",), required=True)
    parser.add_argument("--data", required=True, metavar="DIR", help="folder of labeled records with its manifest")
    parser.add_argument("--out", type=Path, required=True, metavar="RESULT.json")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --out")
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--templates", choices=PROMPT_SETS, default="clip_paper", help="default: clip_paper")
    prompts.add_argument("--templates-file", type=Path, metavar="FILE", help="one template per line, {} for the name")
    parser.add_argument(
        "--class-names",
        default="manifest",
        metavar="|".join((*CLASS_NAME_SETS, "FILE")),
        help="default: manifest, the data folder's own; a file has one name per line",
    )
    parser.add_argument(
        "--no-canonicalize",
        "--no-canonicalise",
        action="store_true",
        help="keep case and punctuation of class names and templates",
    )
    parser.add_argument(
        "--text-reduction",
        choices=("truncate", "syntax"),
        help="how prompts longer than the text tower are cut; default: as the model's training did",
    )
    parser.add_argument("--max-labels", type=int, default=1, help="labels of the picture with the most; default: 1")
    parser.add_argument("--batch-size", type=int, default=256, help="over all devices; changes no count; default: 256")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode pictures; default: 0, none extra")
    parser.add_argument("--image-mode", choices=("exact", "fast"), help="default: what the model was saved with")
    parser.add_argument("--predictions", action="store_true", help="also write the five likeliest classes per picture")
    return parser


def _task_config(arguments: argparse.Namespace, *, text_reduction: Any) -> Any:
    from clipa_eqx.evals.zero_shot import ZeroShotConfig

    names: Any = arguments.class_names
    return ZeroShotConfig(
        data=arguments.data,
        templates=arguments.templates if arguments.templates_file is None else _templates(arguments.templates_file),
        class_names=names if names in CLASS_NAME_SETS else "file",
        class_names_file=None if names in CLASS_NAME_SETS else names,
        canonicalize=not arguments.no_canonicalize,
        batch_size=arguments.batch_size,
        text_reduction=text_reduction,
        max_labels=arguments.max_labels,
    )


def _templates(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--templates-file {path} cannot be read ({error}); give a UTF-8 file, one template per line"
        ) from error
    return tuple(line for line in lines if line.strip())


def _load(folder: Path, mesh: Any) -> Scored:
    from clipa_eqx.saved.model import WEIGHTS_FILE
    from clipa_eqx.training.run_folder import CONFIG_NAME, MODEL_NAME

    if (folder / WEIGHTS_FILE).exists():
        return _load_model_folder(folder, mesh)
    if (folder / MODEL_NAME / WEIGHTS_FILE).exists():
        return _load_model_folder(folder / MODEL_NAME, mesh)
    if (folder / CONFIG_NAME).exists():
        return _load_checkpoint(folder, mesh)
    raise CheckpointError(
        f"{folder} is neither a saved model (no {WEIGHTS_FILE}) nor a work folder (no {CONFIG_NAME}); give one of them"
    )


def _load_model_folder(folder: Path, mesh: Any) -> Scored:
    import jax

    from clipa_eqx.data.array_record_writer import hash_file
    from clipa_eqx.saved.model import WEIGHTS_FILE, load_model
    from clipa_eqx.sharding import shardings_for

    loaded = load_model(folder)
    identity = {"kind": "model folder", "path": str(folder), "sha256": hash_file(folder / WEIGHTS_FILE)}
    model = jax.device_put(loaded.model, shardings_for(loaded.model, mesh))
    run = loaded.provenance.get("run", {}).get("config", {})
    return Scored(
        model,
        loaded.tokenizer.tokenizer,
        loaded.tokenizer.length,
        loaded.preprocess.config,
        _reduction(run.get("data", {}).get("text_reduction")),
        identity,
    )


def _reduction(of_training: str | None) -> str:
    """How prompts are cut: as captions were, where that is no draw; a model that does not say it truncates."""
    return "syntax" if of_training == "syntax" else "truncate"


def _load_checkpoint(folder: Path, mesh: Any) -> Scored:
    from clipa_eqx.experiment import ExperimentConfig
    from clipa_eqx.json_config import from_json
    from clipa_eqx.training.checkpoint import Checkpoints
    from clipa_eqx.training.inputs import load_tokenizer
    from clipa_eqx.training.run_folder import CHECKPOINTS_NAME, CONFIG_NAME, read_record

    record = read_record(folder)
    config = from_json(ExperimentConfig, record["config"], where=str(folder / CONFIG_NAME))
    if not (folder / CHECKPOINTS_NAME).is_dir():
        raise CheckpointError(f"work folder {folder} has no checkpoint yet; train it further")
    # Not training.start.load_source: the result names the step, and a run that goes on may commit another meanwhile.
    with Checkpoints(folder / CHECKPOINTS_NAME, keep=None) as checkpoints:
        step = checkpoints.latest()
        if step is None:
            raise CheckpointError(f"work folder {folder} has no committed checkpoint yet; train it further")
        model = checkpoints.restore_model(config.model, mesh, step=step)
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    identity = {"kind": "checkpoint", "path": str(folder), "step": step, "run_sha256": digest}
    tokenizer = load_tokenizer(config.data.vocab, model_vocab=config.model.text.vocab)
    reduction = _reduction(config.data.text_reduction)
    return Scored(model, tokenizer, config.model.text.length, config.eval_image, reduction, identity)


def _zero_shot(scored: Scored, config: Any, source: Any, preprocess: Any, *, workers: int, mesh: Any) -> Any:
    from clipa_eqx.data.images.evaluation import eval_image
    from clipa_eqx.data.stream import StreamConfig, eval_stream
    from clipa_eqx.evals.zero_shot import ZeroShotTransform, evaluate_zero_shot, prepare_zero_shot

    task = prepare_zero_shot(
        config,
        manifest_class_names=source.manifest.class_names,
        tokenizer=scored.tokenizer,
        length=scored.length,
    )
    transform = ZeroShotTransform(picture=partial(eval_image, config=preprocess), max_labels=config.max_labels)
    stream = StreamConfig(workers=workers)
    with eval_stream(source, transform, batch_size=config.batch_size, config=stream) as batches:
        return evaluate_zero_shot(scored.model, task, _with_progress(batches, total=len(source)), mesh=mesh)


def _with_progress(batches: Iterable[Mapping[str, Any]], *, total: int) -> Iterator[Mapping[str, Any]]:
    from tqdm import tqdm

    # A terminal is redrawn; a log file gets a line every half minute.
    quiet = 0.5 if sys.stderr.isatty() else 30.0
    with tqdm(total=total, unit="picture", mininterval=quiet, dynamic_ncols=True) as bar:
        for batch in batches:
            yield batch
            bar.update(int(batch["mask"].sum()))


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            # Run from a checkout on the path that was never installed.
            found[package] = "not installed"
    return found


if __name__ == "__main__":
    sys.exit(run(main))
