"""Microseconds per sample of the two things that decide it: its random generator and its place in the shuffled order.

Generators of a batch are made together, and next to that one by one; the order is ours, and next to that Grain's.
"""

import argparse
import time
from collections.abc import Callable

import grain

from clipa_eqx.data.sample_generators import sample_generators
from clipa_eqx.data.shuffled_order import ShuffledOrder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=512, help="samples made together")
    parser.add_argument("--records", type=int, default=2_000_000_000, help="records of the order")
    parser.add_argument("--rounds", type=int, default=5, help="rounds in turns; the best of each counts")
    options = parser.parse_args()
    samples = range(10**9, 10**9 + options.batch)
    ours = ShuffledOrder(options.records, seed=1)
    theirs = grain.MapDataset.range(options.records).shuffle(seed=1)
    sides: dict[str, Callable[[], object]] = {
        "generators, together": lambda: sample_generators(seed=0, samples=samples),
        "generators, one by one": lambda: sample_generators(seed=0, samples=samples, is_vectorized=False),
        "order, ours": lambda: [ours[sample] for sample in samples],
        "order, Grain's": lambda: [theirs[sample] for sample in samples],
    }
    best = dict.fromkeys(sides, float("inf"))
    for _ in range(options.rounds):
        for name, work in sides.items():
            since = time.perf_counter()
            work()
            best[name] = min(best[name], time.perf_counter() - since)
    for name, seconds in best.items():
        print(f"{name:24}{1e6 * seconds / options.batch:8.1f} us")


if __name__ == "__main__":
    main()
