"""Addresses and listings of sources: folders, patterns, single files, links, and files that cannot be read."""

import os

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from clipa_eqx.errors import DataError
from conversion.records.listing import check_readable, find_files, list_folders, list_names, list_sizes
from conversion.records.places import check_apart, holds, is_pattern, open_place, root_of
from conversion.records.reading import local_copy, open_file, read_files

FILES = {"a.tar": b"1", "b.tar": b"22", "b.json": b"333", "sub/c.tar": b"4444", "sub/deep/d.tar": b""}


@pytest.fixture(params=["local", "memory"])
def url(request, tmp_path):
    """A folder with the same files on disk and in a filesystem like a bucket."""
    if request.param == "local":
        root = str(tmp_path / "source")
    else:
        root = "memory://source"
        MemoryFileSystem.store.clear()
    place = open_place(root)
    for name, content in FILES.items():
        place.fs.makedirs(place.child(name).rpartition("/")[0], exist_ok=True)
        place.fs.pipe_file(place.child(name), content)
    yield root
    MemoryFileSystem.store.clear()


def names(url):
    return [file.name for file in find_files(open_place(url))]


def test_a_folder_gives_all_files_below_it_with_their_sizes_in_order(url):
    found = find_files(open_place(url))
    assert {file.name: file.size for file in found} == {name: len(content) for name, content in FILES.items()}
    assert [file.path for file in found] == sorted(file.path for file in found)
    assert names(f"{url}/") == names(url)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.tar", ["a.tar", "b.tar"]),
        ("?.json", ["b.json"]),
        ("[a]*", ["a.tar"]),
        ("sub/*", ["c.tar"]),
        ("**/*.tar", ["a.tar", "b.tar", "sub/c.tar", "sub/deep/d.tar"]),
        ("b.json", ["b.json"]),
        ("{a,b}.tar", ["a.tar", "b.tar"]),
        ("{b.json,sub/{c,deep/d}.tar}", ["b.json", "sub/c.tar", "sub/deep/d.tar"]),
        ("{sub,a.tar}", ["a.tar", "sub/c.tar", "sub/deep/d.tar"]),
        ("su{b,b}/*.tar", ["sub/c.tar"]),
        ("{*.json,sub/**/*.tar}", ["b.json", "sub/c.tar", "sub/deep/d.tar"]),
    ],
)
def test_a_pattern_gives_the_files_that_match_by_name_from_its_own_folder(pattern, expected, url):
    assert names(f"{url}/{pattern}") == expected


@pytest.mark.parametrize(
    ("pattern", "missing"),
    [
        ("{a,b,c}.tar", "1 do not exist or hold no files: {}/c.tar; complete the files"),
        ("{00..99}.tar", "100 do not exist or hold no files: {0}/00.tar, {0}/01.tar, {0}/02.tar, ...; complete"),
        ("{a..b}.{tar,json}", "1 do not exist or hold no files: {}/a.json;"),
        ("{,sub/}*.json", "1 do not exist or hold no files: {}/sub/*.json;"),
        ("{none,sub}/c.tar", "1 do not exist or hold no files: {}/none/c.tar;"),
    ],
)
def test_names_that_braces_stand_for_must_exist(pattern, missing, url):
    with pytest.raises(DataError) as caught:
        names(f"{url}/{pattern}")
    assert f"of the names that {url}/{pattern} means, " in str(caught.value)
    assert missing.format(open_place(url).path) in str(caught.value)


def test_a_hundred_thousand_names_are_one_listing(tmp_path):
    MemoryFileSystem.store.clear()
    place = open_place("memory://many")
    place.fs.pipe_file("/many/00000.tar", b"1")
    with pytest.raises(DataError, match=r"99,999 do not exist or hold no files: /many/00001\.tar"):
        names("memory://many/{00000..99999}.tar")
    (tmp_path / "0.tar").touch()
    with pytest.raises(DataError, match="99,999 do not exist"):
        names(f"{tmp_path}/{{0..99999}}.tar")
    MemoryFileSystem.store.clear()


def test_a_file_whose_name_holds_braces_is_no_pattern(url):
    place = open_place(f"{url}/{{a,b}}.tar")
    place.fs.pipe_file(place.path, b"12345")
    assert not is_pattern(place)
    assert [(file.name, file.size) for file in find_files(place)] == [("{a,b}.tar", 5)]


@pytest.mark.parametrize(("name", "words"), [("none", "does not exist"), ("*.zip", "holds no files")])
def test_a_source_that_is_not_there_is_named(name, words, url):
    with pytest.raises(DataError, match=words) as caught:
        names(f"{url}/{name}")
    assert f"{url}/{name}" in str(caught.value)


def test_an_empty_source_is_refused_unless_it_may_be_empty(tmp_path):
    with pytest.raises(DataError, match="holds no files"):
        find_files(open_place(tmp_path))
    assert find_files(open_place(tmp_path), may_be_empty=True) == []


def test_entries_of_a_folder_are_names_sizes_and_folders(url):
    place = open_place(url)
    assert list_names(place) == ["a.tar", "b.json", "b.tar", "sub"]
    assert list_names(place, "sub") == ["c.tar", "deep"]
    assert list_sizes(place) == {"a.tar": 1, "b.tar": 2, "b.json": 3}
    assert list_sizes(place, "sub") == {"c.tar": 4}
    assert list_folders(place) == {"sub"}
    for empty in (list_names(place, "none"), list_sizes(place, "none"), list_folders(open_place(f"{url}/a.tar"))):
        assert not empty


def test_contents_are_read_together_and_copied_only_if_they_are_remote(url):
    place = open_place(url)
    assert read_files(place, []) == {}
    assert read_files(place, ["a.tar"]) == {"a.tar": b"1"}
    assert read_files(place, ["b.tar", "a.tar", "sub/c.tar"]) == {n: FILES[n] for n in ("b.tar", "a.tar", "sub/c.tar")}
    with local_copy(place.fs, place.child("b.json")) as path:
        assert (path == place.child("b.json")) == place.is_local
        with open(path, "rb") as file:
            assert file.read() == b"333"
    assert os.path.exists(path) == place.is_local
    with open_file(place, place.child("a.tar")) as file:
        assert file.read() == b"1"


def test_a_file_that_vanished_is_named_with_advice(url):
    place = open_place(url)
    with pytest.raises(DataError, match=r"none\.tar cannot be read.*repeat the same command to resume"):
        open_file(place, place.child("none.tar"))
    with (
        pytest.raises(DataError, match=r"none\.tar cannot be read"),
        local_copy(place.fs, place.child("none.tar")),
    ):
        pass


def test_links_are_followed_once_and_broken_ones_are_found_before_work_begins(tmp_path, caplog):
    source, other = tmp_path / "source", tmp_path / "other"
    for folder in (source, other):
        folder.mkdir()
    (other / "x.tar").write_bytes(b"12345")
    (source / "link").symlink_to(other)
    (source / "back").symlink_to(source)
    (source / "x.tar").symlink_to(other / "x.tar")
    found = find_files(open_place(source))
    assert [(file.name, file.size) for file in found] == [("link/x.tar", 5), ("x.tar", 5)]
    assert "links back to a folder that contains it" in caplog.text
    check_readable(open_place(source), found)
    assert list_sizes(open_place(source)) == {"x.tar": 5}
    (other / "x.tar").unlink()
    with pytest.raises(DataError, match="a link to nothing"):
        check_readable(open_place(source), find_files(open_place(source)))


def test_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "x.tar")
    place = open_place(tmp_path)
    with pytest.raises(DataError, match=r"x\.tar cannot be read: not a plain file"):
        check_readable(place, find_files(place))


def test_a_file_whose_name_holds_a_star_is_no_pattern(tmp_path):
    (tmp_path / "a*.tar").write_bytes(b"1")
    (tmp_path / "ab.tar").write_bytes(b"2")
    place = open_place(tmp_path / "a*.tar")
    assert not is_pattern(place)
    assert [file.name for file in find_files(place)] == ["a*.tar"]


@pytest.mark.parametrize(
    ("source", "root"),
    [
        ("", ""),
        ("/", ""),
        ("/a.tar", ""),
        ("/*.tar", ""),
        ("/sub/*/x", "/sub"),
        ("/su*/x", ""),
        ("/{0..1}.tar", ""),
        ("/sub/{a,b}/*", "/sub"),
        ("/s{u,v}b/x", ""),
        ("/{sub}", "/{sub}"),
        ("/{sub}/*", "/{sub}"),
    ],
)
def test_the_folder_that_is_searched_ends_before_the_pattern(source, root, tmp_path):
    (tmp_path / "a.tar").touch()
    assert root_of(open_place(f"{tmp_path}{source}")) == f"{tmp_path}{root}"


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [("a", "a", True), ("a", "a/b", True), ("a", "ab", False), ("a/b", "a", False), ("link", "a/b", True)],
)
def test_a_place_holds_itself_and_everything_inside_it(outer, inner, expected, tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert holds(open_place(tmp_path / outer), open_place(tmp_path / inner)) == expected
    assert not holds(open_place(tmp_path / outer), open_place(f"memory:/{tmp_path}/{inner}"))


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ("a", "a/out", "the destination .*/a/out is inside"),
        ("a", "a", "is inside"),
        ("a/b", "a", "the source .*/a/b is inside"),
        ("a/**/*.tar", "a/out", "the destination"),
        ("a/*/x.tar", "a/out", "the destination"),
        ("a/{b,c}", "a/b/out", "the destination"),
        ("a/{b/x,c}.tar", "a/out", "the destination"),
    ],
)
def test_source_and_destination_may_not_hold_each_other(source, target, words, tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(DataError, match=words):
        check_apart(open_place(tmp_path / source), open_place(tmp_path / target))


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("a", "out"),
        ("a", "a-out"),
        ("a/*.tar", "a/out"),
        ("a/x", "a/out"),
        ("a/{b,c}", "a/out"),
        ("a/{0..5}.tar", "a/out"),
    ],
)
def test_a_destination_next_to_what_is_read_is_fine(source, target, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").touch()
    check_apart(open_place(tmp_path / source), open_place(tmp_path / target))


@pytest.mark.parametrize(("url", "words"), [("", "is empty"), ("nonsuch://x", "nonsuch://x cannot be opened")])
def test_an_address_that_means_nothing_is_refused(url, words):
    with pytest.raises(DataError, match=words):
        open_place(url)
