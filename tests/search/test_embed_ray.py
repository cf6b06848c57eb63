"""Embedding on a Ray cluster of two nodes: the bytes of one process, whatever happens to nodes and to the command."""

import json
from functools import partial

import pytest
from support.process_groups import run_programs
from support.ray_clusters import two_nodes
from support.scored_runs import noise_png

from clipa_eqx.cli import OK, run
from clipa_eqx.programs.embed import main

AS_ONE_DEVICE = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
PROGRAM = """
import json, sys
from clipa_eqx.cli import run
from clipa_eqx.programs.embed import main
sys.exit(run(lambda: main(json.loads(sys.argv[1]))))
"""


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in AS_ONE_DEVICE.items():
            patch.setenv(name, value)
        with two_nodes() as found:
            yield found


@pytest.fixture
def photos(tmp_path):
    """Ten images, one of which is no image."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(10):
        (folder / f"{i}.png").write_bytes(noise_png(i) if i != 4 else b"no image")
    return folder


def command(model_folder, photos, out, *more):
    options = ["--shard-inputs", "2", "--batch-size", "4", "--on-unreadable", "skip", *more]
    return [str(model_folder), "--images", str(photos), "--out", str(out), *options]


def embed_alone(*arguments):
    """Embed in one process with one device."""
    ((code, said),) = run_programs([PROGRAM], [json.dumps(command(*arguments))])
    assert code == 0, said


def content_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def call(*words):
    return run(partial(main, list(words)))


def test_two_nodes_write_the_bytes_of_one_process(cluster, model_folder, photos, tmp_path, capsys):
    engine = f"ray:{cluster.address}"
    assert call(*command(model_folder, photos, tmp_path / "two", "--engine", engine)) == OK
    assert "9 images in 5 shards, 5 of them new" in capsys.readouterr().out
    embed_alone(model_folder, photos, tmp_path / "one")
    assert content_of(tmp_path / "two") == content_of(tmp_path / "one")
