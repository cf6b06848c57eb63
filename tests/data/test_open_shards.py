"""Open shards: bounded in number for folders of any size and any threads, and a clear error if none can be opened."""

import os
import random
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from support.paths import ROOT
from support.streams import write_numbered

from clipa_eqx.data import open_shards
from clipa_eqx.data.array_record_reader import open_records

RECORDS, PER_SHARD = 80, 2

LIMITED = '''"""Read all records under a small limit of open files that the process cannot raise."""
import os
import resource
import sys

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.errors import DataError

source = open_records(sys.argv[1])
source[0]  # imports its library
source.close()
resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48))
assert [record.key for record in source] == [str(i) for i in range(len(source))]
source.close()

def take_all():
    try:
        while True:
            os.open("/dev/null", os.O_RDONLY)
    except OSError:
        pass

assert source[len(source) - 1].key == str(len(source) - 1)
assert source[9].key == "9"
take_all()
assert [source[i].key for i in (0, 20, 40)] == ["0", "20", "40"]  # by releasing the two
source.close()
take_all()
try:
    source[5]
except DataError as error:
    print(error)
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "set"
    write_numbered(folder, RECORDS, records_per_shard=PER_SHARD)
    return folder


def open_files(folder):
    """Number of files of a folder that are open in this process."""
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return sum(os.path.lexists(link) and os.readlink(link).startswith(f"{folder}/") for link in links)


@pytest.mark.parametrize("most", [1, 9])
def test_shards_stay_open_up_to_a_number_of_records_and_give_the_same_records(folder, monkeypatch, most):
    monkeypatch.setattr(open_shards, "MOST_OPEN_RECORDS", most)
    source = open_records(folder)
    wanted = random.Random(0).choices(range(RECORDS), k=300)
    assert [source[i].key for i in wanted] == [str(i) for i in wanted]
    assert [record.key for record in source.read(wanted)] == [str(i) for i in wanted]
    assert open_files(folder) == max(1, most // PER_SHARD)
    source.close()
    assert open_files(folder) == 0
    assert source[7].key == "7"
    source.close()


def test_the_shards_read_last_are_those_that_stay_open(folder, monkeypatch):
    monkeypatch.setattr(open_shards, "MOST_OPEN_RECORDS", 3 * PER_SHARD)
    shards = open_shards.OpenShards(str(folder), open_records(folder).manifest.shards)
    zero, one = shards.reader(0), shards.reader(1)
    shards.reader(2)
    assert shards.reader(0) is zero
    shards.reader(3)  # replaces 1, which was used before 0
    assert shards.reader(0) is zero
    assert shards.reader(1) is not one
    assert one.read([0])  # still usable by its owner
    shards.close()


def test_the_bounds_apply_to_the_process_and_closed_or_collected_sources_do_not_count(folder, monkeypatch):
    monkeypatch.setattr(open_shards, "MOST_OPEN_RECORDS", 4 * PER_SHARD)
    sources = [open_records(folder) for _ in range(3)]
    for i in range(RECORDS):
        assert {source[i].key for source in sources} == {str(i)}
    assert open_files(folder) == 4  # the last shard of all three, and the one before it of the last source
    sources[0].close()
    assert open_files(folder) == 3
    sources.pop()
    assert open_files(folder) == 1
    assert [record.key for record in sources[0]] == [str(i) for i in range(RECORDS)]
    assert open_files(folder) == 4
    sources[0].close()
    assert open_files(folder) == 0


def test_several_sources_together_open_at_most_a_quarter_of_the_files(folder, monkeypatch):
    limits = SimpleNamespace(**vars(resource) | {"getrlimit": lambda _: (20, 20), "setrlimit": lambda *_: None})
    monkeypatch.setattr(open_shards, "resource", limits)
    sources = [open_records(folder) for _ in range(3)]
    for i in range(RECORDS):
        assert {source[i].key for source in sources} == {str(i)}
        assert open_files(folder) <= 5
    for source in sources:
        source.close()


def test_threads_share_few_open_shards(folder, monkeypatch):
    monkeypatch.setattr(open_shards, "MOST_OPEN_RECORDS", 2 * PER_SHARD)
    source = open_records(folder)
    wanted = random.Random(1).choices(range(RECORDS), k=800)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: source[i].key, wanted)) == [str(i) for i in wanted]
    assert open_files(folder) <= 2
    source.close()


def test_a_small_limit_of_open_files_suffices_and_an_exhausted_one_is_named(folder):
    command = [sys.executable, "-c", LIMITED, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert "shard-00002.array_record cannot be opened: Too many open files" in done.stdout
    assert "48 files open; raise that with `ulimit -n`" in done.stdout
