"""Decoding: formats, reduced scale, and one clear error for every kind of bad file."""

import io
import math
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from support.image_files import encode

from clipa_eqx.data.images.decode import decode_image, decode_jpeg_scaled, image_size, jpeg_scale
from clipa_eqx.errors import DataError


def ramp(height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([255 * rows // height, 255 * columns // width, 0 * rows + 90], axis=-1).astype(np.uint8)


JPEG = simplejpeg.encode_jpeg(ramp(96, 160), quality=90)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})])
def test_lossless_formats_return_the_pixels(kind, options):
    image = ramp(20, 31)
    np.testing.assert_array_equal(decode_image(encode(image, kind, **options)), image)


def test_alpha_is_dropped_without_blending():
    image = ramp(8, 9)
    with_alpha = np.concatenate([image, np.full((8, 9, 1), 7, np.uint8)], axis=-1)
    np.testing.assert_array_equal(decode_image(encode(with_alpha, "PNG")), image)


def test_sixteen_bits_keep_the_high_byte():
    gray = (np.arange(6 * 7).reshape(6, 7) * 1561).astype(np.uint16)
    got = decode_image(encode(gray, "PNG"))
    np.testing.assert_array_equal(got, np.repeat((gray >> 8).astype(np.uint8)[..., None], 3, axis=-1))


def test_gif_gives_its_first_frame():
    frames = [Image.new("RGB", (6, 5), color) for color in ("red", "blue")]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert (decode_image(file.getvalue()) == (255, 0, 0)).all()


def test_cmyk_without_the_adobe_mark_is_plain_ink():
    plain = np.full((16, 16, 4), (0, 255, 255, 0), np.uint8)  # red, as Pillow counts ink
    file = io.BytesIO()
    Image.frombytes("CMYK", (16, 16), plain.tobytes()).save(file, "JPEG", quality=100)
    marked = file.getvalue()
    at = marked.index(b"\xff\xee")
    unmarked = marked[:at] + marked[at + 2 + int.from_bytes(marked[at + 2 : at + 4], "big") :]
    assert np.abs(decode_image(marked).astype(int) - (255, 0, 0)).max() <= 2
    # The same stored levels, now read as ink: full cyan under full black.
    assert np.abs(decode_image(unmarked).astype(int)).max() <= 2


def test_result_can_be_written_to():
    for data in (JPEG, encode(ramp(5, 4), "PNG")):
        decode_image(data)[0, 0] = 1


@pytest.mark.parametrize(
    ("least", "scale"),
    [((96, 160), 1), ((49, 20), 1), ((48, 80), 1 / 2), ((30, 0), 1 / 2), ((24, 40), 1 / 4), ((1, 1), 1 / 8)],
)
def test_scaled_decoding_takes_the_smallest_scale_that_covers(least, scale):
    wanted = {"min_height": least[0], "min_width": least[1]}
    got = decode_jpeg_scaled(JPEG, **wanted)
    assert jpeg_scale(image_size(JPEG), **wanted) == scale
    assert got.shape == (math.ceil(96 * scale), math.ceil(160 * scale), 3)


def test_scaled_decoding_of_odd_sides_agrees_with_the_announced_scale():
    for height, width in ((33, 17), (100, 101), (7, 250)):
        data = simplejpeg.encode_jpeg(ramp(height, width))
        for least in range(1, height + 1):
            scale = jpeg_scale(image_size(data), min_height=least, min_width=0)
            got = decode_jpeg_scaled(data, min_height=least)
            assert got.shape[:2] == (math.ceil(height * scale), math.ceil(width * scale))


PNG = encode(ramp(40, 40), "PNG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "0 bytes"),
        (b"a text, not an image", "expected a complete file"),
        (JPEG[:3], "header"),
        (JPEG[: len(JPEG) // 2], "Premature end"),
        (JPEG[:-2], "Premature end"),
        (PNG[: len(PNG) // 2], "PNG"),
        (PNG[:20], "expected a complete file"),
        (encode(ramp(9, 9), "TIFF"), "expected a complete file"),
    ],
    ids=["empty", "text", "jpeg magic", "half jpeg", "jpeg without end", "half png", "png header", "tiff"],
)
def test_bad_data_is_one_clear_error(data, reason):
    with pytest.raises(DataError, match=reason) as caught:
        decode_image(data)
    if data:
        assert f"{len(data)} bytes" in str(caught.value)


def test_missing_rows_are_an_error():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = bytearray(simplejpeg.encode_jpeg(noise, quality=90))
    middle = len(data) // 2
    data[middle : middle + 2] = b"\xff\xd9"  # an end marker in the middle of the image
    with pytest.raises(DataError, match="Corrupt JPEG"):
        decode_image(bytes(data))


def test_stray_bytes_before_the_end_marker_are_tolerated():
    stray = JPEG[:-2] + b"\x00\x00\x00" + JPEG[-2:]
    np.testing.assert_array_equal(decode_image(stray), decode_image(JPEG))


@pytest.mark.parametrize("data", [JPEG, PNG], ids=["jpeg", "png"])
def test_images_over_the_limit_are_refused_by_their_header(data):
    height, width = image_size(data)
    decode_image(data, max_pixels=height * width)
    for read in (decode_image, image_size):
        with pytest.raises(DataError, match=f"{width} x {height} pixels is over the limit"):
            read(data, max_pixels=height * width - 1)


def test_a_bomb_is_refused_whatever_its_size_says():
    # A PNG header that claims 60000 x 60000 pixels, beyond Pillow's own limit.
    claim = bytearray(PNG)
    claim[16:24] = (60000).to_bytes(4, "big") * 2
    claim[29:33] = zlib.crc32(bytes(claim[12:29])).to_bytes(4, "big")
    with pytest.raises(DataError, match="bomb"):
        decode_image(bytes(claim))


def test_scaled_decoding_refuses_other_formats():
    with pytest.raises(DataError, match="decode_image"):
        decode_jpeg_scaled(PNG)
