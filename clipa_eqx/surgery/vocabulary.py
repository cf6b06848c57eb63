"""Another vocabulary: rows of the token table follow their pieces."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from clipa_eqx.errors import ConfigError
from clipa_eqx.models.clip import CLIP
from clipa_eqx.surgery.configuration import operated, rebuild
from clipa_eqx.surgery.report import Operated
from clipa_eqx.trees import leaves_by_path


def swap_vocabulary(
    model: CLIP, *, old: Sequence[str], new: Sequence[str], key: PRNGKeyArray, rows: int | None = None
) -> Operated:
    """Replace the vocabulary: a piece of both vocabularies keeps its row, other rows are random as at initialization.

    A text that both tokenizers split into the same shared pieces keeps its embedding, bit for bit.

    Args:
        model: model to change.
        old: pieces of the model's tokenizer by id (``tokenizer.pieces``); the table may have more rows.
        new: pieces of the new tokenizer by id.
        key: randomness of new rows.
        rows: rows of the new table, at least one per piece; None is one per piece.

    Raises:
        ConfigError: a piece twice in a vocabulary, more pieces than rows, or vocabularies that share no piece.
    """
    vocab = len(new) if rows is None else rows
    limits = ("old", old, model.config.text.vocab), ("new", new, vocab)
    for name, pieces, limit in limits:
        if len(set(pieces)) < len(pieces):
            twice = next(piece for i, piece in enumerate(pieces) if piece in pieces[:i])
            raise ConfigError(f"swap_vocabulary: the {name} vocabulary has the piece {twice!r} twice")
        if len(pieces) > limit:
            raise ConfigError(
                f"swap_vocabulary: the {name} vocabulary has {len(pieces)} pieces, the token table {limit} rows"
            )
    if list(old) == list(new) and vocab == model.config.text.vocab:
        return operated(model, model, ())
    row_of = {piece: row for row, piece in enumerate(old)}
    pairs = [(row_of[piece], row) for row, piece in enumerate(new) if piece in row_of]
    if not pairs:
        raise ConfigError("swap_vocabulary: the vocabularies share no piece; are they of the same kind of tokenizer?")
    table = model.text.token.weight
    from_rows, to_rows = np.array(pairs).T
    fresh = (0.02 * jr.normal(key, (vocab, table.shape[1]))).astype(table.dtype)

    def move(rows: Array, into: Array | None = None) -> Array:
        into = jnp.zeros((vocab, rows.shape[1]), rows.dtype) if into is None else into
        return into.at[jnp.asarray(to_rows)].set(rows[from_rows])

    leaves = leaves_by_path(model) | {"text/token/weight": move(table, fresh)}
    text = dataclasses.replace(model.config.text, vocab=vocab)
    line = f"text/token/weight: rows of {len(pairs)} shared pieces kept, {vocab - len(pairs)} random, {vocab} in all"
    changes = (f"text.vocab: {model.config.text.vocab} -> {vocab}",) * (vocab != model.config.text.vocab)
    after = rebuild(dataclasses.replace(model.config, text=text), leaves)
    return operated(model, after, (*changes, line), moves={"text/token/weight": move})
