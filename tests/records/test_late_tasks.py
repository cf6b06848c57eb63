"""Tasks that come late, of a conversion that was killed or of an earlier stage of the same one, change nothing."""

import pytest
from support import dumps
from support.conversion_locks import LOCK_NAME, during, files, ignored, with_repeated_key, write_lock
from support.conversions import content, ingest
from support.dumps import samples
from support.ray_clusters import two_nodes

from clipa_eqx.cluster.engine import Engine
from clipa_eqx.errors import DataError
from clipa_eqx.locks import staging as local_staging
from clipa_eqx.locks.fence import LateError
from conversion.records import convert as module
from conversion.records import locking, staging
from conversion.records.options import IngestOptions
from conversion.records.part import convert_part
from conversion.records.places import open_place
from conversion.records.writing import write_file

pytestmark = pytest.mark.usefixtures("no_waiting")


@pytest.fixture
def source(tmp_path):
    return with_repeated_key(tmp_path / "source")


def test_a_task_of_an_ended_conversion_changes_nothing(source, anywhere, monkeypatch):
    late = during(monkeypatch, lambda job: None)
    ingest(source, anywhere)
    before = files(anywhere)
    for _ in range(2):
        with pytest.raises(LateError):
            convert_part(late[0], ignored)
        assert files(anywhere) == before
        ingest(source, anywhere, overwrite=True, min_side=9)
        before = files(anywhere)


def test_a_task_of_a_killed_conversion_changes_nothing_while_another_works(source, target, monkeypatch):
    late = during(monkeypatch, lambda job: None)
    ingest(source, target)
    before = {}

    def is_late(job):
        before.update(files(target))
        with pytest.raises(LateError):
            convert_part(late[0], ignored)
        assert files(target) == before

    during(monkeypatch, is_late)
    ingest(source, target, overwrite=True, min_side=9)


def test_a_first_attempt_does_not_bring_duplicates_back(source, anywhere, monkeypatch, tmp_path):
    first = during(monkeypatch, lambda job: None, when=lambda job: job.number == 2)
    tried = []

    def converting(job, seen):
        report = convert_part(job, seen)
        if job.number == 2 and not job.duplicates:
            first.append(job)
        if job.duplicates:
            with pytest.raises(LateError):
                convert_part(first[0], ignored)
            tried.append(job)
        return report

    monkeypatch.setattr(module, "convert_part", converting)
    ingest(source, anywhere)
    assert len(tried) == 1
    monkeypatch.undo()
    ingest(source, tmp_path / "whole")
    assert files(anywhere) == content(tmp_path / "whole")


def test_a_task_that_was_suspended_after_its_last_look_has_nothing_to_move_in(source, target, monkeypatch):
    place = open_place(target)
    jobs = during(monkeypatch, lambda job: None)
    ingest(source, target)
    with locking.locked(place) as hold:
        write_file(place, "_unfinished/command.json", b"{}")
        job = module.dataclasses.replace(jobs[0], fence=hold.fence)
        before, looks = files(target), []

        def looking(real):
            def look(*arguments, **options):
                looks.append(real(*arguments, **options))
                if len(looks) == 2:  # the one before the shard is moved in
                    hold.next_stage()

            return look

        for where, name in ((staging, "check_current"), (local_staging, "check_fence")):
            monkeypatch.setattr(where, name, looking(getattr(where, name)))
        with pytest.raises(LateError):
            convert_part(job, ignored)
        assert len(looks) == 2
        assert files(target) == before


def test_staged_files_of_running_tasks_are_kept_and_all_others_removed(target):
    place = open_place(target)

    def stage(name):
        path = place.child(f"_unfinished/{name}/shard")
        place.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        place.fs.pipe_file(path, b"staged")

    for name in ("tmp-1234", "tmp-aa-000001-x"):
        stage(name)
    with locking.locked(place) as hold:
        hold.remove_left()
        assert files(target) == {}
        hold.next_stage()
        earlier = locking.staged_prefix(hold.fence)
        hold.next_stage()
        own = f"{locking.staged_prefix(hold.fence)}x"  # perhaps of another host
        for name in (f"{earlier}y", own):
            stage(name)
        hold.remove_staged()
        assert list(files(target)) == [f"_unfinished/{own}/shard"]


def test_a_refused_conversion_removes_nothing(source, tmp_path):
    target = tmp_path / "out"
    (target / "_unfinished/tmp-of-the-user").mkdir(parents=True)
    for name in ("_unfinished/tmp-of-the-user/file", "_unfinished/command.json.tmp-1", "other things"):
        (target / name).write_text("mine")
    before = files(str(target))
    with pytest.raises(DataError, match="holds other things than records"):
        ingest(source, target)
    assert files(str(target)) == before


@pytest.mark.slow
def test_a_conversion_on_a_cluster_whose_lock_was_taken_says_by_whom(tmp_path, monkeypatch):
    dumps.write_tars(tmp_path / "source", [samples(2, first=2 * i) for i in range(20)])
    out, real = str(tmp_path / "out"), locking.Hold.check

    def taken(self):
        real(self)
        if not any("theirs" in path.read_text() for path in (tmp_path / "out").glob(LOCK_NAME)):
            write_lock(out, host="elsewhere")

    monkeypatch.setattr(locking.Hold, "check", taken)
    with two_nodes() as cluster, pytest.raises(DataError, match="was taken over by process 7 on elsewhere"):
        module.convert(
            "webdataset",
            str(tmp_path / "source"),
            out,
            options=IngestOptions(),
            engine=Engine(kind="ray", address=cluster.address),
        )
    assert not (tmp_path / "out/manifest.json").exists()
