"""Processes that last from job to job: how many each node gets, and what they do with jobs."""

import os

import pytest
from support.ray_clusters import NODE, two_nodes

from clipa_eqx.cluster.connection import connected
from clipa_eqx.cluster.engine import Engine
from clipa_eqx.cluster.facts import versions_of
from clipa_eqx.cluster.lasting import lasting_processes, places
from clipa_eqx.cluster.nodes import Node
from clipa_eqx.cluster.tasks import run_tasks


def node(name, processors, gpus=0.0):
    return Node(id=name, name=name, processors=processors, gpus=float(gpus))


@pytest.mark.parametrize(
    ("nodes", "at_once", "expected"),
    [
        ([node("a", 8), node("b", 4)], None, {"a": 1, "b": 1}),
        ([node("a", 8), node("b", 4)], 1, {"a": 1}),
        ([node("a", 8), node("b", 4)], 5, {"a": 3, "b": 2}),
        ([node("a", 2), node("b", 1)], 9, {"a": 2, "b": 1}),
        ([node("head", 8), node("a", 16, 4), node("b", 16, 2)], None, {"a": 4, "b": 2}),
        ([node("a", 16, 4), node("b", 16, 2)], 3, {"a": 2, "b": 1}),
        ([node("a", 2, 4)], None, {"a": 2}),
        ([], 3, {}),
    ],
)
def test_each_accelerator_or_node_gets_a_process_and_a_limit_is_spread(nodes, at_once, expected):
    assert {name: count for name, count in places(nodes, at_once).items() if count} == expected


def facts():
    return versions_of("numpy")


def process_of(number, seen):
    """The process that does a job; the third job ends its process the first time."""
    seen(1)
    marker = os.environ["CLIPA_EQX_TEST_MARKER"]
    if number == 2 and not os.path.exists(marker):
        open(marker, "w").close()
        os._exit(1)
    return os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.slow
@pytest.mark.parametrize("gpus", [0, 1])
def test_a_process_does_job_after_job_and_one_that_died_is_replaced(gpus, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPA_EQX_TEST_MARKER", str(tmp_path / "ended"))
    with two_nodes() as cluster:
        if gpus:  # as many as a node says it has
            cluster.add_node(**NODE, num_gpus=2)
        with (
            connected(Engine(kind="ray", address=cluster.address), facts=facts) as open_cluster,
            lasting_processes(None) as processes,
        ):
            for _ in range(2):
                found = dict(
                    run_tasks(
                        open_cluster,
                        process_of,
                        range(12),
                        name=str,
                        watch=lambda units, note: None,
                        processes=processes,
                    )
                )
                assert sorted(found) == list(range(12))
            ids = {process for process, _ in found.values()}
            assert len(ids) <= (1 if gpus else 2)
            if gpus:
                assert {device for _, device in found.values()} <= {"0", "1"}
