"""The work folder of a run: whose it is, and whether another start may go on in it."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from clipa_eqx.data.manifest import Manifest
from clipa_eqx.errors import CheckpointError
from clipa_eqx.experiment import ExperimentConfig
from clipa_eqx.json_config import to_json, with_current_names
from clipa_eqx.replacing import is_temporary, write_text

CONFIG_NAME = "config.json"
METRICS_NAME = "metrics.jsonl"
CHECKPOINTS_NAME = "checkpoints"
MODEL_NAME = "model"

# What may change when a run goes on: where things lie and how they are spread, watched and kept; none changes a number.
_FREE = (
    "mesh",
    "data/sources/*/folder",
    "data/vocab",
    "data/on_bad_record",
    "data/stream",
    "log_every_steps",
    "checkpoint",
    "wandb",
    "zero_shot",
    "eval_image",
)


def run_record(config: ExperimentConfig, manifests: Sequence[Manifest], *, vocab_sha256: str) -> dict[str, Any]:
    """What a work folder and its checkpoints say of their run: the config, and which data and vocabulary it means."""
    return {
        "version": 1,
        "config": to_json(config),
        "data_sha256": data_identity(manifests),
        "vocab_sha256": vocab_sha256,
    }


def data_identity(manifests: Sequence[Manifest]) -> str:
    """A hash of the shards' hashes, source by source: equal data, wherever they lie."""
    sources = ("".join(shard.sha256 for shard in manifest.shards) for manifest in manifests)
    return hashlib.sha256("\n".join(sources).encode()).hexdigest()


def claim(workdir: Path, record: Mapping[str, Any]) -> None:
    """Make the folder this run's, or check that it is; a run that did no step yet gives its folder up.

    Raises:
        CheckpointError: the folder holds another run (with every difference), or something that is no run.
    """
    path = workdir / CONFIG_NAME
    if workdir.is_file():
        raise CheckpointError(f"work folder {workdir} is a file; give a new folder with --workdir")
    if not path.exists():
        # A start that was killed while it wrote the record leaves an unfinished one, which the next removes.
        if workdir.is_dir() and not all(is_temporary(entry.name, CONFIG_NAME) for entry in workdir.iterdir()):
            raise CheckpointError(
                f"work folder {workdir} is not empty and has no {CONFIG_NAME}; give a new folder with --workdir"
            )
        workdir.mkdir(parents=True, exist_ok=True)
    else:
        found = read_record(workdir)
        if _has_results(workdir):
            check_same_run(found, record, where=f"work folder {workdir}")
    write_text(path, json.dumps(record, indent=1) + "\n")


def claim_on_all(workdir: Path, record: Mapping[str, Any]) -> None:
    """``claim`` by process 0; where it fails, every process ends with an error instead of waiting for ever."""
    problem: CheckpointError | None = None
    if jax.process_index() == 0:
        try:
            claim(workdir, record)
        except CheckpointError as error:
            problem = error
        except OSError as error:
            problem = CheckpointError(f"work folder {workdir} cannot be written: {error}")
    is_refused = problem is not None
    if jax.process_count() > 1:
        digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).digest()[:4]
        digests = multihost_utils.process_allgather(np.frombuffer(digest, np.uint32))
        if len(np.unique(digests)) > 1:
            raise CheckpointError(
                "the processes were given different configs, data or vocabularies; start all of them with the same "
                f"command on the same files (this is process {jax.process_index()})"
            )
        is_refused = bool(np.any(multihost_utils.process_allgather(np.asarray(is_refused))))
    if problem is not None:
        raise problem
    if is_refused:
        raise CheckpointError(f"process 0 refused work folder {workdir}; its message says why")


def read_record(workdir: Path) -> dict[str, Any]:
    """The record of a work folder; CheckpointError where there is none."""
    path = workdir / CONFIG_NAME
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        missing = {"version", "config", "data_sha256", "vocab_sha256"} - set(record)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is not the record of a run ({error!r})") from error
    if missing:
        raise CheckpointError(f"{path} is not the record of a run: it has no {', '.join(sorted(missing))}")
    return record


def check_same_run(ours: Mapping[str, Any], theirs: Mapping[str, Any], *, where: str) -> None:
    """Raises CheckpointError with every difference that would change what the run computes."""
    before, now = (dict(_flat(with_current_names(record["config"]))) for record in (ours, theirs))
    for what, name in (("the data's hash", "data_sha256"), ("the vocabulary's hash", "vocab_sha256")):
        before[what], now[what] = ours[name], theirs[name]
    differing = [
        f"{name}: {before.get(name, 'absent')} there, {now.get(name, 'absent')} now"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
        and not any(fnmatchcase(name, f) or fnmatchcase(name, f"{f}/*") for f in _FREE)
    ]
    if differing:
        raise CheckpointError(
            f"{where} is of another run; go on with its settings, or give a new --workdir (and --init-from {where} to "
            "start from its weights):\n  " + "\n  ".join(differing)
        )


def _has_results(workdir: Path) -> bool:
    log, checkpoints = workdir / METRICS_NAME, workdir / CHECKPOINTS_NAME
    is_logged = log.exists() and log.stat().st_size > 0
    return is_logged or (checkpoints.is_dir() and any(checkpoints.iterdir())) or (workdir / MODEL_NAME).exists()


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield path, value
        return
    for name, entry in items:
        yield from _flat(entry, f"{path}/{name}" if path else str(name))
