"""Class names and prompts: the published sets, files of names, and the sentences that are scored."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipa_eqx.errors import ConfigError, DataError
from clipa_eqx.evals.prompts import (
    canonical_class_names,
    canonical_templates,
    canonicalize,
    class_prompts,
    named_class_names,
    named_templates,
    read_class_names,
)

SETS = {"clip_paper": 81, "clip_best": 8, "class_name_only": 1, "open_clip": 80}
LISTS = {"imagenet": 1000, "imagenet_a": 200, "imagenet_r": 200}


@pytest.mark.parametrize(("name", "count"), SETS.items())
def test_a_prompt_set_has_its_number_of_distinct_templates_with_one_place(name, count):
    templates = named_templates(name)
    assert len(templates) == len(set(templates)) == count
    assert all(template.count("{}") == 1 for template in templates)


@pytest.mark.parametrize(("name", "count"), LISTS.items())
def test_a_list_of_class_names_is_complete(name, count):
    names = named_class_names(name)
    assert len(names) == count
    assert all(one.strip() == one and one for one in names)
    assert set(names) <= set(named_class_names("imagenet"))


def test_imagenet_has_exactly_two_pairs_of_equal_names():
    names = named_class_names("imagenet")
    assert sorted(name for name in set(names) if names.count(name) > 1) == ["missile", "sunglasses"]
    assert (names[0], names[999]) == ("tench", "toilet paper")


@settings(deadline=None)
@given(st.text(max_size=30))
def test_canonical_text_has_no_punctuation_and_single_spaces_and_stays_canonical(text):
    once = canonicalize(text)
    assert not set(once) & set(string.punctuation)
    assert once == " ".join(once.split())
    assert canonicalize(once) == once


@pytest.mark.parametrize(
    ("text", "keep", "expected"),
    [
        ("A  photo of\ta T-shirt!", "", "a photo of a tshirt"),
        ("fire_truck", "", "fire truck"),
        ("Fire-truck, Fire_Engine", ",", "firetruck, fire engine"),
        ("A {}, drawn.", "{}", "a {} drawn"),
        ("{}", "{}", "{}"),
        ("{ }", "{}", ""),
        ("Straße", "", "straße"),
    ],
)
def test_canonical_text_keeps_what_it_is_asked_to(text, keep, expected):
    assert canonicalize(text, keep=keep) == expected


def test_names_keep_their_commas_and_templates_their_place():
    assert canonical_class_names(["Cat, house-cat", "DOG."]) == ("cat, housecat", "dog")
    assert canonical_templates(["A photo of the {}!"]) == ("a photo of the {}",)


@settings(deadline=None)
@given(
    st.lists(st.from_regex("[a-z]{1,5}", fullmatch=True), min_size=1, max_size=4),
    st.lists(st.sampled_from(["a {}", "{} here", "the {} and {}"]), min_size=1, max_size=3),
)
def test_each_class_has_every_template_with_its_name(names, templates):
    prompts = class_prompts(names, templates, canonical=False)
    assert prompts == [[template.replace("{}", name) for template in templates] for name in names]


def test_synonyms_come_one_after_the_other_without_canonical_text():
    made = class_prompts(["A cat,B cat"], ["{}!", "the {}"], canonical=False, first_name_only=False)
    assert made == [["A cat!", "the A cat", "B cat!", "the B cat"]]


@pytest.mark.parametrize("name", ["", " ", "...", ", cat", "_"])
def test_a_name_that_leaves_nothing_is_refused_with_its_label(name):
    with pytest.raises(DataError, match=r"class 1 is named .* which leaves nothing"):
        class_prompts(["dog", name], ["{}"])
    if not name.strip():
        with pytest.raises(DataError, match=r"class 1 is named"):
            class_prompts(["dog", name], ["{}"], canonical=False)


def test_a_second_empty_name_counts_only_if_it_is_used():
    assert class_prompts(["cat,"], ["{}"]) == [["cat"]]
    with pytest.raises(DataError, match="class 0 is named 'cat,'"):
        class_prompts(["cat,"], ["{}"], first_name_only=False)


@pytest.mark.parametrize(
    ("names", "templates", "error", "words"),
    [
        (["cat"], [], ConfigError, "no prompt templates"),
        (["cat"], ["a photo"], ConfigError, r"template 'a photo' has no \{\}"),
        (["cat"], ["{}", "{ }"], ConfigError, r"template '\{ \}' has no"),
        ([], ["{}"], DataError, "no class names"),
    ],
)
def test_prompts_that_cannot_be_made_are_refused(names, templates, error, words):
    with pytest.raises(error, match=words):
        class_prompts(names, templates)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"cat\n\ndog\n", "line 2 is empty"),
        (b" \n\n", "the file is empty"),
        (b"\xff\n", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_a_file_of_class_names_without_one_name_per_line_is_refused(content, words, tmp_path):
    path = tmp_path / "names.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        read_class_names(str(path))
    assert str(path) in str(caught.value)


def test_class_names_of_a_file_are_its_lines_in_order_and_unchanged(tmp_path):
    (tmp_path / "names.txt").write_bytes("Katze, Kater\r\n Hündin\ncat".encode())
    assert read_class_names(str(tmp_path / "names.txt")) == ("Katze, Kater", " Hündin", "cat")


@pytest.mark.parametrize("end", ["", "\n", "\n\n", " \n", "\r\n\r\n"])
def test_empty_lines_at_the_end_of_a_file_are_no_names(end, tmp_path):
    (tmp_path / "names.txt").write_bytes(f"\ufeffcat\ndog\n{end}".encode())
    assert read_class_names(str(tmp_path / "names.txt")) == ("cat", "dog")


def test_the_place_for_the_name_may_be_that_of_clip_benchmark():
    own, others = ["a photo of {}.", "{}, drawn", "{}"], ["a photo of {c}.", "{c}, drawn", "{c}"]
    for canonical in (True, False):
        expected = class_prompts(["Red Cup"], own, canonical=canonical)
        assert class_prompts(["Red Cup"], others, canonical=canonical) == expected
    assert expected == [["a photo of Red Cup.", "Red Cup, drawn", "Red Cup"]]
    with pytest.raises(ConfigError, match=r"has no \{\} for the class name"):
        class_prompts(["a"], ["{c}", "a {d}"])


def test_names_with_commas_keep_their_commas():
    names = ["Bonaire, Saint Eustatius and Saba"]
    assert class_prompts(names, ["in {c}."], canonical=False, commas_in_names=True) == [[f"in {names[0]}."]]
    assert class_prompts(names, ["in {c}."], commas_in_names=True) == [["in bonaire, saint eustatius and saba"]]
    assert class_prompts(names, ["in {c}."]) == [["in bonaire"]]
