"""Passports of scores: what they hold, and how many prompts lose the name of their class."""

import numpy as np
import pytest
from support.paths import ROOT

from clipa_eqx.data.manifest import Manifest
from clipa_eqx.data.shards import ShardInfo
from clipa_eqx.errors import DataError
from clipa_eqx.evals.code_version import code_version
from clipa_eqx.evals.passport import class_names_cut
from clipa_eqx.evals.published_sets import PUBLISHED_SETS, check_fingerprint, describe_set
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
        "templates": int(lost.any(axis=0).sum()),
        "templates_entirely": int(lost.all(axis=0).sum()),
    }


@pytest.mark.parametrize("length", [4, 6, 8, 16])
def test_prompts_that_lose_their_class_name_are_counted(length):
    names = ["cat", "great white shark", "american black bear in the woods near the river"]
    templates = ("{}", "a photo of a {}", "a bad photo of the big and very blurry {}")
    tokenizer = Tokenizer.bert()
    config = ZeroShotConfig(data="d", templates=templates)
    task = make_task(config, manifest_class_names=names, tokenizer=tokenizer, length=length)
    assert class_names_cut(task, tokenizer) == naive_cut(names, templates, tokenizer, length)


def manifest(images, *, dropped=None, **info):
    """The manifest of a folder of one shard."""
    shards = (ShardInfo(name="a", count=images, bytes=1, sha256="0"),)
    dropped = dropped or {}
    read = images + sum(dropped.values())
    return Manifest(shards=shards, rows_read=read, rows_written=images, rows_dropped=dropped, info=info)


@pytest.mark.parametrize("known", PUBLISHED_SETS, ids=lambda one: one.name)
def test_a_published_set_is_known_by_its_numbers_and_one_image_less_is_flagged(known):
    numbers = {"classes": known.classes, "captions": known.captions}
    found = describe_set(manifest(known.images), **numbers, is_expected=True)
    assert (found["name"], found["flags"]) == (known.name, [])
    (flag,) = describe_set(manifest(known.images - 1), **numbers, is_expected=True)["flags"]
    assert flag.startswith(f"not a published set: {known.images - 1:,} images")
    wanted = known.numbers if known.captions else f"{known.images:,} images"
    assert f"; {known.name} has {wanted}" in flag


def test_a_wrong_number_of_classes_is_flagged_with_the_sets_of_as_many_images():
    found = describe_set(manifest(50_000), classes=998, is_expected=True)
    assert found["name"] is None
    assert found["flags"] == [
        "not a published set: 50,000 images of 998 classes; ImageNet validation has 1,000 classes"
    ]


def test_what_a_conversion_changed_is_flagged():
    command = {"kind": "imagenet", "max_side": 256, "limit": 49_000}
    found = describe_set(
        manifest(49_990, dropped={"undecodable image": 10}, command=command, content_fingerprint="ab"), classes=1000
    )
    assert found["flags"][1:] == [
        "the conversion dropped rows: 10 undecodable image",
        "the conversion re-encoded images that are larger: --max-side 256",
        "the conversion read only the first rows: --limit 49000",
        "the fingerprint ab was not compared with a known one; --expect-fingerprint does",
    ]
    # ReaL leaves images without a label out, and its numbers say so.
    real = manifest(46_837, dropped={"missing label": 3_163}, content_fingerprint="ab")
    assert len(describe_set(real, classes=1000)["flags"]) == 1


def test_a_fingerprint_is_compared_with_the_expected_one():
    check_fingerprint(manifest(1, content_fingerprint="ab"), " AB\n", data="d")
    with pytest.raises(DataError, match="d has the fingerprint ab, expected cd"):
        check_fingerprint(manifest(1, content_fingerprint="ab"), "cd", data="d")
    with pytest.raises(DataError, match="d has no content_fingerprint"):
        check_fingerprint(manifest(1), "cd", data="d")


def test_the_code_is_named_by_version_and_commit():
    found = code_version()
    assert set(found) == {"version", "commit", "changed"}
    head = ROOT / ".git"
    if head.exists():
        assert len(found["commit"]) == 40
        assert isinstance(found["changed"], bool)
    else:
        assert (found["commit"], found["changed"]) == (None, None)
