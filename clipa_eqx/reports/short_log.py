"""A long metric log in little memory: neighbors are merged evenly, and times and rates stay those of all lines."""

from collections.abc import Sequence

from clipa_eqx.reports.scores import Line, score_name

_RATES = ("input_bound_percent", "images_per_second", "images_per_second_per_device")
"""Numbers of a line that are means over the time of its steps."""

_PER_STEP = ("seconds_per_step", "host_seconds_per_step")
"""Numbers of a line that are means over its steps."""


class ShortLog:
    """The lines of a log. Beyond ``most``, neighbors are merged, everywhere as many.

    The first line, the last and those with scores are always there. A merged line has the numbers of the later one,
    with the seconds per step and the rates of both, so that sums over the steps of the run stay exact.
    """

    def __init__(self, *, most: int) -> None:
        """Begin without lines. Those with scores count in addition to ``most``."""
        self._most = self._limit = most
        self._kept: list[Line] = []
        self._newest: Line | None = None
        self._at_once = 1
        self._in_last = 0

    def add(self, line: Line) -> None:
        """Take the next line; entries that are no numbers, such as norms per block, are left out."""
        if self._newest is not None:
            self._keep(self._newest)
        self._newest = {name: value for name, value in line.items() if isinstance(value, int | float)}

    @property
    def lines(self) -> Sequence[Line]:
        """The lines by step."""
        return self._kept if self._newest is None else [*self._kept, self._newest]

    def _keep(self, line: Line) -> None:
        if self._in_last < self._at_once and _takes_more(self._kept):
            self._kept[-1] = _merged(self._kept[-1], line, since=int(self._kept[-2]["step"]))
            self._in_last += 1
        else:
            self._kept.append(line)
            self._in_last = 1
        if len(self._kept) > self._limit:
            self._kept = _halved(self._kept)
            self._at_once, self._in_last = 2 * self._at_once, 2 * self._at_once
            self._limit = self._most + sum(map(_has_score, self._kept))


def _halved(lines: Sequence[Line]) -> list[Line]:
    """The first line, and the others merged in pairs; one with scores is merged only with that before it."""
    halved: list[Line] = [lines[0]]
    is_single = False
    for line in lines[1:]:
        if is_single and _takes_more(halved):
            halved[-1] = _merged(halved[-1], line, since=int(halved[-2]["step"]))
            is_single = False
        else:
            halved.append(line)
            is_single = True
    return halved


def _takes_more(lines: Sequence[Line]) -> bool:
    """Whether the last line may be merged with the next: it is not the first, and it has no scores."""
    return len(lines) > 1 and not _has_score(lines[-1])


def _merged(first: Line, second: Line, *, since: int) -> Line:
    """Two neighbors as one line.

    Args:
        since: the step of the line before them.
    """
    steps = [int(first["step"]) - since, int(second["step"]) - int(first["step"])]
    times = [
        float(line.get("seconds_per_step", 0.0)) * count for line, count in zip((first, second), steps, strict=True)
    ]
    merged = dict(second)
    for name in _PER_STEP:
        if name in second and sum(steps) > 0:
            first_value = float(first.get(name, 0.0))
            merged[name] = (first_value * steps[0] + float(second[name]) * steps[1]) / sum(steps)
    for name in _RATES:
        if name in first and name in second and sum(times) > 0:
            merged[name] = (first[name] * times[0] + second[name] * times[1]) / sum(times)
    return merged


def _has_score(line: Line) -> bool:
    return any(score_name(name) is not None for name in line)
