"""Files that must hold one JSON object: everything else is refused with the caller's error class and hint."""

import pytest

from clipa_eqx.errors import CheckpointError, ConversionError
from clipa_eqx.json_files import read_json_object


def test_an_object_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"größe": [1, 2.5, null]}', encoding="utf-8")
    found = read_json_object(tmp_path / "a.json", error=ConversionError, hint="unused")
    assert found == {"größe": [1, 2.5, None]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        (b"{", "cannot be read"),
        (b'{"a": "\xff"}', "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b"[1]", "holds list, expected an object"),
        (b"null", "holds NoneType, expected an object"),
    ],
    ids=["absent", "cut", "not utf-8", "too deep", "list", "null"],
)
@pytest.mark.parametrize("error", [CheckpointError, ConversionError])
def test_anything_else_is_the_callers_error_with_its_hint(content, words, error, tmp_path):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error) as raised:
        read_json_object(path, error=error, hint="get the file again")
    message = str(raised.value)
    assert message.startswith(f"{path} {words}")
    assert message.endswith("; get the file again")
