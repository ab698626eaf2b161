"""Reading photos: every common kind of file is handled right or refused in one line."""

from __future__ import annotations

import contextlib
import io
import struct
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageCms, ImageOps

from ortcam.errors import ImageError
from ortcam.model.image import SUFFIXES, as_photo, decode_photo, read_photo
from ortcam.model.pixels import read_pixels


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
        ("text.jpg", b"this is no photo\n" * 20, "not an image that can be decoded"),
        ("zeros.png", bytes(4096), "not an image that can be decoded"),
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


# --- Files of other kinds ---


def over_white(image: Image.Image) -> np.ndarray:
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")).astype(int)


def see_through(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("AVIF", {})])
@pytest.mark.parametrize("orientation", [1, 2, 4, 5, 6, 7])
def test_orientation_and_transparency_together(dog: Image.Image, kind: str, options: dict, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(see_through(dog), kind, exif=exif, **options)
    upright = over_white(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    ours = decode_photo(data)
    assert ours.shape == upright.shape
    assert np.abs(ours - upright).max() <= 1


def tiff(pixels: np.ndarray, photometric: str = "rgb", **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, photometric=photometric, **options)
    return buffer.getvalue()


def test_tiff_of_16_bits_keeps_its_colours(dog: Image.Image) -> None:
    pixels = np.asarray(dog)
    for order in "<>":
        assert np.array_equal(decode_photo(tiff(pixels.astype(np.uint16) * 257, byteorder=order)), pixels)
    grey = pixels[:, :, 0].astype(np.uint16) * 257
    assert np.array_equal(decode_photo(tiff(65535 - grey, "miniswhite"))[:, :, 0], pixels[:, :, 0])


def test_a_fourth_sample_of_tiff_counts_only_if_it_is_an_alpha(dog: Image.Image) -> None:
    pixels, half = np.asarray(dog), np.full((80, 120, 1), 128, np.uint8)
    straight = decode_photo(tiff(np.dstack([pixels, half]), extrasamples=["unassalpha"]))
    premultiplied = decode_photo(tiff(np.dstack([pixels // 2, half]), extrasamples=["assocalpha"]))
    expected = (pixels.astype(float) * 128 + 255 * 127) / 255
    assert np.abs(straight - expected).max() <= 1
    assert np.abs(premultiplied - expected).max() <= 1
    assert np.array_equal(decode_photo(tiff(np.dstack([pixels, half * 0]), extrasamples=["unspecified"])), pixels)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "uint32", "float16", "float32", "float64"])
@pytest.mark.parametrize("grey", [True, False])
def test_tiff_whose_range_is_not_stated_is_refused(dog: Image.Image, dtype: str, grey: bool) -> None:
    pixels = (np.asarray(dog) / 255).astype(dtype)
    data = tiff(pixels[:, :, 0], "minisblack") if grey else tiff(pixels)
    with pytest.raises(
        ImageError, match=f"samples of type {dtype} and does not state which values are black"
    ) as caught:
        decode_photo(data, "scan.tif")
    assert str(caught.value).startswith("scan.tif")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("dtype", "low", "high"), [("float32", 0.0, 1.0), ("float32", -2.0, 3.0), ("int32", 0, 4095)])
@pytest.mark.parametrize("grey", [True, False])
def test_tiff_whose_range_is_stated_is_scaled(
    dog: Image.Image, dtype: str, low: float, high: float, grey: bool
) -> None:
    """SMinSampleValue and SMaxSampleValue (340, 341): the values of black and white."""
    pixels = np.asarray(dog)[:, :, 0] if grey else np.asarray(dog)
    values = (low + pixels / 255 * (high - low)).astype(dtype)
    code, count = "f" if dtype == "float32" else "i", 1 if grey else 3  # a value for each sample of a pixel
    limits = [(340, code, count, (low,) * count, True), (341, code, count, (high,) * count, True)]
    data = tiff(values, "minisblack" if grey else "rgb", extratags=limits)
    assert np.abs(decode_photo(data) - (pixels[:, :, None] if grey else pixels).astype(int)).max() <= 1


def test_lab_tiff_has_the_colours_of_littlecms(dog: Image.Image) -> None:
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    converted = ImageCms.profileToProfile(dog, srgb, lab, outputMode="LAB")
    theirs = np.asarray(ImageCms.profileToProfile(converted, lab, srgb, outputMode="RGB")).astype(int)
    data = encoded(converted, "TIFF")
    assert np.abs(decode_photo(data) - theirs).mean() < 0.5
    assert np.abs(decode_photo(data) - theirs).max() <= 8  # LittleCMS interpolates in tables
    samples = tifffile.imread(io.BytesIO(data)).astype(int)
    samples[:, :, 1:] = (samples[:, :, 1:] + 128) % 256 - 128  # signed in CIELab
    unsigned = (samples + np.array([0, 128, 128])).astype(np.uint8)
    assert np.array_equal(decode_photo(tiff(unsigned, "icclab")), decode_photo(data))
    fine = (samples * [257, 256, 256] % 65536).astype(np.uint16)
    assert np.abs(decode_photo(tiff(fine, "cielab")) - decode_photo(data).astype(int)).max() <= 1


def test_avif_and_heic_in_folders_are_photos() -> None:
    assert {".avif", ".heic", ".heif", ".jxl"} <= SUFFIXES


def test_heic_is_read_by_its_plugin_or_names_it(
    dog: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    plugin.from_pillow(dog).save(buffer, quality=100, chroma=444)
    (tmp_path / "phone.heic").write_bytes(buffer.getvalue())
    assert np.abs(read_photo(tmp_path / "phone.heic") - np.asarray(dog).astype(int)).mean() < 2
    with pytest.raises(ImageError, match="cannot be decoded"):
        decode_photo(buffer.getvalue()[:-500])
    with pytest.raises(ImageError, match="120x80"):
        decode_photo(buffer.getvalue(), max_pixels=9599)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", r"pip install 'ortcam\[heic\]' \(pillow-heif\)"),
        (b"\0\0\0\x18ftypavif\0\0\0\0mif1avif", "is an AVIF picture that is damaged"),
        (b"\xff\x0a", "is a JPEG XL picture"),
        (b"\0\0\0\x0cJXL \x0d\x0a\x87\x0a", "is a JPEG XL picture"),
        (b"%PDF-1.7", "is a PDF document"),
    ],
)
def test_kinds_that_are_not_read_are_named(start: bytes, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as where it is not installed
    with pytest.raises(ImageError, match=message) as caught:
        decode_photo(start + bytes(200), "x.bin")
    assert "\n" not in str(caught.value)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def test_decoders_write_nothing_to_standard_error(dog: Image.Image, capfd: pytest.CaptureFixture[str]) -> None:
    """libpng's remarks on profiles and damage, OpenCV's on TIFF tags and on files that end too early."""
    whole = encoded(dog, "PNG")
    profile = b"x\0\0" + zlib.compress(b"no profile" * 20)
    for remark in ((b"iCCP", profile), (b"sRGB", b"\x09"), (b"tRNS", b"\0"), (b"PLTE", bytes(7)), (b"gAMA", b"")):
        assert np.array_equal(decode_photo(whole[:33] + png_chunk(*remark) + whole[33:]), np.asarray(dog))
    assert np.array_equal(decode_photo(encoded(dog, "TIFF", tiffinfo={65000: "x", 50341: "y"})), np.asarray(dog))
    damaged = [whole[:100] + bytes([whole[100] ^ 1]) + whole[101:], whole[:-200] + whole[-12:]]
    damaged += [encoded(dog, kind)[:-300] for kind in ("TIFF", "GIF", "AVIF")]
    for data in damaged:
        with pytest.raises(ImageError):
            decode_photo(data)
    assert capfd.readouterr().err == ""
    assert getattr(cv2.utils, "logging", cv2).getLogLevel() != 0  # the caller's level is back


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pillow_images_without_a_range_are_refused(dog: Image.Image, mode: str) -> None:
    with pytest.raises(ImageError, match=f"mode {mode} does not say which values are black and white"):
        read_pixels(dog.convert("L").convert(mode))
