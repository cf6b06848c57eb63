"""A long log in few lines: even gaps, exact sums, and nothing that a page names is lost."""

import itertools

import pytest
from support.run_folders import metric_line

from clipa_eqx.reports.run_progress import input_bound_share, timed
from clipa_eqx.reports.short_log import ShortLog


def long_lines(*, last, scored_every=0):
    """A log with uneven speed, and a line every 5 steps."""
    return [
        metric_line(
            step,
            time=step,
            seconds_per_step=1.0 + (step * 7) % 11,
            images_per_second=8 / (1.0 + (step * 7) % 11),
            input_bound_percent=float(step % 100),
            host_seconds_per_step=0.01 * (1 + step % 7),
            **({"zero_shot/a/top1": step / last} if scored_every and step % scored_every == 0 else {}),
        )
        for step in (1, 2, *range(5, last + 1, 5))
    ]


def counted(lines):
    """Each line with the number of its steps."""
    steps = [int(line["step"]) for line in lines]
    return zip(lines, [steps[0], *(after - before for before, after in itertools.pairwise(steps))], strict=True)


def shortened(lines, *, most):
    log = ShortLog(most=most)
    for line in lines:
        log.add(line)
    return log.lines


@pytest.mark.parametrize("count", [30, 500, 3_333])
def test_sums_over_time_are_those_of_all_lines(count):
    lines = long_lines(last=5 * count)
    found = shortened(lines, most=40)
    assert len(found) <= 41
    assert (found[0], found[-1]) == (lines[0], lines[-1])
    assert sum(seconds for _, seconds in timed(found)) == pytest.approx(sum(seconds for _, seconds in timed(lines)))
    assert input_bound_share(found) == pytest.approx(input_bound_share(lines))
    images = [sum(line["images_per_second"] * seconds for line, seconds in timed(one)) for one in (found, lines)]
    assert images[0] == pytest.approx(images[1])
    host = [sum(line["host_seconds_per_step"] * steps for line, steps in counted(one)) for one in (found, lines)]
    assert host[0] == pytest.approx(host[1])


def test_early_lines_are_kept_as_densely_as_late_ones():
    found = shortened(long_lines(last=20_000), most=40)
    gaps = [int(after["step"]) - int(before["step"]) for before, after in itertools.pairwise(found[:-1])]
    assert len(found) >= 20
    assert max(gaps) <= 2 * min(gaps[1:-1])


def test_lines_with_scores_are_kept_in_addition():
    lines = long_lines(last=10_000, scored_every=500)
    scored = [line for line in lines if "zero_shot/a/top1" in line]
    found = shortened(lines, most=40)
    assert [line["zero_shot/a/top1"] for line in found if "zero_shot/a/top1" in line] == [
        line["zero_shot/a/top1"] for line in scored
    ]
    assert len(found) <= 41 + len(scored)
    assert sum(seconds for _, seconds in timed(found)) == pytest.approx(sum(seconds for _, seconds in timed(lines)))


def test_a_log_in_which_every_line_has_a_score_is_kept():
    lines = long_lines(last=1_000, scored_every=1)
    assert [line["step"] for line in shortened(lines, most=40)] == [line["step"] for line in lines]


def test_entries_that_are_no_numbers_are_left_out():
    assert shortened([{"step": 1, "norm/blocks": [1.0], "loss": 2.0}], most=40) == [{"step": 1, "loss": 2.0}]
    assert shortened([], most=40) == []
