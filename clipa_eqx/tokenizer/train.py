"""Training of a small WordPiece vocabulary from captions, as an alternative to BERT's."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from clipa_eqx.errors import ConfigError, DataError
from clipa_eqx.tokenizer.normalize import REPLACEMENT, split_words
from clipa_eqx.tokenizer.vocabulary import SPECIAL, UNKNOWN

_LARGEST_ALPHABET = 1000  # characters, as in BERT's own training; rarer ones would take too many ids
_LONGEST_WORD_BYTES = 100
_CHUNK_WORDS = 10_000


def train_wordpiece(captions: Iterable[str], *, vocab_size: int, min_frequency: int = 2) -> list[str]:
    """Learn at most ``vocab_size`` pieces: special pieces ([PAD] is 0), characters, then merges by frequency.

    The result depends on the number of times that each caption occurs, not on their order, the process or the number of
    threads. Words with a character outside the alphabet (the 1,000 most frequent characters, or as many as fit) are
    ignored. ``write_vocab`` writes the pieces to a file.

    Args:
        captions: texts to learn from.
        vocab_size: largest number of pieces.
        min_frequency: pairs of pieces that occur fewer times are not merged.

    Raises:
        ConfigError: ``vocab_size`` leaves no room for characters, or ``min_frequency`` is below 1.
        DataError: the captions contain no word.
    """
    room = vocab_size - len(SPECIAL)
    if room < 2 or min_frequency < 1:
        raise ConfigError(
            f"vocabulary: vocab_size={vocab_size}, min_frequency={min_frequency}; expected vocab_size at least "
            f"{len(SPECIAL) + 2} (special pieces and one character in its two forms) and min_frequency at least 1"
        )
    counts = Counter(word for caption in captions for word in split_words(caption) if _is_usable(word))
    if not counts:
        raise DataError("vocabulary: the captions contain no word to learn from; check the caption source")
    alphabet = _most_frequent_characters(counts, limit=min(_LARGEST_ALPHABET, room // 2))
    counts = {word: count for word, count in counts.items() if alphabet.issuperset(word)}
    inner = {char for word in counts for char in word[1:]}
    # The trainer numbers continuation characters in the order of a randomly seeded hash map, and breaks ties between
    # merges by these numbers. As special pieces they are numbered first, in our order.
    fixed = [*SPECIAL, *sorted(alphabet), *(f"##{char}" for char in sorted(inner))]
    learner = tokenizers.Tokenizer(models.WordPiece({UNKNOWN: 0}, unk_token=UNKNOWN))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, min_frequency=min_frequency, special_tokens=fixed, show_progress=False
    )
    learner.train_from_iterator(_repeated(counts), trainer=trainer)
    ids = learner.get_vocab(with_added_tokens=True)
    return sorted(ids, key=lambda piece: ids[piece])


def _is_usable(word: str) -> bool:
    return REPLACEMENT not in word and len(word.encode()) <= _LONGEST_WORD_BYTES


def _most_frequent_characters(counts: Counter[str], *, limit: int) -> frozenset[str]:
    frequency: Counter[str] = Counter()
    for word, count in counts.items():
        for char in word:
            frequency[char] += count
    ranked = sorted(frequency, key=lambda char: (-frequency[char], char))
    return frozenset(ranked[:limit])


def _repeated(counts: dict[str, int]) -> Iterator[str]:
    """Repeat every word as often as it was counted, in lines of bounded length."""
    words = itertools.chain.from_iterable(itertools.repeat(word, count) for word, count in sorted(counts.items()))
    while chunk := list(itertools.islice(words, _CHUNK_WORDS)):
        yield " ".join(chunk)
