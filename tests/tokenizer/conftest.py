"""Fixtures of the tokenizer tests."""

import pytest

from clipa_eqx.tokenizer.wordpiece import Tokenizer


@pytest.fixture(scope="session")
def bert() -> Tokenizer:
    """The tokenizer of BERT's vocabulary; reading it takes a while and nothing changes it."""
    return Tokenizer.bert()
