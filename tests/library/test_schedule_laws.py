"""Laws of the learning-rate multipliers for any length of run, next to the recorded values of the reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipa_eqx.durations import Duration, RunLength
from clipa_eqx.schedules import Cosine, Polynomial, Rsqrt, Stair, make_multiplier

DECAYS = {
    "cosine": Cosine,
    "linear": Polynomial,
    "square": lambda **ramps: Polynomial(power=2.0, **ramps),
    "rsqrt": lambda **ramps: Rsqrt(timescale_steps=50, **ramps),
    "stair": lambda **ramps: Stair(steps=(40, 70), factors=(0.5, 0.25), **ramps),
}


def multipliers(schedule, *, total=100, batch=None):
    """The multiplier of each update, 0 to ``total``."""
    multiplier = make_multiplier(schedule, RunLength(total_steps=total, batch_size=batch))
    return np.asarray(jax.vmap(multiplier)(jnp.arange(total + 1)))


@pytest.mark.parametrize("decay", DECAYS)
def test_warm_up_rises_evenly_from_zero_and_ends_where_the_decay_begins(decay):
    values = multipliers(DECAYS[decay](warmup=Duration(steps=20)))
    np.testing.assert_allclose(values[:21], np.arange(21) / 20, rtol=1e-6)
    assert values[21] == pytest.approx(1.0, abs=0.03)  # no jump


@pytest.mark.parametrize("decay", DECAYS)
def test_after_warm_up_the_multiplier_never_rises(decay):
    values = multipliers(DECAYS[decay](warmup=Duration(steps=20), cooldown=Duration(steps=30)))
    assert (np.diff(values[20:]) <= 1e-7).all()
    assert values[100] == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("decay", DECAYS)
def test_cool_down_changes_nothing_before_it_begins(decay):
    with_ramp = multipliers(DECAYS[decay](cooldown=Duration(steps=25)))
    without = multipliers(DECAYS[decay]())
    np.testing.assert_array_equal(with_ramp[:76], without[:76])
    np.testing.assert_allclose(with_ramp[75:], without[75:] * np.arange(25, -1, -1) / 25, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("decay", DECAYS)
def test_a_larger_batch_scales_the_multiplier_if_a_reference_is_named(decay):
    scaled = multipliers(DECAYS[decay](reference_batch_size=256), batch=1024)
    np.testing.assert_allclose(scaled, 4 * multipliers(DECAYS[decay]()), rtol=1e-6, atol=1e-6)
    assert multipliers(DECAYS[decay](), batch=1024)[0] == 1


@pytest.mark.parametrize("scale", [1, 8])
def test_the_smallest_ratio_is_reached_at_the_end_whatever_the_batch(scale):
    """``min_ratio`` and ``end_ratio`` are shares of the unscaled peak, as in the reference."""
    for schedule in (Cosine(min_ratio=0.1, reference_batch_size=8), Polynomial(end_ratio=0.1, reference_batch_size=8)):
        values = multipliers(schedule, batch=8 * scale)
        assert values[0] == pytest.approx(scale)
        assert values[100] == pytest.approx(0.1, rel=1e-5)


def test_a_stair_changes_at_its_steps_and_not_one_before():
    schedule = Stair(steps=(3, 5, 9), factors=(0.5, 2.0, 0.1))
    expected = [1.0] * 3 + [0.5] * 2 + [2.0] * 4 + [0.1] * 2
    np.testing.assert_allclose(multipliers(schedule, total=10), expected, rtol=1e-6)


def test_rsqrt_halves_after_three_timescales():
    values = multipliers(Rsqrt(timescale_steps=20, warmup=Duration(steps=10)))
    assert values[10 + 3 * 20] == pytest.approx(0.5)


@pytest.mark.parametrize("warmup", [0, 20, 98])
def test_a_cosine_is_half_way_down_in_the_middle(warmup):
    values = multipliers(Cosine(warmup=Duration(steps=warmup)))
    assert values[(100 + warmup) // 2] == pytest.approx(0.5, abs=1e-5)


def test_a_multiplier_can_be_traced_and_gives_float32():
    multiplier = make_multiplier(Cosine(warmup=Duration(fraction=0.1)), RunLength(total_steps=50))
    traced = jax.eval_shape(multiplier, jax.ShapeDtypeStruct((), np.int32))
    assert (traced.shape, traced.dtype) == ((), np.float32)


@pytest.mark.parametrize("unit", [{"fraction": 0.2}, {"samples": 160}, {"epochs": 0.5}, {"steps": 20}])
def test_ramps_in_any_unit_give_the_same_multipliers(unit):
    run = RunLength(total_steps=100, batch_size=8, data_size=320)
    expected = make_multiplier(Cosine(warmup=Duration(steps=20)), run)
    found = make_multiplier(Cosine(warmup=Duration(**unit)), run)
    for step in (1, 19, 20, 21):
        assert float(found(step)) == float(expected(step))
