"""Memory of devices: what the machine or its control groups allow, and one message where a program does not fit."""

import jax
import jax.numpy as jnp
import pytest

from clipa_eqx.cli import USAGE, run
from clipa_eqx.device_memory import (
    ProgramMemory,
    check_fits,
    device_limit,
    machine_memory,
    memory_errors,
    memory_of,
)
from clipa_eqx.errors import ConfigError, is_out_of_memory

GIB = 2**30


class FakeDevice:
    platform = "gpu"

    def __init__(self, stats):
        self._stats = stats

    def memory_stats(self):
        return self._stats


class XlaRuntimeError(RuntimeError):
    """Named like the error of jaxlib."""


def machine(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return machine_memory(root)


MEMINFO = {"proc/meminfo": "MemTotal:       1000 kB\nMemFree:         400 kB\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        (MEMINFO, 1000 * 1024),
        (MEMINFO | {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "5000\n"}, 5000),
        (MEMINFO | {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, 1000 * 1024),
        (MEMINFO | {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/memory.max": "7000\n"}, 7000),
        (
            MEMINFO | {"proc/self/cgroup": "4:memory:/x\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "6000\n"},
            6000,
        ),
        (
            MEMINFO
            | {
                "proc/self/cgroup": "4:cpu:/\n3:cpu,memory:/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2**63}\n",
            },
            1000 * 1024,
        ),
    ],
)
def test_the_smallest_limit_counts(files, expected, tmp_path):
    assert machine(tmp_path, files) == expected


def test_cpu_devices_share_the_memory_of_this_machine():
    (limit,) = {device_limit(device) for device in jax.devices("cpu")}
    assert limit == machine_memory() // len(jax.devices("cpu"))
    assert limit > 2**20


@pytest.mark.parametrize(("stats", "expected"), [({"bytes_limit": 8}, 8), ({}, None), (None, None)])
def test_an_accelerator_reports_its_own_limit(stats, expected):
    assert device_limit(FakeDevice(stats)) == expected


def test_the_memory_of_a_program_counts_donated_arguments_once():
    x = jax.ShapeDtypeStruct((1024, 1024), jnp.float32)
    kept = memory_of(jax.jit(lambda x: x + 1).lower(x).compile())
    donated = memory_of(jax.jit(lambda x: x + 1, donate_argnums=0).lower(x).compile())
    assert kept.arguments == 8 * 2**20
    assert donated.arguments == 4 * 2**20


@pytest.mark.parametrize("available", [3 * GIB, 4 * GIB, None])
def test_what_fits_or_cannot_be_known_is_accepted(available):
    check_fits(ProgramMemory(GIB, 2 * GIB), available, what="it", advice=["x"])


def test_what_does_not_fit_is_refused_with_both_numbers_and_advice():
    with pytest.raises(ConfigError) as caught:
        check_fits(
            ProgramMemory(GIB, 2 * GIB), 3 * GIB - 1, what="a step of 8 pairs", advice=["--batch-size 4", "more"]
        )
    assert str(caught.value) == (
        "a step of 8 pairs needs 3.00 GiB per device (1.00 GiB of arguments, 2.00 GiB temporary), a device has "
        "3.00 GiB. What helps:\n  --batch-size 4\n  more"
    )


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (XlaRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes."), True),
        (XlaRuntimeError("INTERNAL: other"), False),
        (RuntimeError("RESOURCE_EXHAUSTED: of something else"), False),
        (MemoryError(), True),
        (ValueError("no"), False),
    ],
)
def test_exhausted_memory_is_recognized_and_nothing_else(error, expected):
    assert is_out_of_memory(error) == expected
    with pytest.raises(ConfigError if expected else type(error)) as caught, memory_errors("scoring", advice=["less"]):
        raise error
    if expected:
        assert str(caught.value).startswith("memory ran out while scoring (")
        assert str(caught.value).endswith("What helps:\n  less")


def test_exhausted_memory_that_no_program_explains_is_one_message_too(capsys, logging_as_before):
    def main():
        raise XlaRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.\nand much more")

    assert run(main) == USAGE
    assert capsys.readouterr().err == (
        "error: memory ran out (RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.); use smaller batches, or a "
        "machine with more memory\n"
    )


def test_memory_that_really_runs_out_is_recognized():
    limit = machine_memory()
    with (
        pytest.raises(ConfigError, match="memory ran out while allocating"),
        memory_errors("allocating", advice=["no"]),
    ):
        jnp.zeros((2**20, limit // 2**10), jnp.float32).block_until_ready()
