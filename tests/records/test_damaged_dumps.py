"""Files with random damage in every format: no traceback, the account closes, and nothing is half-written."""

import json
import os
import subprocess
import sys
from collections import Counter

import pytest
from support import dumps
from support.damaged_dumps import FORMS, problems, wrong_values
from support.paths import ROOT

from clipa_eqx.data.records import Record
from conversion.records import part

QUICK = [name for name in FORMS if not name.startswith("TF")]  # TensorFlow takes seconds to import


def convert_damaged(name, seeds, folder):
    """The outcome of each seed. A seed that ends the process has the outcome "crashed", and the next one continues."""
    outcomes = {}
    first = seeds.start
    while first < seeds.stop:
        place = folder / f"{name} {first}"
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        done = subprocess.run(
            [sys.executable, "-m", "support.damaged_dumps", name, str(first), str(seeds.stop), str(place)],
            env={**os.environ, "PYTHONPATH": paths, "TMPDIR": str(folder)},
            capture_output=True,
            text=True,
        )
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        assert lines, done.stderr[-3000:]
        outcomes |= {line["seed"]: line for line in lines if "begun" not in line}
        if done.returncode == 0:
            break
        assert done.returncode < 0, done.stderr[-3000:]  # ended by a signal
        seed = lines[-1]["seed"]
        outcomes[seed] = {"seed": seed, "code": done.returncode, "problems": [f"crashed: {done.stderr[-500:]}"]}
        first = seed + 1
    return outcomes


def problems_of(name, outcomes):
    return [f"{name}, seed {seed}: {'; '.join(one['problems'])}" for seed, one in outcomes.items() if one["problems"]]


def test_two_damaged_files_of_each_format_that_is_quick_to_read(tmp_path):
    code = "import sys; from pathlib import Path; from support.damaged_dumps import run_cases\n"
    code += "import json\n"
    code += "for name in json.loads(sys.argv[1]):\n"
    code += "    for line in run_cases(name, 0, 2, Path(sys.argv[2]) / name.replace(' ', '-')):\n"
    code += "        print(json.dumps({'form': name, **line}))\n"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(QUICK), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": paths, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in map(json.loads, done.stdout.splitlines()) if "begun" not in line]
    assert len(lines) == 2 * len(QUICK)
    assert [line for line in lines if line["problems"]] == []


def record(key, image=b"i", caption="c"):
    return Record(key=key, image=image, captions=(caption,), label=None)


def test_wrong_values_would_be_seen(tmp_path):
    (tmp_path / "0.jpg").write_bytes(b"i")
    before = dict.fromkeys("ab", (b"i", ("c",), None))
    good, bad = [record("a"), record("b")], [record("a", caption="d"), record("b", caption="d")]
    for name in ("TFRecord", "CSV"):
        assert wrong_values(FORMS[name], tmp_path, good, before, bit=True) == []
        assert len(wrong_values(FORMS[name], tmp_path, bad, before, bit=True)) == 2
    assert wrong_values(FORMS["CSV"], tmp_path, [good[0], bad[1]], before, bit=True) == []
    assert len(wrong_values(FORMS["CSV"], tmp_path, [record("c", image=b"j")], before, bit=False)) == 1


def test_a_traceback_and_leftovers_would_be_seen(tmp_path, monkeypatch):
    dumps.write_csv(tmp_path / "source", [dumps.samples(2)])

    def fail(*_):
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(part, "check_row", fail)
        code, found = problems(FORMS["CSV"], tmp_path, tmp_path, {}, bit=False)
    assert (code, found[0]) == (1, "a traceback")
    assert "left: _unfinished" in found


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_fifty_damaged_files_of_each_format(name, tmp_path, record_property):
    outcomes = convert_damaged(name, range(50), tmp_path)
    assert len(outcomes) == 50
    assert problems_of(name, outcomes) == []
    codes = Counter(one["code"] for one in outcomes.values())
    reasons = Counter(reason for one in outcomes.values() for reason in one["dropped"])
    record_property("outcomes", f"{dict(codes)} {dict(reasons)}")
    print(name, dict(codes), dict(reasons))
