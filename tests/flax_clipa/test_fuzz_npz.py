"""Mutated checkpoints: each is refused with one error and leaves nothing behind, or gives the original weights."""

import io
import zipfile

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.flax_checkpoints import convert, tiny_arrays, training_arrays, write_npz

from clipa_eqx.errors import ClipaError

pytestmark = pytest.mark.usefixtures("quick_compile")

# Each mutation is tried on a params-only, a compressed and a training checkpoint in turn.
DEFAULT, MANY = 510, 6000


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    whole = [
        write_npz(folder / "a.npz", tiny_arrays()),
        write_npz(folder / "b.npz", tiny_arrays(), compressed=True),
        write_npz(folder / "c.npz", training_arrays()),
    ]
    expected = load_file(convert(whole[0], folder / "model") / "model.safetensors")
    return [path.read_bytes() for path in whole], expected


def test_mutated_files_never_give_a_traceback_or_a_partial_model(sources, tmp_path):
    run(sources, tmp_path, range(DEFAULT))


@pytest.mark.slow
def test_many_mutated_files_never_give_a_traceback_or_a_partial_model(sources, tmp_path):
    run(sources, tmp_path, range(DEFAULT, MANY))


def run(sources, tmp_path, seeds):
    originals, expected = sources
    refused = 0
    for seed in seeds:
        rng = np.random.default_rng(seed)
        original = originals[seed % len(originals)]
        kind = KINDS[seed // len(originals) % len(KINDS)]
        (tmp_path / "x.npz").write_bytes(kind(original, rng))
        try:
            convert(tmp_path / "x.npz", tmp_path / "model")
        except ClipaError:
            refused += 1
            assert {entry.name for entry in tmp_path.iterdir()} == {"x.npz", "vocab.txt", "config.json"}, (seed, kind)
            continue
        except BaseException as error:
            raise AssertionError(f"seed {seed}, {kind.__name__}: {error!r}") from error
        # The mutation hit something that does not matter, such as a date in the directory of the archive.
        found = load_file(tmp_path / "model" / "model.safetensors")
        assert all(np.array_equal(found[name], expected[name]) for name in expected), (seed, kind)
        for entry in sorted((tmp_path / "model").rglob("*"), reverse=True):
            entry.unlink() if entry.is_file() else entry.rmdir()
        (tmp_path / "model").rmdir()
    assert refused > 0.7 * len(seeds)


def flip(data, rng):
    """Flip bits anywhere."""
    out = bytearray(data)
    for at in rng.integers(0, len(out), rng.integers(1, 9)):
        out[at] ^= 1 << int(rng.integers(8))
    return bytes(out)


def flip_in_structure(data, rng):
    """Change bytes in the headers of the archive, of its members and arrays, or in its directory."""
    out = bytearray(data)
    starts = [
        at for magic in (b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"\x93NUMPY") for at in find_all(data, magic)
    ]
    for at in rng.choice(starts, rng.integers(1, 4)):
        where = min(int(at) + int(rng.integers(0, 80)), len(out) - 1)
        out[where] = int(rng.integers(256))
    return bytes(out)


def truncate(data, rng):
    return data[: rng.integers(0, len(data))]


def splice(data, rng):
    """Copy a piece to another place, overwriting the bytes there or inserting it."""
    start, to = rng.integers(0, len(data), 2)
    piece = data[start : start + rng.integers(1, 4000)]
    return data[:to] + piece + data[to + (len(piece) if rng.random() < 0.5 else 0) :]


def zero(data, rng):
    start = int(rng.integers(0, len(data)))
    size = int(rng.integers(1, 2000))
    return data[:start] + bytes(min(size, len(data) - start)) + data[start + size :]


def change_an_array(data, rng):
    """Write a complete archive with correct checksums, with one wrong member."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
        compression = archive.infolist()[0].compress_type
    name = str(rng.choice(list(members)))
    array = np.load(io.BytesIO(members[name]))
    out = io.BytesIO()
    match int(rng.integers(10)):
        case 0:
            np.save(out, array.astype(rng.choice(["i4", "f8", "c8", "bool", "S3", "u1"])))
        case 1:
            np.save(out, array.reshape(-1)[: rng.integers(0, array.size + 1)])
        case 2:
            array = np.atleast_1d(array).astype(np.float32)
            array.flat[rng.integers(array.size)] = rng.choice([np.nan, np.inf, -np.inf])
            np.save(out, array)
        case 3:
            np.save(out, array[None])
        case 4:
            np.save(out, np.zeros(rng.integers(0, 3, 5), np.float32))
        case 5:
            header = {
                "descr": "<f4",
                "fortran_order": bool(rng.random() < 0.5),
                "shape": tuple(rng.integers(-2, 2**40, 2).tolist()),
            }
            np.lib.format.write_array_header_1_0(out, header)
        case 6:
            out.write(members[name][: rng.integers(0, 128)])
        case 7:
            members["/".join(rng.choice(["..", "params", "img", "", "opt", "1", "0"], 4))] = members.pop(name)
        case 8:
            del members[name]
        case _:
            np.save(out, np.array([{"a": 1}], dtype=object))
    if name in members and out.getvalue():
        members[name] = out.getvalue()
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", compression) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return target.getvalue()


def find_all(data, magic):
    found, at = [], data.find(magic)
    while at >= 0:
        found.append(at)
        at = data.find(magic, at + 1)
    return found


KINDS = (flip, flip_in_structure, truncate, splice, zero, change_an_array)
