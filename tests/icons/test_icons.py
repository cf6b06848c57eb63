"""Icons of the quickstart: which fonts are trained on, the meaning of names, and that nothing held out leaks in."""

import json

import numpy as np
import pytest

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.data.images.decode import decode_image
from clipa_eqx.data.manifest import read_manifest
from clipa_eqx.errors import DataError
from conversion.icons import fonts as icons
from conversion.icons.build import build_icon_records

BY_NAME = {family.name: family for family in icons.FAMILIES}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("icons")
    return folder, build_icon_records(folder / "records", size=64)


def records_of(folder):
    source = open_records(folder)
    try:
        return source.read(range(len(source)))
    finally:
        source.close()


def all_ink(part):
    return [ink for family in icons.FAMILIES if family.split == part for ink in icons.render(icons.list_icons(family))]


def test_every_font_awesome_font_of_the_wheel_is_held_out_and_one_edition_of_material_is_trained_on():
    fonts = {path.name for path in icons.fonts_folder().glob("*.ttf")}
    parts = {name: f.split for f in icons.FAMILIES for name in fonts if name.startswith(f.stem)}
    assert {name for name, part in parts.items() if part == "held-out"} == {n for n in fonts if "awesome" in n}
    assert sum("material" in name for name in parts) == 1
    assert {name.split("-")[0] for name, part in parts.items() if part == "validation"} == {
        "codicon",
        "elusiveicons",
    }


def test_no_held_out_or_validation_drawing_has_a_pixel_near_twin_in_training(built):
    folder, _ = built
    train = [255 - decode_image(record.image)[..., 0] for record in records_of(folder / "records" / "train")]
    for part in ("held-out", "validation"):
        assert icons.similarity(train, all_ink(part)).max() < icons.TWIN_SIMILARITY
    # The claim is not empty: there were many before the removal.
    assert built[1].train.rows_dropped["pixel-near twin of a held-out drawing"] > 500


def test_accounts_close_on_every_name_of_every_font(built):
    folder, manifests = built
    for part, manifest in (("train", manifests.train), ("validation", manifests.validation), ("test", manifests.test)):
        families = [f for f in icons.FAMILIES if f.split == part or (part == "test" and f.name == icons.SCORED_FAMILY)]
        names = sum(
            len(json.loads(next(icons.fonts_folder().glob(f"{f.stem}-charmap-*.json")).read_text())) for f in families
        )
        assert manifest.rows_read == names == manifest.rows_written + sum(manifest.rows_dropped.values())
        assert read_manifest(folder / "records" / part) == manifest


def test_test_labels_name_their_drawings_and_every_class_is_taught(built):
    folder, manifests = built
    classes = manifests.test.class_names
    test = records_of(folder / "records" / "test")
    assert 400 < len(classes) < 500
    assert {record.label for record in test} == set(range(len(classes)))
    assert {record.extra["family"] for record in test} == {icons.SCORED_FAMILY}
    for record in test:
        assert set(record.captions[0].split()) == set(classes[record.label].split())
    validation = records_of(folder / "records" / "validation")
    assert {record.label for record in validation} == set(range(len(manifests.validation.class_names)))
    taught = {record.captions[0] for record in records_of(folder / "records" / "train")}
    assert set(manifests.validation.class_names) <= taught
    assert set(classes) <= taught


def test_no_trained_record_comes_from_a_held_out_family(built):
    folder, _ = built
    records = records_of(folder / "records" / "train")
    assert {record.extra["family"] for record in records} == {"material-design-6", "phosphor", "remix"}
    assert all(record.label is None for record in records)
    assert len({record.key for record in records}) == len(records) > 12_000


@pytest.mark.slow
def test_building_twice_gives_the_same_bytes(built):
    folder, manifests = built
    again = build_icon_records(folder / "again", size=64)
    assert again == manifests


@pytest.mark.slow
def test_smaller_images_are_the_same_icons_and_classes(built, tmp_path):
    folder, _ = built
    build_icon_records(tmp_path / "small", size=32)
    for group in ("train", "validation", "test"):
        large, small = records_of(folder / "records" / group), records_of(tmp_path / "small" / group)
        assert [(r.key, r.captions, r.label) for r in small] == [(r.key, r.captions, r.label) for r in large]
        for one, other in zip(large[:50], small[:50], strict=True):
            halved = decode_image(one.image).astype(int).reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
            assert np.abs(decode_image(other.image) - halved).max() <= 0.5


@pytest.mark.parametrize("size", [0, -32, 48, 128])
def test_a_size_that_icons_do_not_have_is_refused(tmp_path, size):
    with pytest.raises(DataError, match=f"got size={size}"):
        build_icon_records(tmp_path / "records", size=size)


@pytest.mark.parametrize(
    ("family", "name", "words", "style"),
    [
        ("material-design-6", "star-half-outline", "star half", "line"),
        ("material-design-6", "home-outline-variant", "home", "line"),
        ("material-design-6", "home-variant-outline", "home", "line"),
        ("material-design-6", "outline", "outline", "fill"),
        ("phosphor", "arrow-left-thin", "arrow left", "line thin"),
        ("phosphor", "arrow-left", "arrow left", "line"),
        ("remix", "24-hours-line", "24 hours", "line"),
        ("elusive", "address_book.alt", "address book", "fill"),
        ("codicon", "arrowCircleUp-filled", "arrow circle up", "fill"),
        ("font-awesome-6-solid", "arrow-left", "arrow left", "fill"),
    ],
)
def test_a_name_is_split_into_subject_and_style(family, name, words, style):
    assert icons.split_name(name, BY_NAME[family]) == (tuple(words.split()), style)


def test_classes_ignore_word_order_and_take_the_commonest_wording_of_training():
    def icon(family, *names):
        return icons.Icon(family=BY_NAME[family], names=names, codepoint=65)

    trained = [
        icon("remix", "arrow-circle-up-line"),
        icon("phosphor", "circle-arrow-up-thin"),
        icon("phosphor", "arrow-circle-up"),
        icon("remix", "horse-fill"),
    ]
    scored = [icon("font-awesome-6-solid", "circle-arrow-up"), icon("font-awesome-6-solid", "dog", "horse")]
    assert icons.shared_names(scored, trained) == {"arrow circle up": "arrow circle up", "horse": "horse"}


def test_drawings_are_centered_and_fill_their_frame():
    family = BY_NAME["elusive"]
    some = icons.list_icons(family)[:50]
    for ink in icons.render(some, size=64):
        rows, columns = np.flatnonzero(ink.max(axis=1)), np.flatnonzero(ink.max(axis=0))
        assert max(np.ptp(rows), np.ptp(columns)) + 1 == 52
        for inked in (rows, columns):
            assert abs(inked[0] - (63 - inked[-1])) <= 1
    assert icons.render(some[:1], size=32)[0].shape == (32, 32)


def test_similarity_is_intersection_over_union_of_black_and_white_drawings():
    left, right = np.zeros((2, 64, 64), np.uint8)
    left[10:30, 10:30] = 255  # 100 cells of 2x2 pixels
    right[10:30, 20:40] = 255  # shares half of them
    np.testing.assert_allclose(icons.similarity([left, right], [left, right]), [[1, 1 / 3], [1 / 3, 1]], rtol=1e-6)
    assert icons.similarity([np.zeros_like(left)], [left])[0, 0] == 0


def test_glyphs_without_ink_are_all_zero_and_dropped(built):
    blank = [i for i in icons.list_icons(BY_NAME["codicon"]) if i.names[0] == "blank"]
    assert not icons.render(blank)[0].any()
    assert built[1].validation.rows_dropped["empty glyph"] == 1


def test_bad_requests_say_what_to_do(tmp_path, monkeypatch):
    two = [icons.list_icons(BY_NAME[name])[0] for name in ("codicon", "elusive")]
    with pytest.raises(DataError, match="multiples of 32 pixels, got size=50"):
        icons.render(two[:1], size=50)
    with pytest.raises(DataError, match="one family at a time"):
        icons.render(two)
    with pytest.raises(DataError, match="expected exactly one file codicon-charmap"):
        icons.list_icons(BY_NAME["codicon"], folder=tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install qtawesome$"):
        icons.fonts_folder()


def test_existing_records_are_not_overwritten_unasked(built):
    folder, _ = built
    with pytest.raises(DataError, match="exists already"):
        build_icon_records(folder / "records", size=32)
