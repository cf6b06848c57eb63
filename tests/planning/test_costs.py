"""Time and costs: arithmetic of bounds, hours and dollars, and the published rows next to the model of cost."""

import json

import pytest
from support.paths import ROOT

from clipa_eqx.config_files import load_config
from clipa_eqx.device_memory import ProgramMemory
from clipa_eqx.durations import RunLength
from clipa_eqx.flops import recomputed_flops, step_flops
from clipa_eqx.planning.chips import CHIPS
from clipa_eqx.planning.costs import run_cost, step_bounds, step_operations
from clipa_eqx.planning.program_text import Array, Collective
from clipa_eqx.planning.published import (
    DOLLARS_PER_A100_HOUR,
    PUBLISHED,
    STAGES,
    discrepancies,
)
from clipa_eqx.recipes import stage_model

H14 = load_config(ROOT / "configs" / "h14_84px_t8.py")
ROWS = json.loads((ROOT / "tests" / "weights" / "released_models.json").read_text(encoding="utf-8"))["rows"]


def test_hours_and_dollars_follow_from_operations_peak_and_price():
    chip = CHIPS["v5e"]
    cost = run_cost(H14, chip, chips=256, total_steps=1000, utilization=0.5, dollars_per_chip_hour=2.0)
    seconds = step_flops(H14.model, batch_size=65_536).total / (256 * 197e12 * 0.5)
    assert cost.step_seconds == pytest.approx(seconds)
    assert cost.samples_per_second == pytest.approx(65_536 / seconds)
    assert cost.hours == pytest.approx(1000 * seconds / 3600)
    assert cost.dollars == pytest.approx(cost.hours * 256 * 2.0)
    listed = run_cost(H14, chip, chips=256, total_steps=1000, utilization=0.5)
    assert listed.dollars == pytest.approx(cost.hours * 256 * chip.dollars)


def test_a_step_is_never_faster_than_its_bound():
    cost = run_cost(H14, CHIPS["v5e"], chips=256, total_steps=1, utilization=1.0, least_seconds=9.0)
    assert cost.step_seconds == 9.0


def test_bounds_divide_what_a_device_does_by_its_part_of_a_chip():
    gather = Collective("all-gather", (Array("f32", (1000,)),), 8, 3)
    found = step_bounds(
        H14,
        CHIPS["v3"],
        chips=256,
        devices=512,
        memory=ProgramMemory(arguments=10**9, temporary=5 * 10**9),
        activations=10**8,
        collectives=[gather],
    )
    assert found.compute == pytest.approx(sum(step_operations(H14)) / (256 * 123e12))
    assert found.memory == pytest.approx(2 * (1.1e9 + 3 * 4000) / 450e9)
    assert found.links == pytest.approx(3 * 3500 / (340e12 / 1024 / 2))
    assert found.least == max(found)
    assert found.limit == "compute"


def test_repeated_operations_are_a_forward_pass_without_the_last_product_of_a_block():
    def repeated(remat, is_cached=False):
        model = stage_model("B/16", image_size=64, length=32, remat=remat)
        return recomputed_flops(model, batch_size=8, is_cached=is_cached)

    useful = step_flops(stage_model("B/16", image_size=64, length=32), batch_size=8)
    assert repeated("none") == 0
    # Blocks are nearly all of a tower, a step is three forward passes, and the last product a third of a block.
    assert repeated("image") == pytest.approx(useful.image * 2 / 9, rel=0.05)
    assert repeated("both") == pytest.approx((useful.image + useful.text) * 2 / 9, rel=0.05)
    assert repeated("none", is_cached=True) == pytest.approx((useful.image + useful.text) / 3, rel=0.01)
    assert repeated("both", is_cached=True) == repeated("both") + repeated("none", is_cached=True)


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_of_the_table_has_the_numbers_of_its_recipe(name):
    config, stage = load_config(ROOT / "configs" / f"{name}.py"), STAGES[name]
    assert stage.batch_size == config.batch_size
    assert stage.steps == RunLength.of(config.duration, batch_size=config.batch_size).total_steps
    assert stage.operations == stage.steps * step_flops(config.model, batch_size=config.batch_size).total


def test_the_table_has_all_rows_of_the_reference_with_their_costs():
    assert [(row.hours, row.dollars) for row in PUBLISHED] == [
        (row.get("a100_hours"), row.get("cost_usd")) for row in ROWS
    ]


def test_the_model_of_cost_gives_most_published_hours_and_dollars():
    near = {
        row.name: row.hours / row.modeled_hours
        for row in PUBLISHED
        if row.hours is not None and not row.name.startswith("l14")
    }
    assert len(near) == 7
    assert [name for name, ratio in near.items() if abs(ratio - 1) > 0.04] == []
    priced = [row for row in PUBLISHED if row.dollars is not None and row.name != "bigg14-336px-t32-datacomp1b"]
    assert len(priced) == 8
    assert [row.name for row in priced if abs(row.dollars / (row.hours * DOLLARS_PER_A100_HOUR) - 1) > 0.002] == []


def test_what_does_not_agree_is_named():
    found = discrepancies()
    assert len(found) == 4
    price, hours = found[1], found[0]
    assert hours.startswith("l14-336px-t32-datacomp1b: 4,520 hours are +14%")
    assert price.startswith("bigg14-336px-t32-datacomp1b: 39,056 dollars are 1.645 per hour")
    assert "24,797 hours" in price
    assert {line.split(":")[0] for line in found[2:]} == {"h14_336px_t32", "l14_336px_t32"}


def test_each_chip_has_a_source_for_its_numbers():
    for name, chip in CHIPS.items():
        assert chip.name == name
        assert chip.source.endswith(f"/tpu/docs/{name}")
        assert chip.links_source
