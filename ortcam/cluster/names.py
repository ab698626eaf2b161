"""Write the names of files as text, and read them back: a name need not be valid Unicode."""

from __future__ import annotations

import re

# A lone surrogate; or a backslash that would read as one of the escapes below.
_TO_ESCAPE = re.compile(r"[\ud800-\udfff]|\\(?=x[0-9a-f]{2}|u[0-9a-f]{4})")
_ESCAPED = re.compile(r"\\x([0-9a-f]{2})|\\u([0-9a-f]{4})")


def name_to_text(name: str) -> str:
    r"""Return a name as valid Unicode. Names that are valid, and do not look like an escape, stay as they are.

    A byte that is not UTF-8, which Python reads as a surrogate from U+DC80 to U+DCFF, becomes its two hexadecimal
    digits after ``\x``. Another surrogate becomes its four digits after ``\u``. A backslash before such digits becomes
    ``\x5c``.

    >>> name_to_text("caf\udce9.jpg")
    'caf\\xe9.jpg'
    """

    def escape(found: re.Match[str]) -> str:
        code = ord(found[0])
        if code == ord("\\"):
            return r"\x5c"
        return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"

    return _TO_ESCAPE.sub(escape, name)


def text_to_name(text: str) -> str:
    """Return the name that `name_to_text` wrote as this text."""

    def restore(found: re.Match[str]) -> str:
        if found[2]:
            return chr(int(found[2], 16))
        code = int(found[1], 16)
        return chr(code) if code < 0x80 else chr(0xDC00 + code)

    return _ESCAPED.sub(restore, text)
