"""Recorded plans of the recipes: the tables and docstrings are those of the record, and the goals hold."""

import pytest
from support.paths import ROOT

from clipa_eqx.device_memory import GIB
from scripts.plan_page import PAGES, SLICES, filled, read_record, with_plan
from scripts.recipes_page import chain_of, published_rows, recipe_names

RECORD = read_record()


def fits(made):
    return made["fits"] and made["bytes"]["peak"] <= made["bytes"]["available"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_tables_are_those_of_the_record(path):
    text = path.read_text(encoding="utf-8")
    assert filled(text) == text, "run python scripts/plan_page.py"
    assert "<!-- plan-" in text


@pytest.mark.parametrize("name", recipe_names())
def test_a_docstring_says_what_plan_found(name):
    text = (ROOT / "configs" / f"{name}.py").read_text(encoding="utf-8")
    assert with_plan(name, text) == text, "run python scripts/plan_page.py"
    assert "\nPlan:      per device " in text


def test_a_changed_number_would_be_seen():
    name, made = next(iter(RECORD.items()))
    text = (ROOT / "configs" / f"{name}.py").read_text(encoding="utf-8")
    size = f"{next(iter(made.values()))['bytes']['total'] / GIB:.2f} GiB"
    assert size in text
    assert with_plan(name, text.replace(size, "9.99 GiB")) == text


def test_every_published_recipe_fits_a_slice():
    published = {stage for row in published_rows() for stage in chain_of(row).stages}
    assert len(published) == 10
    assert [
        name for name in sorted(published) if not any(fits(RECORD[name].get(one, {"fits": False})) for one in SLICES)
    ] == []


def test_the_goals_for_memory_hold():
    def total(name, topology):
        return RECORD[name][topology]["bytes"]["total"] / GIB

    assert total("h14_84px_t8", "v3:16x16") <= 4
    assert total("b16_64px_t32", "v5e:16x16") <= 6
