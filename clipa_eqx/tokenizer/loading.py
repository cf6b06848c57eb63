"""The tokenizer that a user names for a model, checked against the model's token table."""

from pathlib import Path

from clipa_eqx.errors import ConfigError
from clipa_eqx.tokenizer.wordpiece import Tokenizer


def load_tokenizer(vocab: Path | str | None, *, model_vocab: int) -> Tokenizer:
    """The BERT tokenizer of the package (``None``), or that of a vocabulary file or tokenizer folder.

    Args:
        model_vocab: rows of the model's token table.

    Raises:
        ConfigError: the vocabulary has more pieces than the token table has rows.
        DataError: there is no such file or folder, or it is not a vocabulary.
    """
    if vocab is None:
        tokenizer = Tokenizer.bert()
    else:
        tokenizer = Tokenizer.load(Path(vocab)) if Path(vocab).is_dir() else Tokenizer.from_file(vocab)
    if tokenizer.vocab_size > model_vocab:
        raise ConfigError(
            f"model.text.vocab is {model_vocab}: the token table has {model_vocab} rows, but the vocabulary "
            f"({vocab or 'BERT, the default'}) has {tokenizer.vocab_size} pieces; name the model's own vocabulary "
            f"(--vocab of a converter, data.vocab of a run), or set model.text.vocab to at least "
            f"{tokenizer.vocab_size}"
        )
    return tokenizer
