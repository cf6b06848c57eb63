"""Opening of what runs a conversion, and what all nodes of a cluster must have in common for it."""

import contextlib
import secrets
import shutil
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path

from clipa_eqx.cluster.connection import Cluster, connected
from clipa_eqx.cluster.engine import Engine
from clipa_eqx.cluster.facts import Facts, facts_of_process, versions_of
from clipa_eqx.cluster.nodes import compare_nodes
from clipa_eqx.errors import ConfigError, DataError
from conversion.records.destination import PROBE
from conversion.records.options import IngestOptions
from conversion.records.part_report import UNFINISHED
from conversion.records.places import Place, open_place, root_of
from conversion.records.reading import read_files
from conversion.records.sources.kinds import source_of
from conversion.records.workers import Workers
from conversion.records.writing import write_file

_SHARED = "the same on all nodes"


def check_workers(workers: int | None) -> None:
    """Check a number of workers that the user gave.

    Raises:
        DataError: it is less than 1.
    """
    if workers is not None and workers < 1:
        raise DataError(f"--workers must be at least 1, got {workers}")


@contextlib.contextmanager
def opened_workers(
    engine: Engine, workers: int | None, *, kind: str, source: Place, target: Place, options: IngestOptions
) -> Generator[Workers]:
    """Processes of this machine, or a cluster whose nodes see the source and make the same bytes, for the block.

    Args:
        workers: number of processes, None for only this one; of a cluster the most parts at once, None for all.
        kind: kind of the source.

    Raises:
        ConfigError: the cluster cannot be used, nodes differ or do not see the source, or other processes than this one
            cannot see source or destination.
    """
    hidden = next((place.url for place in (source, target) if not place.crosses_processes), None)
    if engine.kind == "local":
        yield 1 if hidden is not None else workers or 1
        return
    if hidden is not None:
        raise ConfigError(
            f"--engine ray: {hidden} exists in this process only; use a folder or bucket that nodes share"
        )
    sources = [source.url, *([options.images] if options.images else [])]
    facts = partial(_facts_with_sources, sources, partial(facts_of_bytes, kind, options))
    with connected(engine, facts=facts, at_once=workers) as cluster:
        yield cluster


def facts_of_bytes(kind: str, options: IngestOptions) -> dict[str, str]:
    """The facts that decide the bytes made from a source of a kind: versions of libraries, and our own code."""
    from PIL import features

    readers = [source_of(kind).package, "pyarrow" if options.where else None]
    packages = ("array_record", "numpy", "pillow", "simplejpeg", *(reader for reader in readers if reader))
    codecs = {f"{name} in pillow": str(features.version(name)) for name in ("jpg", "zlib", "webp")}
    return {**facts_of_process("clipa_eqx", "conversion"), **versions_of(*packages), **codecs}


@contextlib.contextmanager
def shared_places(workers: Workers, target: Place) -> Generator[tuple[Workers, Callable[[], None]]]:
    """Workers that see the destination, and a function that makes sure of it.

    The function writes a file of random text into ``_unfinished``, which every node must read, also one that joins the
    cluster later. The end of the block removes it.
    """
    if not isinstance(workers, Cluster):
        yield workers, lambda: None
        return
    name, text = f"{UNFINISHED}/{PROBE}{secrets.token_hex(8)}/shared", secrets.token_hex(16)
    expected = {_target_name(target.url): _SHARED}
    shared = workers.expecting(partial(_facts_of_target, target.url, name, text), expected)

    def check() -> None:
        if target.is_local:
            Path(target.child(name)).parent.mkdir(parents=True, exist_ok=True)
        write_file(target, name, text.encode())
        compare_nodes(shared.setting)

    try:
        yield shared, check
    finally:
        folder = target.child(name.rpartition("/")[0])
        if target.is_local:
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # it holds more, as it does unless the check failed
                Path(target.child(UNFINISHED)).rmdir()
        else:
            with contextlib.suppress(
                Exception
            ):  # drivers raise errors of their own; the one that ends the block counts
                if target.fs.exists(folder):
                    target.fs.rm(folder, recursive=True)


def _facts_with_sources(sources: list[str], facts: Callable[[], Facts]) -> Facts:
    return {**facts(), **{f"the source {url}": _look_at(url) for url in sources}}


def _facts_of_target(target: str, name: str, text: str) -> Facts:
    return {_target_name(target): _read(target, name, text)}


def _look_at(source: str) -> str:
    try:
        place = open_place(source)
        return "found" if place.fs.exists(root_of(place)) else "not found"
    except Exception as error:  # drivers raise errors of their own
        return f"not readable ({error})"


def _read(target: str, name: str, text: str) -> str:
    try:
        found = read_files(open_place(target), [name])[name]
    except FileNotFoundError:
        return "another one or none (is it on a local disk?)"
    except Exception as error:  # drivers raise errors of their own
        return f"not readable ({error})"
    return _SHARED if found == text.encode() else "another one"


def _target_name(url: str) -> str:
    return f"the destination {url}"
