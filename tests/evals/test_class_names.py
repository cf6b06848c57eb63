"""Names that a record folder is scored with: as many as it has classes, matched by WordNet id where there are ids."""

import pytest

from clipa_eqx.errors import DataError
from clipa_eqx.evals.class_names import choose_class_names
from clipa_eqx.evals.prompts import named_class_names, wordnet_ids

IDS = ("n01440764", "n02102040", "n02979186")  # 0, 217 and 482 of ImageNet
NAMES = ("tench", "English Springer Spaniel", "cassette player")


def choose(choice, own, file=None):
    return choose_class_names(choice, own, file=file, data="data/val")


def test_ids_are_a_thousand_sorted_and_in_label_order():
    ids = tuple(wordnet_ids())
    assert len(ids) == len(set(ids)) == 1000
    assert ids == tuple(sorted(ids))
    assert (ids[0], ids[217], ids[482], ids[999]) == (*IDS, "n15075141")
    assert tuple(wordnet_ids().values()) == named_class_names("imagenet")


@pytest.mark.parametrize("name", ["imagenet_a", "imagenet_r"])
def test_ids_of_a_subset_have_the_names_of_the_subset(name):
    ids = wordnet_ids(name)
    assert list(ids.values()) == list(named_class_names(name))
    assert list(ids) == sorted(ids)
    assert ids.items() <= wordnet_ids().items()


@pytest.mark.parametrize("choice", ["manifest", "imagenet"])
def test_a_subset_of_folders_is_scored_against_its_own_classes(choice):
    assert choose(choice, IDS) == NAMES
    assert choose(choice, IDS[::-1]) == NAMES[::-1]
    assert choose(choice, tuple(wordnet_ids())) == named_class_names("imagenet")


def test_a_subset_of_a_subset_is_scored_against_its_own_classes():
    ids = tuple(wordnet_ids("imagenet_r"))[5:8]
    assert choose("imagenet_r", ids) == tuple(named_class_names("imagenet_r")[5:8])
    with pytest.raises(DataError, match=r"has 3 classes .*class_names='imagenet_a' has 200 names.*include n01440764"):
        choose("imagenet_a", IDS)


@pytest.mark.parametrize("choice", ["imagenet", "imagenet_a", "file"])
@pytest.mark.parametrize("count", [1, 3, 1001])
def test_another_number_of_names_than_classes_is_refused_with_both(choice, count, tmp_path):
    names = tuple(f"class {i}" for i in range(count))
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    given = {"imagenet": "1,000", "imagenet_a": "200", "file": "2"}[choice]
    with pytest.raises(DataError, match=rf"data/val has {count:,} class.* has {given} names"):
        choose(choice, names, str(tmp_path / "names.txt") if choice == "file" else None)


def test_as_many_names_as_classes_are_taken_in_their_order(tmp_path):
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    assert choose("file", ("a", "b"), str(tmp_path / "names.txt")) == ("cat", "dog")
    assert choose("file", IDS[:2], str(tmp_path / "names.txt")) == ("cat", "dog")
    assert choose("imagenet", tuple(map(str, range(1000)))) == named_class_names("imagenet")
    assert choose("manifest", ("a", "n01440764")) == ("a", "n01440764")


@pytest.mark.parametrize("own", [None, ()])
def test_a_folder_without_names_takes_any_list_and_needs_one(own):
    assert choose("imagenet_a", own) == named_class_names("imagenet_a")
    with pytest.raises(DataError, match="has no class names in its manifest"):
        choose("manifest", own)


@pytest.mark.parametrize("choice", ["manifest", "imagenet"])
def test_ids_that_imagenet_does_not_have_are_no_names(choice):
    own = ("n01440764", "n99999999")
    with pytest.raises(DataError, match=r"1 of them are WordNet ids that .* do not have, such as n99999999"):
        choose_class_names(choice, own, file=None, data="folder")
