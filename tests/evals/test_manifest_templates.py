"""Prompt templates that a record folder brings along, as sets of CLIP_benchmark do."""

import pytest

from clipa_eqx.errors import ConfigError, DataError
from clipa_eqx.evals.zero_shot import ZeroShotConfig, prepare_zero_shot
from clipa_eqx.tokenizer.wordpiece import Tokenizer


def test_templates_of_the_manifest():
    config = ZeroShotConfig(data="a", templates="manifest")
    given = {"manifest_class_names": ("red, cup", "dog"), "tokenizer": Tokenizer.bert(), "length": 8}
    task = prepare_zero_shot(config, manifest_templates=("a {c}", "{c}", "the {c}"), **given)
    assert [len(tokens) for tokens in task.tokens] == [3, 3]
    with pytest.raises(DataError, match="a has no templates in its manifest, which only sets of CLIP_benchmark have"):
        prepare_zero_shot(config, **given)
    with pytest.raises(ConfigError, match="with commas_in_names a name has no synonyms"):
        ZeroShotConfig(data="a", commas_in_names=True, first_name_only=False)
