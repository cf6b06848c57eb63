"""Braces in the names of sources."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.conversions import call, error_of, keys
from support.dumps import samples, write_tars

from clipa_eqx.errors import DataError
from conversion.records.braces import expand_braces, has_braces


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{00000..00002}.tar", "00000.tar 00001.tar 00002.tar"),
        ("{8..11}", "8 9 10 11"),
        ("{08..10}", "08 09 10"),
        ("{-1..1}", "-1 0 1"),
        ("{3..1}", "3 2 1"),
        ("{0..9..4}", "0 4 8"),
        ("{a..c}{x,y}", "ax ay bx by cx cy"),
        ("a{,b}", "a ab"),
        ("{a,b{1..2},{c,d}}.tar", "a.tar b1.tar b2.tar c.tar d.tar"),
        ("x{a,b}/*.tar", "xa/*.tar xb/*.tar"),
        ("{{a,b}}", "{a} {b}"),
        ("{x{a,b}", "{xa {xb"),
    ],
)
def test_braces_stand_for_what_a_shell_makes_of_them(text, expected):
    assert has_braces(text)
    assert expand_braces(text) == expected.split(" ")


@pytest.mark.parametrize(
    "text", ["", "a.tar", "{a}", "{}", "{", "}{", "{a", "a}", "{1..}", "{1...3}", "{a,b", "{ab..c}"]
)
def test_other_braces_are_characters(text):
    assert not has_braces(text)
    assert expand_braces(text) == [text]


@given(st.lists(st.lists(st.text("ab.0", max_size=3), min_size=2, max_size=3), max_size=4))
def test_lists_multiply(lists):
    text = "/".join(f"{{{','.join(entries)}}}" for entries in lists)
    found = expand_braces(text)
    expected = [""]
    for i, entries in enumerate(lists):
        expected = [f"{before}{'/' if i else ''}{entry}" for before in expected for entry in entries]
    assert found == expected


@pytest.mark.parametrize("text", ["{0..9999999}", "{0..99999}{0..99999}", "{a,b}" * 50, "{" * 101 + "a,b" + "}" * 101])
def test_a_slip_of_a_number_ends_at_once(text):
    with pytest.raises(DataError, match=r"mean more than 1,000,000 names|more than 100 braces"):
        expand_braces(text)


def test_a_source_with_braces_is_converted_and_a_missing_shard_is_an_error(tmp_path, capsys):
    write_tars(tmp_path / "source", [samples(1, first=i) for i in range(4)])
    for kind in ("webdataset", "img2dataset"):
        out = tmp_path / f"out-{kind}"
        assert call(kind, f"{tmp_path}/source/{{00001..00003}}.tar", out, workers=2) == 0
        assert keys(out) == [f"{i:09d}" for i in (1, 2, 3)]
    capsys.readouterr()
    assert call("webdataset", f"{tmp_path}/source/{{00001..00005}}.tar", tmp_path / "more") == 2
    message = error_of(capsys)
    assert "2 do not exist or hold no files" in message
    assert "00004.tar" in message
    assert "00005.tar" in message
    assert not (tmp_path / "more").exists()


def test_a_pattern_without_quotes_gets_a_short_message(tmp_path, capsys):
    names = [f"{i:05d}.tar" for i in range(100_000)]
    assert call("webdataset", *names, tmp_path / "out") == 2
    message = error_of(capsys)
    assert "unrecognized arguments: 00002.tar 00003.tar" in message
    assert "a pattern of many names needs quotes, such as 'folder/*.tar'" in message
    assert len(message) < 500
