"""Check PNG files for damage, and remove the chunks that do not affect pixels.

libpng writes warnings about colour profiles and damaged files to standard error, regardless of the caller's settings.
It writes nothing for a file that has right checksums and only pixels.
"""

from __future__ import annotations

import zlib

from ortcam.errors import ImageError

MAGIC = b"\x89PNG\r\n\x1a\n"
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # by colour type
_LONGEST_SIDE = 1_000_000  # libpng's limit


def pixels_only(data: bytes, name: str) -> bytes:
    """Return the file without colour profiles, texts and the like; transparency and orientation stay.

    Raises:
        ImageError: a checksum is wrong, a chunk is cut short or missing, or the header is invalid.
    """
    view, at, kept, kinds = memoryview(data), len(MAGIC), [data[: len(MAGIC)]], [b""]
    dropped = False
    while kinds[-1] != b"IEND":
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + 12 + length
        if end > len(data) or len(kind) < 4:
            raise ImageError(f"{name} is cut short: its end is missing; get the whole file again")
        body = view[at + 8 : end - 4]
        sound = zlib.crc32(view[at + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big")
        needed = not kind[0] & 0x20  # a capital letter: decoders must not ignore the chunk
        if needed and not (sound and (kind != b"IHDR" or _makes_sense(body))):
            raise ImageError(f"{name} is damaged (its {_show(kind)} chunk); get the file again")
        if kind == b"IHDR":
            depth, colours = body[8], body[9]
        if needed and kinds == [b""] and kind != b"IHDR":
            raise ImageError(f"{name} is damaged (it begins with {_show(kind)}); get the file again")
        wanted = kind == b"IDAT" or (sound and kind not in kinds)
        if kind == b"PLTE":
            wanted &= colours == 3
            entries = length // 3
            if wanted and (length % 3 or not 0 < entries <= 1 << depth):
                raise ImageError(f"{name} is damaged (its PLTE chunk); get the file again")
        elif kind == b"tRNS":
            fits = {0: length == 2, 2: length == 6, 3: b"PLTE" in kinds and 0 < length <= entries}
            wanted &= fits.get(colours, False) and b"IDAT" not in kinds
        elif not needed:
            wanted &= kind == b"eXIf" and bytes(body[:4]) in (b"II*\0", b"MM\0*")
        if wanted:
            kept.append(data[at:end])
            kinds.append(kind)
        dropped |= not wanted
        at = end
    if b"IDAT" not in kinds:
        raise ImageError(f"{name} is damaged (it has no pixels); get the file again")
    return b"".join(kept) if dropped else data


def _makes_sense(header: memoryview) -> bool:
    if len(header) != 13:
        return False
    sides = (int.from_bytes(header[:4], "big"), int.from_bytes(header[4:8], "big"))
    depth, colours, compression, filters, interlace = header[8:]
    known = depth in _DEPTHS.get(colours, ()) and compression == filters == 0 and interlace in (0, 1)
    return known and all(0 < side <= _LONGEST_SIDE for side in sides)


def _show(kind: bytes) -> str:
    return kind.decode("ascii", "replace") if kind.isalpha() else "unreadable"
