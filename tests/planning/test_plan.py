"""The command `plan`: what it prints and refuses. CPU devices stand in for the slice; the compiler is that of CPUs."""

import json

import jax
import pytest
from support.tiny_models import tiny_run

from clipa_eqx.device_memory import ProgramMemory
from clipa_eqx.errors import ConfigError, ShardingError
from clipa_eqx.planning import slices
from clipa_eqx.planning.chips import CHIPS
from clipa_eqx.planning.compiled import Compiled, compile_for_slice, prepare
from clipa_eqx.planning.slices import Slice, open_slice, parse_topology
from clipa_eqx.programs import plan, planned_run
from clipa_eqx.sharding import MeshConfig

pytestmark = pytest.mark.usefixtures("quick_compile")

TARGET = Slice("v5e:2x4", CHIPS["v5e"], (2, 4), tuple(jax.devices()[:8]))
CONFIG = """
from support.tiny_models import tiny_run
from clipa_eqx import Duration, MeshConfig


def config():
    return tiny_run(batch_size=64, duration=Duration(epochs=2.0), mesh=MeshConfig(fsdp=2))
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A config file, and a slice of eight CPU devices with the memory of a v5e."""
    monkeypatch.setattr(slices, "check_compiler", lambda: None)
    monkeypatch.setattr(slices, "set_environment", lambda: None)
    monkeypatch.setattr(planned_run, "open_slice", lambda name: TARGET)
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG, encoding="utf-8")
    return path


def planned(config, *flags):
    plan.main([str(config), "--topology", "v5e:2x4", *flags])


@pytest.fixture(scope="module")
def compiled_once():
    """The step of the config file, compiled for the devices that stand in for the slice."""
    run = tiny_run(batch_size=64, mesh=MeshConfig(fsdp=2))
    return compile_for_slice(prepare(run, TARGET, records=1000))


def test_a_plan_has_memory_collectives_time_and_costs(config, capsys, monkeypatch, compiled_once):
    monkeypatch.setattr(planned_run, "compile_for_slice", lambda prepared: compiled_once)
    planned(config, "--records", "1000", "--utilization", "0.5", "--dollars-per-chip-hour", "3")
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert lines[0] == f"{config} on v5e:2x4: 8 chips, 8 devices, mesh data 4, fsdp 2, tensor 1"
    assert lines[1] == "a step: 64 pairs, 8 per place on the batch axes"
    for text in ("parameters", "optimizer state", "temporaries", "at the peak", "of 15.75: fits", "all-reduce"):
        assert text in shown
    assert "at 50% of the peak: " in shown
    # Two epochs of 1,000 records in steps of 64.
    assert "31 steps: " in shown


def test_a_plan_as_json_has_the_same_numbers(config, capsys, monkeypatch, compiled_once):
    monkeypatch.setattr(planned_run, "compile_for_slice", lambda prepared: compiled_once)
    planned(config, "--json", "--records", "1000")
    made = json.loads(capsys.readouterr().out)
    assert (made["topology"], made["chips"], made["devices"], made["steps"]) == ("v5e:2x4", 8, 8, 31)
    assert made["mesh"] == {"data": 4, "fsdp": 2, "tensor": 1}
    assert made["fits"] is True
    assert made["change"] is None
    parts = made["bytes"]
    # Both moments of AdamW have the size of the parameters, and two counters are not split.
    assert 2 * parts["parameters"] <= parts["optimizer_state"] < 2 * parts["parameters"] + 100
    assert parts["total"] == parts["arguments"] + parts["temporary"]
    assert made["operations"]["useful"] > 0 == made["operations"]["repeated"]
    assert made["hours"] == pytest.approx(31 * made["step_seconds"] / 3600)
    assert made["dollars"] == pytest.approx(made["hours"] * 8 * CHIPS["v5e"].dollars)
    assert {one["kind"] for one in made["collectives"]} >= {"all-gather", "all-reduce"}


def test_flags_of_the_mesh_and_of_the_config_change_the_plan(config, capsys, monkeypatch):
    monkeypatch.setattr(planned_run, "compile_for_slice", lambda prepared: of_size(2))
    planned(config, "--mesh", "2x2x2", "--batch-size", "32", "--json")
    made = json.loads(capsys.readouterr().out)
    assert made["mesh"] == {"data": 2, "fsdp": 2, "tensor": 2}
    assert made["batch_size"] == 32


def of_size(gib, is_refused=False):
    size = int(gib * 2**30)
    memory = ProgramMemory(2**30, size - 2**30, size)
    return Compiled(memory, None, 0, None if is_refused else (), 1.0, 1.0, "")


def test_the_first_change_that_fits_is_reported(config, capsys, monkeypatch):
    seen = []

    def compiler(prepared):
        seen.append(prepared.config)
        blocks = prepared.config.model.image.blocks, prepared.config.model.text.blocks
        recomputed = [one.remat for one in blocks].count("full")
        return of_size(18 - recomputed - (2 if prepared.config.micro_batch else 0), is_refused=not recomputed)

    monkeypatch.setattr(planned_run, "compile_for_slice", compiler)
    planned(config, "--json")
    made = json.loads(capsys.readouterr().out)
    both = "--model.text.blocks.remat full --model.image.blocks.remat full"
    assert made["fits"] is False
    assert made["change"] == f"{both} --micro-batch 32"
    assert made["tried"][-1]["fits"] is True
    assert [one["fits"] for one in made["tried"][:-1]] == [False] * (len(made["tried"]) - 1)
    assert len(seen) == 1 + len(made["tried"])
    planned(config)
    shown = capsys.readouterr().out
    assert "at the peak         18.00 of 15.75: does not fit" in shown
    assert f"with {both} --micro-batch 32: 14.00 GiB at the peak, fits, +" in shown


def test_a_step_that_nothing_makes_fit_says_so(config, capsys, monkeypatch):
    monkeypatch.setattr(planned_run, "compile_for_slice", lambda prepared: of_size(99, is_refused=True))
    planned(config)
    shown = capsys.readouterr().out
    assert "nothing that was tried fits; use more chips, or chips with more memory" in shown
    planned(config, "--as-is")
    assert "--micro-batch" not in capsys.readouterr().out


def test_the_table_needs_no_compiler(capsys, monkeypatch):
    monkeypatch.setattr(slices, "set_environment", lambda: None)
    plan.main(["--table"])
    shown = capsys.readouterr().out
    assert "bigg14-336px-t32-datacomp1b" in shown
    assert "39,056 dollars are 1.645 per hour" in shown
    plan.main(["--table", "--json"])
    made = json.loads(capsys.readouterr().out)
    assert len(made["rows"]) == 14
    assert made["rows"][5]["published_dollars"] == 12_247


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--topology", "v5e"], "--topology is 'v5e'; give chip and grid, such as v3:16x16 or v4:8x8x4"),
        (["--topology", "v5e:0x4"], "--topology v5e:0x4: a grid has at least one chip along each axis"),
        (["--topology", "v1:4x4"], "the chip v1 is not known; choose one of v3, v4, v5e, v5p, v6e"),
        (["--topology", "v5e:2x4", "--utilization", "1.5"], "--utilization is 1.5; give a positive number up to 1"),
        (["--topology", "v5e:2x4", "--records", "0"], "--records is 0; give a positive number"),
        (["--topology", "v5e:2x4", "--mesh", "8x1"], "--mesh is '8x1'; give the sizes of data, fsdp and tensor"),
        ([], "give a config file and --topology, such as --topology v3:16x16, or --table alone"),
        (["--table"], "--table is about the published runs; leave out config"),
        (["--topology", "v5e:2x4", "--topologie", "x"], "topologie"),
    ],
)
def test_a_mistake_is_one_message(config, flags, message):
    with pytest.raises(ConfigError) as caught:
        plan.main([str(config), *flags])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mesh", "1x2x2"], "is not 8 devices"),
        (["--batch-size", "60"], "batch_size 60 cannot be split evenly over 8 devices"),
        (["--micro-batch", "12"], "micro_batch 12 cannot be split evenly over 8 devices"),
    ],
)
def test_a_mesh_that_does_not_divide_is_one_message(config, flags, message):
    with pytest.raises(ShardingError) as caught:
        planned(config, *flags)
    assert message in str(caught.value)


def test_without_libtpu_the_message_says_what_to_install(config, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(slices.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the extra plan, which is not installed; run pip install libtpu"):
        planned(config)
    with pytest.raises(ConfigError, match="pip install libtpu"):
        open_slice("v5e:2x4")


def test_a_slice_that_libtpu_does_not_have_is_one_message(monkeypatch):
    from jax.experimental import topologies

    def refuse(**options):
        assert options["chips_per_host_bounds"] == (2, 2, 1)
        raise RuntimeError("INVALID_ARGUMENT: not divisible\nmore")

    monkeypatch.setattr(slices, "check_compiler", lambda: None)
    monkeypatch.setattr(topologies, "get_topology_desc", refuse)
    with pytest.raises(ConfigError, match=r"--topology v5e:3x3: libtpu has no such slice \(INVALID_ARGUMENT: not div"):
        open_slice("v5e:3x3")


def test_a_slice_knows_its_chips_and_the_devices_of_each():
    assert parse_topology("v4:8x8x4") == (CHIPS["v4"], (8, 8, 4))
    target = Slice("v3:2x2", CHIPS["v3"], (2, 2), tuple(jax.devices()[:8]))
    assert (target.chips, target.devices_per_chip) == (4, 2)
