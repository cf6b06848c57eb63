"""Random generators of samples: each one depends on (seed, sample) only, and those of a batch are made at once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt64
from numpy.random.bit_generator import ISpawnableSeedSequence

# The constants of numpy's SeedSequence, whose streams numpy promises to keep.
_POOL = 4
_START_A, _FACTOR_A = 0x43B0D7E5, 0x931E8875
_START_B, _FACTOR_B = 0x8B51F9DD, 0x58F38DED
_LEFT, _RIGHT = np.uint32(0xCA01F9DD), np.uint32(0x4973F715)
_SHIFT = np.uint32(16)
_WORD = 0xFFFFFFFF
# PCG64 asks for its state and its increment, 128 bits each.
_STATE_WORDS = 4
# Larger seeds do not fit into the pool together with a sample of 64 bits.
_LARGEST_SEED = 2**64 - 1


def sample_generator(*, seed: int, sample: int) -> np.random.Generator:
    """Make the generator of sample n = step * batch_size + row.

    It is new for each sample, so that its ``spawn`` depends on (seed, n) only. The generators of Grain's ``random_map``
    are reused, so that their ``spawn`` depends on the number of earlier calls.
    """
    return np.random.Generator(np.random.PCG64(_plain_sequence(seed, sample)))


def sample_generators(*, seed: int, samples: Sequence[int], is_vectorized: bool = True) -> list[np.random.Generator]:
    """Make the generators of several samples; each equals that of ``sample_generator``.

    The seeds of a batch are hashed together, which takes less time (``benchmarks/sample_order.py``).
    ``is_vectorized=False`` hashes them one by one.
    """
    if not is_vectorized or seed > _LARGEST_SEED:
        return [sample_generator(seed=seed, sample=sample) for sample in samples]
    states = _states(seed, np.asarray(samples, np.uint64))
    sequences: list[Any] = [_Seeded(seed, sample, state) for sample, state in zip(samples, states, strict=True)]
    return [np.random.Generator(np.random.PCG64(sequence)) for sequence in sequences]


class _Seeded(ISpawnableSeedSequence):
    """The seed sequence of (seed, sample) with its first words already computed."""

    def __init__(self, seed: int, sample: int, state: UInt64[np.ndarray, " 4"]) -> None:
        self._seed, self._sample, self._state = seed, sample, state
        self._sequence: np.random.SeedSequence | None = None

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> Any:
        if n_words == _STATE_WORDS and dtype is np.uint64:
            return self._state
        return self._plain().generate_state(n_words, dtype)

    def spawn(self, n_children: int) -> Any:
        return self._plain().spawn(n_children)

    def _plain(self) -> np.random.SeedSequence:
        if self._sequence is None:  # kept, because it counts its children
            self._sequence = _plain_sequence(self._seed, self._sample)
        return self._sequence


def _plain_sequence(seed: int, sample: int) -> np.random.SeedSequence:
    return np.random.SeedSequence((seed, sample))


def _states(seed: int, samples: UInt64[np.ndarray, " rows"]) -> UInt64[np.ndarray, "rows 4"]:
    """Compute ``SeedSequence((seed, sample)).generate_state(4, np.uint64)`` for each sample."""
    words = [seed & _WORD, seed >> 32] if seed > _WORD else [seed]
    entropy = [np.full(samples.shape, word, np.uint32) for word in words]
    # A sample below 2**32 has one word; a second one of zero has the same effect as the padding of the pool.
    entropy += [samples.astype(np.uint32), (samples >> np.uint64(32)).astype(np.uint32)]
    entropy += [np.zeros(samples.shape, np.uint32)] * (_POOL - len(entropy))
    constants = _Constants(_START_A, _FACTOR_A)
    pool = [constants.hash(word) for word in entropy]
    for source in range(_POOL):
        for target in range(_POOL):
            if source != target:
                pool[target] = _mix(pool[target], constants.hash(pool[source]))
    constants = _Constants(_START_B, _FACTOR_B)
    halves = [constants.hash(pool[word % _POOL]) for word in range(2 * _STATE_WORDS)]
    # The first word of each pair is the lower half, on every machine.
    low, high = (np.stack(part, axis=-1).astype(np.uint64) for part in (halves[::2], halves[1::2]))
    return low | high << np.uint64(32)


class _Constants:
    """The sequence of constants of a hash, a new one for each value."""

    def __init__(self, start: int, factor: int) -> None:
        self._next, self._factor = start, factor

    def hash(self, value: np.ndarray) -> np.ndarray:
        value = value ^ np.uint32(self._next)
        self._next = self._next * self._factor & _WORD
        value = value * np.uint32(self._next)
        return value ^ (value >> _SHIFT)


def _mix(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    result = _LEFT * x - _RIGHT * y
    return result ^ (result >> _SHIFT)
