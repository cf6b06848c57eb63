"""Series of runs that live until a fault, again and again, until so many faults happened."""

import random
from collections import Counter
from collections.abc import Callable, Sequence

from support.killed_runs import WORKING, Fault, Run

LAST = ("final model", "end", "page")
FULL = ("claim", "restore", "state", "step", "reporting", "evaluation", "saving", "save", "final model")
"""Phases in which a disk may become full. Before, nothing is written except the lock."""


def interrupt(
    new: Callable[[int], Run],
    whole: Run,
    phases: Sequence[str],
    *,
    total: int,
    steps: int,
    seed: int,
    kinds: Sequence[str] = ("SIGKILL",),
    damage: float = 0.0,
) -> Counter[Fault]:
    """Let runs live until a fault, again and again, until so many faults happened; each is then the uninterrupted run.

    Args:
        new: makes the run of a number.
        phases: phases of the faults; the rarest so far comes next.
        kinds: kinds of the faults.
        damage: probability that a file of a checkpoint is damaged after a life.
    """
    draw, done, number = random.Random(seed), Counter[Fault](), 0
    while done.total() < total:
        run, is_alive = new(number), True
        number += 1
        while is_alive and (done + run.faults).total() < total:
            fault = _next_fault(draw, done + run.faults, run, phases, kinds)
            is_alive = run.live(fault)
            if draw.random() < damage:
                run.damage()
        run.finish()
        run.assert_is(whole, steps=steps)
        done += run.faults
    return done


def _next_fault(
    draw: random.Random, done: Counter[Fault], run: Run, phases: Sequence[str], kinds: Sequence[str]
) -> Fault:
    is_new = not run.committed()
    is_late = run.faults.total() >= 10
    possible = [
        phase
        for phase in phases
        if not (phase == "first state" and not is_new)
        and not (phase == "restore" and is_new)
        and not (phase in LAST and not is_late and any(other not in LAST for other in phases))
    ]
    counts = Counter[str]()
    for fault, count in done.items():
        counts[fault.phase] += count
    fewest = min(counts[phase] for phase in possible)
    phase = draw.choice([phase for phase in possible if counts[phase] == fewest])
    fitting = {"full disk": FULL, "worker": WORKING}
    kind = draw.choice([kind for kind in kinds if phase in fitting.get(kind, (phase,))])
    return Fault(kind, phase, draw.randrange(run.processes))


def by(name: str, faults: Counter[Fault]) -> Counter[object]:
    """Number of faults by their ``kind``, ``phase`` or ``process``."""
    counts = Counter[object]()
    for fault, count in faults.items():
        counts[getattr(fault, name)] += count
    return counts
