"""The tokenizer that a user names for a model, checked against the model's token table."""

from pathlib import Path

from clipa_eqx.errors import ConfigError
from clipa_eqx.tokenizer.wordpiece import Tokenizer


def load_tokenizer(vocab: Path | str | None, *, model_vocab: int, remedy: str | None = None) -> Tokenizer:
    """The BERT tokenizer of the package (``None``), or that of a vocabulary file or tokenizer folder.

    Args:
        model_vocab: rows of the model's token table.
        remedy: what to do about a vocabulary that is too large, the end of the error message. ``None`` is for configs,
            which choose the size of the token table; the table of weights that exist has a fixed size.

    Raises:
        ConfigError: the vocabulary has more pieces than the token table has rows.
        DataError: there is no such file or folder, or it is not a vocabulary.
    """
    if vocab is None:
        tokenizer = Tokenizer.bert()
    else:
        tokenizer = Tokenizer.load(Path(vocab)) if Path(vocab).is_dir() else Tokenizer.from_file(vocab)
    if tokenizer.vocab_size > model_vocab:
        problem = (
            f"the token table has {model_vocab} rows, but the vocabulary ({vocab or 'BERT, the default'}) has "
            f"{tokenizer.vocab_size} pieces"
        )
        if remedy is not None:
            raise ConfigError(f"{problem}; {remedy}")
        raise ConfigError(
            f"model.text.vocab is {model_vocab}: {problem}; name the model's own vocabulary (data.vocab), or set "
            f"model.text.vocab to at least {tokenizer.vocab_size}"
        )
    return tokenizer
