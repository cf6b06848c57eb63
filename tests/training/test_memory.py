"""A step that cannot fit is refused before it runs, with flags that help."""

import dataclasses
import functools
import shlex
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from support import tiny_runs
from support.tiny_models import tiny_clip_config

from clipa_eqx.config_files import apply_overrides
from clipa_eqx.device_memory import ProgramMemory
from clipa_eqx.errors import ConfigError
from clipa_eqx.precision import Precision
from clipa_eqx.sharding import MeshConfig
from clipa_eqx.training.compiled_step import compile_step
from clipa_eqx.training.loop import train
from clipa_eqx.training.memory import check_step_fits, less_memory, smaller_batch

pytestmark = pytest.mark.usefixtures("quick_compile")

GIB = 2**30


def flags(lines):
    return [line.split(":")[0] for line in lines if line.startswith("--")]


def test_all_flags_that_help_can_be_pasted_and_change_the_config():
    config = tiny_runs.run_config(batch_size=64)
    lines = less_memory(config, devices=8)
    assert flags(lines) == [
        "--micro-batch 32",
        "--batch-size 32",
        "--model.image.blocks.remat full --model.text.blocks.remat full",
        "--precision.compute bfloat16",
        "--mesh.fsdp 8",
        "--optim.mu-dtype bfloat16",
    ]
    for line in flags(lines):
        assert apply_overrides(config, shlex.split(line)) != config
    assert lines[-1] == "more devices, or devices with more memory"


def test_what_is_set_already_is_not_advised():
    blocks = {"remat": "full"}
    config = tiny_runs.run_config(
        model=tiny_clip_config(blocks=blocks),
        precision=Precision(compute="bfloat16"),
        mesh=MeshConfig(fsdp=8),
        optim=dataclasses.replace(tiny_runs.run_config().optim, mu_dtype="bfloat16"),
        batch_size=8,
    )
    assert flags(less_memory(config, devices=8)) == []


def test_a_fixed_data_axis_changes_with_fsdp():
    config = tiny_runs.run_config(mesh=MeshConfig(data=4, fsdp=2))
    (line,) = [line for line in flags(less_memory(config, devices=8)) if "mesh" in line]
    assert line == "--mesh.fsdp 8 --mesh.data 1"
    assert apply_overrides(config, shlex.split(line)).mesh == MeshConfig(data=1, fsdp=8)


def test_the_larger_part_comes_first():
    config = tiny_runs.run_config()
    state = less_memory(config, devices=8, needed=ProgramMemory(3 * GIB, GIB))
    temporary = less_memory(config, devices=8, needed=ProgramMemory(GIB, 3 * GIB))
    assert (flags(state)[0], flags(temporary)[0]) == ("--mesh.fsdp 8", "--micro-batch 8")


@pytest.mark.parametrize(
    ("batch", "devices", "needed", "available", "expected"),
    [
        (64, 8, None, None, 32),
        (64, 8, (1, 16), 5, 16),  # a quarter of 16 is what 5 leaves next to 1
        (64, 8, (1, 17), 5, 8),
        (64, 8, (1, 1000), 5, 8),  # nothing fits; the smallest that divides evenly
        (64, 8, (6, 16), 5, 32),  # the state alone is too large: the batch does not help much
        (8, 8, (1, 16), 5, None),
        (2, 1, None, None, None),
    ],
)
def test_the_batch_is_halved_until_it_should_fit(batch, devices, needed, available, expected):
    memory = None if needed is None else ProgramMemory(*needed)
    assert smaller_batch(batch, devices=devices, needed=memory, available=available) == expected


def test_a_run_that_cannot_fit_ends_before_its_first_step_and_leaves_no_folder(tmp_path):
    compiler = functools.partial(compile_step, memory_limit=2**20)
    with pytest.raises(ConfigError) as caught:
        train(tiny_runs.run_config(), tmp_path / "run", devices=jax.devices()[:1], compiler=compiler)
    message = str(caught.value)
    assert message.startswith("a step of 16 pairs needs 0.0")
    assert "a device has 0.00 GiB. What helps:\n  --micro-batch " in message
    assert not (tmp_path / "run").exists()


class XlaRuntimeError(RuntimeError):
    """Named like the error of jaxlib."""


def test_memory_that_runs_out_in_a_step_is_one_message(tmp_path):
    def compiler(*args):
        del args

        def step(state, batch):
            raise XlaRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.\nmore")

        return step

    with pytest.raises(ConfigError) as caught:
        tiny_runs.train_on_one_device(tiny_runs.run_config(), tmp_path / "run", compiler=compiler)
    message = str(caught.value)
    assert message.startswith("memory ran out while training (RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.).")
    assert "--batch-size 8" in message


def test_a_tpu_takes_what_its_compiler_takes(no_type_checks):
    """The sum of arguments and temporaries counts gaps, which the compiler does not count as memory in use."""
    device = SimpleNamespace(platform="tpu", process_index=0)
    mesh = SimpleNamespace(devices=np.array([device], dtype=object), size=1)
    needed = ProgramMemory(arguments=GIB, temporary=16 * GIB, peak=15 * GIB)
    config = tiny_runs.run_config()
    check_step_fits(needed, config, mesh, limit=16 * GIB)
    with pytest.raises(ConfigError, match=r"needs 15\.00 GiB per device"):
        check_step_fits(needed, config, mesh, limit=14 * GIB)
    device.platform = "gpu"
    with pytest.raises(ConfigError, match=r"needs 17\.00 GiB per device"):
        check_step_fits(needed, config, mesh, limit=16 * GIB)
