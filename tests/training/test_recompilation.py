"""A compilation in the training loop after its first steps ends the run, and names what was compiled."""

import threading

import jax
import jax.numpy as jnp
import pytest
from support import tiny_runs

from clipa_eqx.durations import Duration
from clipa_eqx.errors import RecompilationError
from clipa_eqx.training.metrics import read_metrics
from clipa_eqx.training.recompilation import WARM_UP, CompileWatch

pytestmark = pytest.mark.usefixtures("quick_compile")

STEPS, LOG_EVERY, LATE = 14, 4, 13


def compiling_at(step):
    """A compiler of steps that compile something new when they do a step, counted from 1."""

    def compiler(*arguments):
        made, done = tiny_runs.compile_once(*arguments), []

        def run(state, batch):
            done.append(1)
            if len(done) == step:

                def newly_compiled(x):
                    return x + 1

                jax.jit(newly_compiled)(jnp.zeros(()))
            return made(state, batch)

        return run

    return compiler


@pytest.fixture(scope="module")
def config():
    return tiny_runs.run_config(duration=Duration(steps=STEPS), log_every_steps=LOG_EVERY)


def test_a_late_compilation_ends_the_run_and_is_named(config, tmp_path):
    with pytest.raises(RecompilationError, match=rf"step {LATE} compiled .*newly_compiled.* again or late") as raised:
        tiny_runs.train_on_one_device(config, tmp_path / "run", compiler=compiling_at(LATE))
    assert "--allow-recompilation" in str(raised.value)
    # The same command, with the flag, resumes.
    result = tiny_runs.train_on_one_device(config, tmp_path / "run", allow_recompilation=True)
    assert result.steps == STEPS


def test_a_longer_period_of_the_log_may_compile(tmp_path):
    config = tiny_runs.run_config(duration=Duration(steps=STEPS), log_every_steps=LATE)
    assert tiny_runs.train_on_one_device(config, tmp_path / "run", compiler=compiling_at(LATE)).steps == STEPS


def test_with_the_flag_it_is_a_warning(config, tmp_path, caplog):
    compiler = compiling_at(LATE)
    result = tiny_runs.train_on_one_device(config, tmp_path / "run", compiler=compiler, allow_recompilation=True)
    assert result.steps == STEPS
    (message,) = [one.getMessage() for one in caplog.records if "newly_compiled" in one.getMessage()]
    assert message.startswith(f"step {LATE} compiled")


@pytest.mark.parametrize("step", [1, WARM_UP + 1])
def test_the_first_steps_may_compile(config, tmp_path, step):
    result = tiny_runs.train_on_one_device(config, tmp_path / "run", compiler=compiling_at(step))
    assert result.steps == STEPS
    assert [line["step"] for line in read_metrics(tmp_path / "run/metrics.jsonl")] == [1, 2, 4, 8, 12, 14]


def compile_something():
    jax.jit(lambda x: x * 3)(jnp.ones(()))


def test_the_first_use_of_a_name_may_compile_and_the_second_may_not():
    jnp.ones(())
    with CompileWatch(warm_up=0) as compiles:
        with compiles.first_use("scores"):
            compile_something()
        compiles.check(1)
        with compiles.first_use("scores", "checkpoint"):
            compile_something()
        compiles.check(2)
        with compiles.first_use("scores"):
            compile_something()
        with pytest.raises(RecompilationError, match="step 3 compiled"):
            compiles.check(3)
        compiles.check(4)


def test_a_first_use_hides_nothing_that_was_compiled_before_it():
    jnp.ones(())
    with CompileWatch(warm_up=0) as compiles:
        compile_something()
        with compiles.first_use("scores"):
            pass
        with pytest.raises(RecompilationError, match="step 1 compiled"):
            compiles.check(1)


def test_other_threads_and_other_times_do_not_count():
    jnp.ones(())
    with CompileWatch(warm_up=0) as compiles:
        thread = threading.Thread(target=compile_something)
        thread.start()
        thread.join()
        compiles.check(1)
    compile_something()
    compiles.check(2)
