"""Laws of durations and of periodic work: which steps they give for any sizes, not only for the recorded ones."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipa_eqx.durations import NO_TIME, Duration, RunLength, is_time
from clipa_eqx.errors import ConfigError

SIZES = st.integers(1, 10**6)
STEPS = st.integers(0, 10**6)
EPOCHS = st.floats(0.01, 100)


@settings(deadline=None)
@given(batch=SIZES, steps=st.integers(1, 10**6), total=SIZES)
def test_samples_of_full_batches_are_that_many_steps(batch, steps, total):
    run = RunLength(total_steps=total, batch_size=batch)
    assert Duration(samples=steps * batch).to_steps(run) == steps


@settings(deadline=None)
@given(epochs=EPOCHS, batch=SIZES, data=SIZES, factor=st.integers(1, 64))
def test_epochs_take_as_many_steps_if_data_and_batch_grow_alike(epochs, batch, data, factor):
    small = RunLength.of(Duration(epochs=epochs), batch_size=batch, data_size=data)
    large = RunLength.of(Duration(epochs=epochs), batch_size=batch * factor, data_size=data * factor)
    assert small.total_steps == large.total_steps


@settings(deadline=None)
@given(epochs=EPOCHS, batch=SIZES, data=SIZES)
def test_the_epochs_of_a_run_are_those_asked_for_within_half_a_step(epochs, batch, data):
    run = RunLength.of(Duration(epochs=epochs), batch_size=batch, data_size=data)
    off = abs(run.epochs(run.total_steps) - epochs) * data / batch  # in steps
    # A run has at least one step, so a shorter one is rounded up.
    assert off <= 0.5 * (1 + 1e-9) or (run.total_steps == 1 and run.epochs(1) > epochs)


@settings(deadline=None)
@given(fraction=st.floats(0, 1, exclude_min=True), total=SIZES)
def test_a_fraction_is_at_least_one_step_and_at_most_the_run(fraction, total):
    steps = Duration(fraction=fraction).to_steps(RunLength(total_steps=total))
    assert 1 <= steps <= total
    assert abs(steps - fraction * total) <= 0.5 or steps == 1


@settings(deadline=None)
@given(steps=STEPS, total=SIZES)
def test_steps_depend_on_no_size_and_only_they_can_be_zero(steps, total):
    assert Duration(steps=steps).to_steps(RunLength(total_steps=total)) == steps
    assert NO_TIME.to_steps(RunLength(total_steps=total)) == 0


@pytest.mark.parametrize("unit", [{"samples": 1}, {"epochs": 1e-9}, {"fraction": 1e-9}])
def test_any_other_duration_is_at_least_one_step(unit):
    assert Duration(**unit).to_steps(RunLength(total_steps=10, batch_size=10**6, data_size=10**6)) == 1


def test_a_run_of_no_steps_is_refused():
    with pytest.raises(ConfigError, match="total_steps=0 must be positive"):
        RunLength.of(NO_TIME)


def due(total, every, **options):
    return [step for step in range(1, total + 1) if is_time(step, every_steps=every, total_steps=total, **options)]


@settings(deadline=None)
@given(total=st.integers(1, 300), every=st.integers(1, 100))
def test_work_is_due_first_last_and_about_every_period(total, every):
    steps = due(total, every)
    assert (steps[0], steps[-1]) == (1, total)
    gaps = [b - a for a, b in itertools.pairwise(steps)]
    # The last gap takes in a multiple that was left out because it was close to the end.
    assert max(gaps, default=0) <= 1.25 * every
    assert all(gap == every for gap in gaps[1:-1])


@settings(deadline=None)
@given(total=st.integers(1, 300), every=st.integers(1, 100), drop=st.sampled_from([0.0, 0.25, 0.5]))
def test_first_and_last_only_add_their_step(total, every, drop):
    bare = due(total, every, first=False, last=False, drop_close_to_last=drop)
    assert set(due(total, every, drop_close_to_last=drop)) == {*bare, 1, total}
    assert bare == [s for s in range(every, total + 1, every) if total - s >= drop * every]
