"""Read image files of all common formats.

file -> photo [H,W,3] uint8 RGB
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ortcam.core import native
from ortcam.core.pictures import Photo
from ortcam.errors import ImageError, one_line
from ortcam.model import png, tiff

_AVIF = frozenset({b"avif", b"avis"})
_HEIC = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
_OTHER_KINDS = {
    b"\xff\x0a": "a JPEG XL picture",
    b"\0\0\0\x0cJXL ": "a JPEG XL picture",
    b"%PDF": "a PDF document",
    b"8BPS": "a Photoshop document",
    b"<svg": "a drawing (SVG)",
    b"v/1\x01": "an OpenEXR picture",
    b"\0\0\1\0": "an icon (ICO)",
}
_PROPERTIES = 4096  # the first bytes of an AVIF file, which hold its properties
_EXIF_BYTES = 65536
_lock, _silent, _level = threading.Lock(), 0, 0
_logging: Any = getattr(cv2.utils, "logging", cv2)  # OpenCV 5; 4

# The size at which Pillow refuses to decode (its DecompressionBombError), in pixels.
MAX_PIXELS = 178_956_970
SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".pbm",
        ".png",
        ".bmp",
        ".webp",
        ".tif",
        ".tiff",
        ".gif",
        ".ppm",
        ".pgm",
        ".pnm",
        ".jp2",
        ".avif",
        ".heic",
        ".heif",
        ".hif",
        ".jxl",
    }
)


def read_photo(path: str | PathLike[str], max_pixels: int = MAX_PIXELS) -> Photo:
    """Read an image file.

    EXIF orientation is applied, 16 bits become 8, grey and CMYK become RGB, transparency is laid over white.

    Returns:
        uint8 [H,W,3], RGB.

    Raises:
        ImageError: the file is missing, unreadable, not an image, cut short, or has more than `max_pixels` pixels.
    """
    return decode_photo(read_file(path), str(path), max_pixels)


def read_file(path: str | PathLike[str]) -> bytes:
    """Return the bytes of an image file.

    Raises:
        ImageError: the file is missing or cannot be read.
    """
    path = Path(path)
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # a ValueError: a path with a null byte
        said = getattr(error, "strerror", None) or one_line(error)
        reason = "no such file" if isinstance(error, FileNotFoundError) else said
        raise ImageError(f"cannot read {path}: {reason}") from error


def read_stream(stream: Any) -> bytes:
    """Return the remaining bytes of a binary file: an open file, io.BytesIO, an upload.

    Raises:
        ImageError: the file cannot be read, is at its end, or does not return bytes.
    """
    try:
        data = stream.read()
        passed = not data and hasattr(stream, "tell") and stream.tell() > 0
    except Exception as error:  # whatever the caller's own class raises
        raise ImageError(f"image, a {type(stream).__name__}, cannot be read: {one_line(error)}") from error
    if passed:
        raise ImageError("image is a file that was read to its end; go back to its beginning with seek(0)")
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data)
    if hasattr(data, "close") and hasattr(data, "__await__"):
        data.close()  # else Python warns that the coroutine was never awaited
    raise ImageError(
        f"image, a {type(stream).__name__}, returns a {type(data).__name__} from read(); expected bytes: "
        "open a file with mode 'rb', and await an asynchronous upload first"
    )


def decode_photo(data: bytes, name: str = "image", max_pixels: int = MAX_PIXELS) -> Photo:
    """Decode the bytes of an image file, as `read_photo` does; `name` is its name in error messages."""
    if not data:
        raise ImageError(f"{name} is empty (0 bytes); expected an image such as JPEG or PNG")
    _refuse_large(_size_in_header(data), name, max_pixels)
    if _is_cut_short(data):
        raise ImageError(f"{name} is cut short: its end is missing; get the whole file again")
    if data[:4] in tiff.MAGIC:
        return as_photo(_decode_tiff(data, name, max_pixels), name)
    if data.startswith(png.MAGIC):
        data = png.pixels_only(data, name)
    if _brands(data) & _AVIF:
        pixels = _decode_avif(data, name)
    else:
        decoded = _decode_alpha(data, name) if _may_have_alpha(data) else None
        if decoded is None:
            decoded = _decode(data, name, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH)
        pixels = _decode_other(data, name, max_pixels) if decoded is None else decoded
    _refuse_large(pixels.shape[:2], name, max_pixels)
    return as_photo(pixels, name)


def _decode(data: bytes, name: str, flags: int) -> NDArray[Any] | None:
    """Return the pixels as OpenCV decodes them; None if it cannot."""
    try:
        with _silent_opencv(), native.quiet():
            return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE" in str(error):  # OPENCV_IO_MAX_IMAGE_PIXELS, which `ortcam serve` sets
            raise ImageError(f"{name} has more pixels than are read; make it smaller first") from error
        raise ImageError(f"{name} cannot be decoded: {one_line(error)}") from error


def _decode_alpha(data: bytes, name: str) -> NDArray[Any] | None:
    """Return the pixels [H,W,4], RGBA, turned upright; None if the file has no alpha."""
    pixels = _decode(data, name, cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim != 3 or pixels.shape[2] != 4:
        return None
    return _upright(cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA), _exif_orientation(data))


def _decode_tiff(data: bytes, name: str, max_pixels: int) -> NDArray[Any]:
    # Asked for RGB, OpenCV swaps red and blue of 16 bits, and does not decode grey samples of 32 bits.
    samples = tiff.read_samples(data, name)
    _refuse_large(samples.size, name, max_pixels)
    pixels = _decode(samples.data, name, cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ImageError(f"{name} is a damaged or unsupported TIFF file; save it as PNG")
    return samples.to_rgb(_to_rgb_order(pixels), name)


def _decode_avif(data: bytes, name: str) -> NDArray[Any]:
    # Asked for RGB, OpenCV returns BGR if the file has an alpha.
    pixels = _decode(data, name, cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ImageError(
            f"{name} is an AVIF picture that is damaged, or that this OpenCV cannot read; save it as JPEG or PNG"
        )
    return _turned(_to_rgb_order(pixels), data)


def _to_rgb_order(pixels: NDArray[Any]) -> NDArray[Any]:
    """Convert BGR or BGRA pixels, of any type, to the order RGB or RGBA."""
    if pixels.ndim == 3 and pixels.shape[2] in (3, 4):
        return np.ascontiguousarray(pixels[:, :, [2, 1, 0, 3][: pixels.shape[2]]])
    return pixels


def _decode_other(data: bytes, name: str, max_pixels: int) -> NDArray[Any]:
    """Decode a picture that OpenCV cannot decode, or say what it is.

    Raises:
        ImageError: the bytes are not a picture, or have an unsupported format.
    """
    if _brands(data) & _HEIC:
        return _decode_heic(data, name, max_pixels)
    for magic, kind in _OTHER_KINDS.items():
        if data.startswith(magic):
            raise ImageError(f"{name} is {kind}, which is unsupported; save it as JPEG or PNG")
    raise ImageError(f"{name} is not an image that can be decoded; expected JPEG, PNG, WebP, TIFF, BMP or GIF")


def _brands(data: bytes) -> frozenset[bytes]:
    """Return the brands (formats) that a file of ISO's base media format states; none for other files."""
    if data[4:8] != b"ftyp":
        return frozenset()
    end = min(int.from_bytes(data[:4], "big"), 256)
    return frozenset(data[at : at + 4] for at in range(8, end, 4) if at != 12)  # a version stands at 12


def _decode_heic(data: bytes, name: str, max_pixels: int) -> NDArray[Any]:
    try:
        import pillow_heif
    except ImportError as error:
        raise ImageError(
            f"{name} is a HEIC picture, which needs a plugin: pip install 'ortcam[heic]' (pillow-heif); or save it as "
            "JPEG or PNG"
        ) from error
    try:
        picture = pillow_heif.open_heif(data)
        _refuse_large(picture.size[::-1], name, max_pixels)
        return np.asarray(picture)
    except (ValueError, RuntimeError, OSError, EOFError, SyntaxError) as error:
        raise ImageError(f"{name} cannot be decoded: {one_line(error)}") from error


def _turned(pixels: NDArray[Any], data: bytes) -> NDArray[Any]:
    """Turn and mirror an AVIF picture by its properties, which OpenCV ignores."""
    at = data.find(b"\0\0\0\x09irot", 0, _PROPERTIES)
    if at >= 0:
        pixels = np.rot90(pixels, data[at + 8] & 3)
    at = data.find(b"\0\0\0\x09imir", 0, _PROPERTIES)
    if at >= 0:
        pixels = pixels[:, ::-1] if data[at + 8] & 1 else pixels[::-1]
    return np.ascontiguousarray(pixels)


def _exif_orientation(data: bytes) -> int:
    """Return the orientation that the EXIF block of a PNG or WebP states."""
    for mark, skipped in ((b"eXIf", 4), (b"EXIF", 8)):
        at = data.find(mark)
        if at >= 0:
            return tiff.read_orientation(data[at + skipped : at + skipped + _EXIF_BYTES].removeprefix(b"Exif\0\0"))
    return 1


def _upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Undo an orientation, given by its EXIF number."""
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


@contextmanager
def _silent_opencv() -> Iterator[None]:
    """Silence OpenCV's log inside the block, in any thread; the log has one level for the whole process."""
    global _silent, _level
    with _lock:
        if _silent == 0:
            _level = _logging.setLogLevel(0)
        _silent += 1
    try:
        yield
    finally:
        with _lock:
            _silent -= 1
            if _silent == 0:
                _logging.setLogLevel(_level)


def as_photo(pixels: NDArray[Any], name: str = "image") -> Photo:
    """Make an RGB photo of an integer array: uint8 or uint16, [H,W], [H,W,1], [H,W,3] or [H,W,4] (RGBA).

    Returns:
        uint8 [H,W,3]; the same memory if nothing had to change.

    Raises:
        ImageError: the array has another dtype or shape, or no pixels.
    """
    expected = "expected an RGB photo uint8 [H,W,3] or an input tensor float32 [1,C,H,W]"
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"{name} has dtype {pixels.dtype}; {expected}")
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4):
        raise ImageError(f"{name} has shape {list(pixels.shape)}; {expected}")
    if 0 in pixels.shape:
        raise ImageError(f"{name} has no pixels (shape {list(pixels.shape)}); {expected}")
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if pixels.shape[2] == 4:
        alpha = pixels[:, :, 3:].astype(np.uint16)
        pixels = ((pixels[:, :, :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    elif pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    return pixels


def _refuse_large(size: tuple[int, ...] | None, name: str, max_pixels: int) -> None:
    if size is not None and size[0] * size[1] > max_pixels:
        raise ImageError(
            f"{name} has {size[1]}x{size[0]} pixels ({size[0] * size[1] / 1e6:.0f} million); "
            f"at most {max_pixels / 1e6:.0f} million are read: make it smaller first"
        )


def _size_in_header(data: bytes) -> tuple[int, int] | None:
    """Return (height, width) from the header of a PNG, JPEG, WebP, GIF or BMP file, without decoding; else None."""
    if data.startswith(png.MAGIC) and len(data) >= 24:
        return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return _little(data, 8), _little(data, 6)
    if data[:2] == b"BM":
        if _little(data, 14, 4) == 12:  # of OS/2
            return _little(data, 20), _little(data, 18)
        height, width = _little(data, 22, 4), _little(data, 18, 4)
        return min(height, 2**32 - height), min(width, 2**32 - width)  # negative: the rows are from top to bottom
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp_size(data)
    return _jpeg_size(data)


def _little(data: bytes, at: int, size: int = 2) -> int:
    return int.from_bytes(data[at : at + size], "little")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Return (height, width) of a WebP file: with properties, without loss, or with loss."""
    if data[12:16] == b"VP8X":
        return _little(data, 27, 3) + 1, _little(data, 24, 3) + 1
    if data[12:16] == b"VP8L":
        return (_little(data, 21, 4) >> 14 & 0x3FFF) + 1, (_little(data, 21) & 0x3FFF) + 1
    return _little(data, 28) & 0x3FFF, _little(data, 26) & 0x3FFF


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    at = 2 if data.startswith(b"\xff\xd8") else len(data)
    while at + 9 <= len(data) and data[at] == 0xFF:  # JPEG segments up to the frame header
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
        at += 1 if marker == 0xFF else 2 + length
    return None


def _is_cut_short(data: bytes) -> bool:
    """Return whether a JPEG lacks its end marker, or a PNG its end chunk."""
    if data.startswith(b"\xff\xd8\xff"):
        return not _jpeg_ends(data)
    return data.startswith(b"\x89PNG\r\n\x1a\n") and data.rfind(b"IEND") < 0


# In a scan, 0xFF is followed by 0x00 (stuffing), a restart marker or another 0xFF; any other byte ends the scan.
_MARKER_IN_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def _jpeg_ends(data: bytes) -> bool:
    """Return whether the segments and scans of a JPEG lead to its end marker; bytes behind the marker do not count."""
    at = 2
    while at + 1 < len(data):
        marker = data[at + 1]
        if data[at] != 0xFF or marker == 0xD9:  # a marker is missing: let the decoder judge
            return True
        if marker == 0xFF:
            at += 1
            continue
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:
            found = _MARKER_IN_SCAN.search(data, at)
            if found is None:
                return False
            at = found.start()
    return False


def _may_have_alpha(data: bytes) -> bool:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return len(data) > 25 and (data[25] in (4, 6) or b"tRNS" in data[:4096])
    return not data.startswith(b"\xff\xd8")
