"""Huge pages for a program that trains: when it starts again, and that it then has them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clipa_eqx.huge_pages import TUNABLES, variables_with_huge_pages

STATE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MADVISE = "always [madvise] never\n"


def test_a_program_that_trains_on_a_cpu_asks_for_huge_pages():
    wanted = {"A": "1", TUNABLES: "glibc.malloc.hugetlb=1", "CLIPA_EQX_HUGE_PAGES": "1"}
    assert variables_with_huge_pages({"A": "1"}, libc="glibc", state=MADVISE) == wanted
    variables = {"A": "1", "JAX_PLATFORMS": "cpu"}
    assert variables_with_huge_pages(variables, libc="glibc", state=MADVISE) == {**wanted, "JAX_PLATFORMS": "cpu"}


@pytest.mark.parametrize(
    ("variables", "libc", "state"),
    [
        ({TUNABLES: ""}, "glibc", MADVISE),
        ({"CLIPA_EQX_HUGE_PAGES": "1"}, "glibc", MADVISE),
        ({"JAX_PLATFORMS": "cuda,cpu"}, "glibc", MADVISE),
        ({}, "", MADVISE),
        ({}, "glibc", "[always] madvise never\n"),
        ({}, "glibc", "always madvise [never]\n"),
        ({}, "glibc", ""),
    ],
)
def test_nothing_changes_where_it_would_have_no_effect_or_is_not_wanted(variables, libc, state):
    assert variables_with_huge_pages(variables, libc=libc, state=state) is None


def test_the_process_starts_again_once_with_the_same_arguments(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(
        "import os, sys\n"
        "print(os.getpid(), sys.argv[1:], os.environ.get('GLIBC_TUNABLES'), flush=True)\n"
        "from clipa_eqx.huge_pages import restart_with_huge_pages\n"
        "restart_with_huge_pages()\n"
    )
    variables = {
        name: value
        for name, value in os.environ.items()
        if name not in (TUNABLES, "JAX_PLATFORMS", "CLIPA_EQX_HUGE_PAGES")
    }
    ran = subprocess.run(
        [sys.executable, script, "a b", "--c"], capture_output=True, text=True, check=True, env=variables
    )
    lines = ran.stdout.splitlines()
    assert len({line.split()[0] for line in lines}) == 1
    assert all("['a b', '--c']" in line for line in lines)
    state = STATE.read_text() if STATE.exists() else ""
    if "[madvise]" in state:
        assert [line.rsplit(" ", 1)[1] for line in lines] == ["None", "glibc.malloc.hugetlb=1"]
    else:
        assert len(lines) == 1
