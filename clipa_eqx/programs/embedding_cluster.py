"""``clipa-embed`` on a Ray cluster: this process checks, locks and describes; processes of the nodes embed the shards.

JAX is started in the processes of the nodes only. Each loads the model once and takes shards as it becomes free.
"""

import contextlib
import logging
import secrets
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from clipa_eqx.buckets.bucket import bucket_at
from clipa_eqx.cluster.connection import Cluster, connected
from clipa_eqx.cluster.engine import Engine
from clipa_eqx.cluster.facts import facts_of_process, versions_of
from clipa_eqx.cluster.lasting import LastingProcesses, lasting_processes
from clipa_eqx.cluster.nodes import compare_nodes
from clipa_eqx.cluster.tasks import run_tasks
from clipa_eqx.data.addresses import is_url
from clipa_eqx.programs.embedding_job import ModelChoice, ShardJob, embed_job, identify
from clipa_eqx.programs.embedding_run import Request, inputs_of
from clipa_eqx.programs.encoders import full_path
from clipa_eqx.progress import progress_bar, waiting
from clipa_eqx.saved.by_name import is_name
from clipa_eqx.search.embedding import Summary, begin, check_folder, finish, inputs_of_shard, shard_count
from clipa_eqx.search.embedding_lock import PROBE, end_of_work, locked
from clipa_eqx.search.encoder import EncoderIdentity
from clipa_eqx.search.inputs import Inputs
from clipa_eqx.search.shards import listing_path

_log = logging.getLogger(__name__)

_SHARED, _SEEN = "the same on all nodes", "seen by all nodes"


def run_embedding_on(engine: Engine, request: Request, *, workers: int | None) -> Summary:
    """Write the missing shards of a folder of embeddings on the nodes of a cluster.

    The bytes are those of one process with the same batch size on one of their devices. A lost process or node costs
    the shards that it was writing.

    Args:
        workers: most processes; None for one per accelerator, or per node of a cluster without accelerators.

    Raises:
        CheckpointError: there is no such model.
        ConfigError: a setting is wrong, the cluster cannot be used, its nodes differ from this process or do not see
            the folders, or the folder belongs to another command.
        DataError: inputs are missing or cannot be read.
    """
    request = _paths_for_nodes(request)
    inputs, out = inputs_of(request), request.out
    with connected(engine, facts=facts_of_vectors, at_once=workers) as cluster, contextlib.ExitStack() as held:
        check_folder(out)  # nothing is written to another folder, not even the lock
        lock = held.enter_context(locked(out))
        cluster = held.enter_context(_sharing(cluster, out, _seen_by_nodes(request, inputs)))
        processes = held.enter_context(lasting_processes(workers))
        model = ModelChoice(
            folder=str(request.model),
            mesh=request.mesh,
            image_mode=request.image_mode,
            text_reduction=request.text_reduction,
        )
        identity = replace(_identity(cluster, processes, model), path=full_path(request.model))
        begin(out, identity, inputs, request.options)
        jobs = (
            ShardJob(
                shard=shard,
                has_listing=listing_path(out, shard).exists(),
                numbers=(numbers := inputs_of_shard(shard, inputs, request.options)),
                kind=inputs.kind,
                about=inputs.about,
                items=None if _are_records(inputs) else list(inputs.read(numbers)),
                model=model,
                fingerprint=identity.fingerprint,
                folder=out,
                options=request.options,
                fence=lock.fence,
            )
            for shard in range(shard_count(inputs, request.options))
        )
        new = _embed(cluster, processes, jobs, inputs, check=lock.check)
        end_of_work(out, lock)
        return finish(out, inputs, request.options, new=new)


def facts_of_vectors() -> dict[str, str]:
    """Everything that decides the vectors of a process, except its devices: versions of libraries, and our own code."""
    from PIL import features

    packages = ("jax", "jaxlib", "equinox", "numpy", "pillow", "simplejpeg", "tokenizers")
    codecs = {f"{name} in pillow": str(features.version(name)) for name in ("jpg", "zlib", "webp")}
    return {**facts_of_process("clipa_eqx"), **versions_of(*packages), **codecs}


def _identity(cluster: Cluster, processes: LastingProcesses, model: ModelChoice) -> EncoderIdentity:
    tasks = run_tasks(
        cluster, identify, [model], name=lambda _: f"model {model.folder}", watch=lambda *_: None, processes=processes
    )
    with waiting("reading the model"), contextlib.closing(tasks):
        ((_, identity),) = tasks
    return identity


def _embed(
    cluster: Cluster,
    processes: LastingProcesses,
    jobs: Iterator[ShardJob],
    inputs: Inputs,
    *,
    check: Callable[[], None],
) -> int:
    """Run the jobs with progress; returns how many shards are new."""
    unit = "image" if inputs.kind == "images" else "text"
    new = done = 0
    devices: dict[str, None] = {}
    with progress_bar(what=f"embedding {unit}s", total=inputs.count, unit=unit) as bar:

        def show(running: int, where: str = "") -> None:
            bar.update(max(min(done + running, inputs.count) - bar.n, 0))
            if where:
                bar.set_postfix_str(where, refresh=False)

        tasks = run_tasks(cluster, embed_job, jobs, name=_name, watch=show, processes=processes)
        with contextlib.closing(tasks):
            for job, written_on in tasks:
                check()
                done += len(job.numbers)
                show(0)
                new += not job.has_listing or written_on is not None
                if written_on is not None:
                    devices[written_on] = None
    if len(devices) > 1:
        _log.warning(
            "shards were computed on different devices (%s), so vectors differ by rounding", ", ".join(devices)
        )
    elif devices:
        _log.info("embedded on %s in each process", *devices)
    return new


def _name(job: ShardJob) -> str:
    return f"shard {job.shard} ({job.kind} {job.numbers.start + 1:,} to {job.numbers.stop:,})"


def _are_records(inputs: Inputs) -> bool:
    return inputs.about["source"] == "record folder"


def _paths_for_nodes(request: Request) -> Request:
    """The request with full paths, which nodes understand too."""
    model = request.model if is_name(request.model) or bucket_at(request.model) else request.model.absolute()
    images = (
        request.images if request.images is None or is_url(request.images) else str(Path(request.images).absolute())
    )
    return replace(request, model=model, images=images, out=request.out.absolute())


def _seen_by_nodes(request: Request, inputs: Inputs) -> list[str]:
    """Local paths that nodes read. The lines of a text file are sent to them."""
    needed = [str(request.model)] if request.model.is_absolute() else []
    source = str(inputs.about["path"])
    return needed if inputs.about["source"] == "text file" or is_url(source) else [*needed, source]


@contextlib.contextmanager
def _sharing(cluster: Cluster, out: Path, given: Sequence[str]) -> Generator[Cluster]:
    """A cluster whose nodes see the model, the inputs and the folder; those that join it later are asked too.

    Args:
        given: paths of model and inputs.

    Raises:
        ConfigError: a node does not see one of them.
    """
    probe, text = out / f"{PROBE}{secrets.token_hex(8)}", secrets.token_hex(16)
    expected = {_name_of(out): _SHARED, **{_name_of(one): _SEEN for one in given}}
    shared = cluster.expecting(partial(_facts_of_places, out, probe, text, given), expected)
    try:
        probe.write_text(text)
        compare_nodes(shared.setting)
        yield shared
    finally:
        probe.unlink(missing_ok=True)


def _facts_of_places(out: Path, probe: Path, text: str, given: Sequence[str]) -> dict[str, str]:
    try:
        found = _SHARED if probe.read_text() == text else "another one"
    except OSError as error:
        found = f"another one or none ({error.strerror}; is it on a local disk?)"
    return {_name_of(out): found, **{_name_of(one): _SEEN if Path(one).exists() else "not found" for one in given}}


def _name_of(path: object) -> str:
    return f"the place {path}"
