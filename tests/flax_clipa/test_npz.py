"""Untrusted npz files: all faults are listed, nothing is executed and nothing is written."""

import io
import struct
import zipfile
import zlib

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file
from support.flax_checkpoints import convert, tiny_arrays, training_arrays, write_npz

from clipa_eqx.errors import ConversionError
from conversion.flax_clipa.npz import NpzFile

pytestmark = pytest.mark.usefixtures("quick_compile")

KERNEL = "params/txt/head/kernel"


def npy(array, **changes) -> bytes:
    """The bytes of an .npy file; ``changes`` make its header false."""
    file = io.BytesIO()
    header = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape} | changes
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + array.tobytes()


def archive(path, members, *, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members:
            file.writestr(f"{name}.npy", data)
    return path


def members(**changes):
    """All arrays of the tiny checkpoint, some of them replaced by other bytes, or left out (None)."""
    whole = {name: npy(array) for name, array in tiny_arrays().items()} | changes
    return [(name, data) for name, data in whole.items() if data is not None]


def assert_refused(source, tmp_path, *patterns):
    before = {entry.name for entry in tmp_path.iterdir()}
    with pytest.raises(ConversionError) as caught:
        convert(source, tmp_path / "model")
    for pattern in patterns:
        assert pattern in str(caught.value)
    assert {entry.name for entry in tmp_path.iterdir()} == before | {"vocab.txt", "config.json"}


class Exploding:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


def with_nan(array):
    array = array.copy()
    array.flat[0] = np.nan
    return array


ARRAY = np.ones((32, 16), np.float32)
WRONG = {
    "object arrays": (npy(ARRAY, descr="|O"), "pickled: params/txt/head/kernel"),
    "integers": (npy(ARRAY.astype(np.int32)), "dtype: txt/head/kernel is int32"),
    "doubles": (npy(ARRAY.astype(np.float64)), "dtype: txt/head/kernel is float64"),
    "complex": (npy(ARRAY.astype(np.complex64)), "dtype: txt/head/kernel is complex64"),
    "text": (npy(ARRAY.astype("U3")), "dtype: txt/head/kernel is <U3"),
    "records": (npy(ARRAY, descr=[("a", "<f4")]), "header: params/txt/head/kernel"),
    "another shape": (npy(ARRAY.T), "shape: txt/head/kernel is (16, 32), expected (32, 16) for text/head/weight"),
    "no numbers": (npy(with_nan(ARRAY)), "not finite: txt/head/kernel"),
    "infinite": (npy(ARRAY * np.inf), "not finite: txt/head/kernel"),
    "an absurd shape": (npy(ARRAY, shape=(2**40, 2**40)), "header: params/txt/head/kernel"),
    "a shape larger than the data": (
        npy(ARRAY, shape=(1600, 16)),
        "declares float32[1600, 16], which is 102,400 bytes",
    ),
    "a negative shape": (npy(ARRAY, shape=(-32, -16)), "header: params/txt/head/kernel"),
    "an empty array": (npy(ARRAY[:0]), "header: params/txt/head/kernel"),
    "data after the array": (npy(ARRAY) + b"more", "damaged: params/txt/head/kernel"),
    "no header": (b"not an array at all, just words that go on for a while", "damaged: params/txt/head/kernel"),
    "a later version": (b"\x93NUMPY\x03\x00" + npy(ARRAY)[8:], "npy version (3, 0)"),
    "code as header": (
        b"\x93NUMPY\x01\x00" + struct.pack("<H", 40) + b"__import__('os').abort()".ljust(39) + b"\n" + ARRAY.tobytes(),
        "damaged: params/txt/head/kernel",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_member_that_is_no_weight_is_refused(what, tmp_path):
    data, message = WRONG[what]
    assert_refused(archive(tmp_path / "x.npz", members(**{KERNEL: data})), tmp_path, message)


def test_pickles_are_never_loaded(tmp_path):
    file = io.BytesIO()
    np.lib.format.write_array(file, np.array([Exploding()], dtype=object), allow_pickle=True)
    assert_refused(archive(tmp_path / "x.npz", members(**{KERNEL: file.getvalue()})), tmp_path, "pickled")


def test_all_problems_are_listed_at_once(tmp_path):
    changes = {
        KERNEL: None,
        "params/t": npy(np.full(1, np.inf, np.float32)),
        "params/img/cls": npy(np.ones((1, 32), np.float32)),
        "params/../../etc/passwd": npy(ARRAY),
        "params/img/Transformer/encoderblock_7/extra": npy(ARRAY),
    }
    path = archive(tmp_path / "x.npz", members(**changes))
    assert_refused(
        path,
        tmp_path,
        "missing: txt/head/kernel (32, 16) for text/head/weight",
        "unused: ../../etc/passwd (32, 16)",
        "unused: img/Transformer/encoderblock_7/extra",
        "shape: img/cls is (1, 32), expected (1, 1, 32) for image/class_token",
    )


def test_damage_and_values_that_are_not_finite_are_listed_together(tmp_path):
    path = archive(tmp_path / "x.npz", members(**{"params/t": npy(np.full(1, np.inf, np.float32))}))
    data, target = bytearray(path.read_bytes()), tiny_arrays()[KERNEL].tobytes()
    data[data.index(target) + 9] ^= 1
    path.write_bytes(data)
    assert_refused(path, tmp_path, "2 problems", "not finite: t", "damaged:", "txt/head/kernel", "checksum")


def test_duplicate_names_are_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = archive(tmp_path / "x.npz", [*members(), (KERNEL, npy(ARRAY))])
    assert_refused(path, tmp_path, "duplicate: params/txt/head/kernel.npy occurs 2 times")


def test_encrypted_members_are_refused(tmp_path):
    path = archive(tmp_path / "x.npz", members())
    data = bytearray(path.read_bytes())
    central = data.index(b"PK\x01\x02")
    data[central + 8] |= 1
    path.write_bytes(data)
    assert_refused(path, tmp_path, "encrypted: ")


def test_other_compressions_and_other_members_are_refused(tmp_path):
    path = archive(tmp_path / "x.npz", members(), compression=zipfile.ZIP_BZIP2)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("readme.txt", "hello")
    assert_refused(path, tmp_path, "compression: ", "uses method 12", "unused: 'readme.txt' is not an .npy array")


def test_an_archive_that_would_grow_beyond_reason_is_refused_before_it_does(tmp_path):
    bomb = npy(np.zeros((1, 1), np.float32), shape=(2**14, 5000)) + bytes(4 * 2**14 * 5000 - 4)
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr("params/txt/Embed_0/embedding.npy", bomb)
    del bomb
    assert_refused(tmp_path / "x.npz", tmp_path, "too large: ", "would become 327,680,000")


def test_a_member_that_is_longer_than_its_directory_says_is_cut_off_with_an_error(tmp_path):
    array = tiny_arrays()[KERNEL]
    path = archive(tmp_path / "x.npz", members(**{KERNEL: npy(array) + bytes(10**6)}), compression=zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    true, lie = struct.pack("<L", len(npy(array)) + 10**6), struct.pack("<L", len(npy(array)))
    assert data.count(true) == 2  # in the local header and in the directory
    path.write_bytes(data.replace(true, lie))
    assert_refused(path, tmp_path, "damaged: ")


def test_files_that_are_not_archives_are_refused(tmp_path):
    for content in (b"", b"PK", b"version https://git-lfs.github.com/spec/v1\n"):
        (tmp_path / "x.npz").write_bytes(content)
        assert_refused(tmp_path / "x.npz", tmp_path, "x.npz is not a readable npz archive")
    (tmp_path / "x.npz").write_bytes(b"PK\x05\x06" + bytes(18))
    assert_refused(tmp_path / "x.npz", tmp_path, "empty: the archive has no members")
    assert_refused(tmp_path / "absent.npz", tmp_path, "absent.npz is not a file")
    assert_refused(tmp_path, tmp_path, "is not a file")


SAME = {
    "Fortran order": lambda a: npy(np.ascontiguousarray(a.T), shape=a.shape, fortran_order=True),
    "big-endian": lambda a: npy(a.astype(">f4")),
    "version 2 headers": lambda a: b"\x93NUMPY\x02\x00" + npy(a)[8:10] + b"\0\0" + npy(a)[10:],
}


@pytest.mark.parametrize("how", SAME)
def test_equal_arrays_stored_otherwise_give_the_same_model(how, tmp_path):
    plain = load_file(convert(write_npz(tmp_path / "a.npz", tiny_arrays()), tmp_path / "a") / "model.safetensors")
    path = archive(tmp_path / "b.npz", [(name, SAME[how](array)) for name, array in tiny_arrays().items()])
    other = load_file(convert(path, tmp_path / "b") / "model.safetensors")
    assert all(np.array_equal(plain[name], other[name]) for name in plain)


def test_uncompressed_arrays_are_mapped_and_compressed_ones_read(tmp_path):
    for compressed in (False, True):
        path = write_npz(
            tmp_path / f"{compressed}.npz", training_arrays(mu_dtype=ml_dtypes.bfloat16), compressed=compressed
        )
        with NpzFile(path) as file, np.load(path) as plain:
            assert list(file.tensors) == plain.files
            for name in plain.files:
                ours, theirs = file.read(name), plain[name]
                assert (file.tensors[name].shape, file.tensors[name].dtype) == (ours.shape, ours.dtype)
                assert ours.tobytes() == theirs.tobytes()
            kernel = file.read(KERNEL)
            assert isinstance(kernel.base, np.memmap) != compressed
            assert file.tensors["opt/1/0/1/t"].dtype == ml_dtypes.bfloat16


def test_the_checksum_that_is_compared_is_that_of_the_whole_member():
    data = npy(ARRAY)
    assert zlib.crc32(data) == zlib.crc32(ARRAY.tobytes(), zlib.crc32(data[: len(data) - ARRAY.nbytes]))
