"""The examples in the docstrings of the library give the results that they show."""

import doctest
import importlib
import re

import pytest
from support.paths import ROOT

MODULES = sorted(
    str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__")
    for path in (ROOT / "clipa_eqx").rglob("*.py")
    if re.search(r"^\s*>>> ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
)


@pytest.mark.parametrize("module", MODULES)
def test_examples_give_what_they_show(module):
    done = doctest.testmod(importlib.import_module(module))
    assert done.failed == 0
    assert done.attempted
