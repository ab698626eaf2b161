"""Reading photos: every common kind of file is handled right or refused in one line."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from ortcam.errors import ImageError
from ortcam.image import as_photo, decode_photo, read_photo


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def dog(photos: dict[str, Path]) -> Image.Image:
    return Image.open(photos["imagenet_00"]).convert("RGB").resize((120, 80))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_files_give_the_same_pixels_as_pillow(dog: Image.Image, kind: str) -> None:
    assert np.array_equal(decode_photo(encoded(dog, kind)), np.asarray(dog))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_files_agree_with_pillow(dog: Image.Image, kind: str) -> None:
    data = encoded(dog, kind, quality=90)
    theirs = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(decode_photo(data) - theirs).mean() < 1  # decoders may round differently


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(dog: Image.Image, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(dog, kind, exif=exif, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {}))
    from PIL import ImageOps

    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")).astype(int)
    ours = decode_photo(data)
    assert ours.shape == upright.shape
    assert np.abs(ours - upright).mean() < 1


def test_16_bit_becomes_8_bit(dog: Image.Image) -> None:
    grey = np.asarray(dog.convert("L"))
    data = encoded(Image.fromarray(grey.astype(np.uint16) * 257), "PNG")
    assert np.array_equal(decode_photo(data), np.repeat(grey[:, :, None], 3, axis=2))


@pytest.mark.parametrize("mode", ["L", "P", "1"])
def test_grey_and_palette_files_become_rgb(dog: Image.Image, mode: str) -> None:
    image = dog.convert(mode)
    assert np.array_equal(decode_photo(encoded(image, "PNG")), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_white(dog: Image.Image, mode: str) -> None:
    image = dog.convert(mode)
    image.putalpha(Image.linear_gradient("L").resize(dog.size))
    white = Image.new("RGBA", dog.size, (255, 255, 255, 255))
    expected = np.asarray(Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")).astype(int)
    assert np.abs(decode_photo(encoded(image, "PNG")) - expected).max() <= 1


def test_opaque_alpha_changes_nothing(dog: Image.Image) -> None:
    assert np.array_equal(decode_photo(encoded(dog.convert("RGBA"), "PNG")), np.asarray(dog))


def test_cmyk_jpeg_becomes_rgb(dog: Image.Image) -> None:
    data = encoded(dog.convert("CMYK"), "JPEG", quality=95)
    theirs = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(decode_photo(data) - theirs).mean() < 2


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("empty.jpg", b"", "is empty"),
        ("text.jpg", b"this is no photo\n" * 20, "no image that can be decoded"),
        ("zeros.png", bytes(4096), "no image that can be decoded"),
    ],
)
def test_files_that_are_no_images_are_refused(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ImageError, match=message) as caught:
        read_photo(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.97])
def test_a_cut_file_is_refused(dog: Image.Image, kind: str, kept: float) -> None:
    data = encoded(dog, kind)
    with pytest.raises(ImageError):
        decode_photo(data[: int(len(data) * kept)])


def test_a_cut_jpeg_with_a_thumbnail_is_refused(dog: Image.Image) -> None:
    """The thumbnail inside the EXIF block has an end marker of its own."""
    thumbnail = encoded(dog.resize((16, 16)), "JPEG")
    data = encoded(dog, "JPEG")
    comment = b"\xff\xfe" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    whole = data[:2] + comment + data[2:]
    assert decode_photo(whole).shape == (80, 120, 3)
    with pytest.raises(ImageError, match="cut short"):
        decode_photo(whole[: len(whole) * 3 // 4])


def test_what_is_appended_to_a_jpeg_does_not_count(dog: Image.Image) -> None:
    """As in the motion photos of phones; random bytes hold any marker."""
    random = np.random.default_rng(0)
    for options in ({}, {"progressive": True}, {"restart_marker_rows": 1}):
        data = encoded(dog, "JPEG", **options)
        for _ in range(5):
            assert np.array_equal(decode_photo(data + random.bytes(100_000)), decode_photo(data))
        with pytest.raises(ImageError, match="cut short"):
            decode_photo(data[:-2])


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file"):
        read_photo(tmp_path / "nothing.jpg")
    with pytest.raises(ImageError, match="cannot read"):
        read_photo(tmp_path)


def test_a_huge_photo_is_refused_before_it_is_decoded() -> None:
    """20,000 x 20,000 pixels in a file of a few hundred bytes: no memory must be taken for them."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    with pytest.raises(ImageError, match="20000x20000 pixels"):
        decode_photo(data, "bomb.png")


def test_the_limit_of_pixels_holds_for_jpeg_and_bmp(dog: Image.Image) -> None:
    for kind in ("JPEG", "BMP"):
        with pytest.raises(ImageError, match="120x80"):
            decode_photo(encoded(dog, kind), max_pixels=9599)
        assert decode_photo(encoded(dog, kind), max_pixels=9600).shape == (80, 120, 3)


@settings(max_examples=200, deadline=None)
@given(
    hnp.arrays(
        dtype=st.sampled_from([np.uint8, np.uint16, np.int32, np.bool_]),
        shape=hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5),
    )
)
def test_any_array_is_a_photo_or_an_error(pixels: np.ndarray) -> None:
    try:
        photo = as_photo(pixels)
    except ImageError as error:
        assert "expected" in str(error)
    else:
        assert photo.dtype == np.uint8
        assert photo.shape == (*pixels.shape[:2], 3)


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=400), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF", b"GIF89a", b"BM"])
)
def test_any_bytes_are_a_photo_or_an_error(body: bytes, magic: bytes) -> None:
    with contextlib.suppress(ImageError):
        assert decode_photo(magic + body).dtype == np.uint8
