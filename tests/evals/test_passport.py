"""Passports of scores: what they hold, and how many prompts lose the name of their class."""

import numpy as np
import pytest

from clipa_eqx.evals.passport import class_names_cut, describe_set
from clipa_eqx.evals.zero_shot import ZeroShotConfig, make_task
from clipa_eqx.tokenizer.wordpiece import Tokenizer


def naive_cut(names, templates, tokenizer, length):
    """Prompts, classes and classes entirely without the complete name, by decoding each prompt."""
    lost = []
    for name in names:
        of_class = []
        for template in templates:
            ids = tokenizer([template.replace("{}", name)], length=length).ids[0]
            full = tokenizer([name], length=40).ids[0]
            pieces = [i for i in full if i not in (tokenizer.cls_id, tokenizer.pad_id)]
            text, wanted = ",".join(map(str, ids)), ",".join(map(str, pieces))
            of_class.append(f",{wanted}," not in f",{text},")
        lost.append(of_class)
    lost = np.array(lost)
    return {
        "prompts": int(lost.sum()),
        "classes": int(lost.any(axis=1).sum()),
        "classes_entirely": int(lost.all(axis=1).sum()),
    }


@pytest.mark.parametrize("length", [4, 6, 8, 16])
def test_prompts_that_lose_their_class_name_are_counted(length):
    names = ["cat", "great white shark", "american black bear in the woods near the river"]
    templates = ("{}", "a photo of a {}", "a bad photo of the big and very blurry {}")
    tokenizer = Tokenizer.bert()
    config = ZeroShotConfig(data="d", templates=templates)
    task = make_task(config, manifest_class_names=names, tokenizer=tokenizer, length=length)
    assert class_names_cut(task, tokenizer) == naive_cut(names, templates, tokenizer, length)


def test_published_sets_are_known_by_their_numbers():
    assert describe_set(50_000, classes=1000).startswith("ImageNet validation")
    assert describe_set(49_999, classes=1000) == "no published set: 49,999 images, 1,000 classes"
