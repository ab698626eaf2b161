"""Measure and draw text on pictures.

OpenCV 5 brings fonts for Latin, Greek, Cyrillic, Chinese, Japanese and Korean text. OpenCV 4 draws ASCII alone.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from typing import Protocol

    from ortcam.core.pictures import Photo

    class Font(Protocol):
        """A way of drawing text."""

        def draws(self, text: str) -> bool:
            """Return whether every character of a text is drawn as itself."""

        def width(self, text: str, size: int, bold: bool = False) -> int:
            """Return the width of a text in pixels; `size` is the height of a line's letters in pixels."""

        def draw(
            self, picture: Photo, text: str, left: int, baseline: int, size: int, colour: Colour, bold: bool = False
        ) -> None:
            """Draw a text into a picture, uint8 [H,W,3]."""


Colour = tuple[int, int, int]
_WEIGHTS = (400, 700)  # of letters, and of bold ones
# What a decomposition into a letter and its accents leaves as it is.
_SPELLED = str.maketrans(
    {"ß": "ss", "æ": "ae", "Æ": "Ae", "œ": "oe", "Œ": "Oe", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "đ": "d"}
    | {0x131: "i", 0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"', 0x2013: "-", 0x2014: "-", 0xB7: "|"}
)


class UnicodeFont:
    """The fonts of OpenCV 5. OpenCV draws a question mark for a missing character."""

    def __init__(self) -> None:
        self._face = cv2.FontFace("sans")
        self._missing = self._pixels("?")

    def draws(self, text: str) -> bool:
        return all(map(self._draws, set(text)))

    def _draws(self, character: str) -> bool:
        if character in " ?":
            return True
        # Hebrew and Arabic would stand from left to right, with letters that do not join.
        if unicodedata.category(character)[0] in "CZ" or unicodedata.bidirectional(character) in ("R", "AL"):
            return False
        pixels = self._pixels(character)
        return bool(pixels.any()) and not np.array_equal(pixels, self._missing)

    def _pixels(self, character: str) -> NDArray[np.uint8]:
        canvas = np.zeros((48, 64, 3), np.uint8)
        self.draw(canvas, character, 8, 34, 24, (255, 255, 255))
        return canvas

    def width(self, text: str, size: int, bold: bool = False) -> int:
        left, _, width, _ = cv2.getTextSize((0, 0), text, (0, 0), self._face, size, _WEIGHTS[bold])
        return int(left + width)

    def draw(
        self, picture: Photo, text: str, left: int, baseline: int, size: int, colour: Colour, bold: bool = False
    ) -> None:
        cv2.putText(picture, text, (left, baseline), colour, self._face, size, _WEIGHTS[bold])


class AsciiFont:
    """The Hershey font of OpenCV 4."""

    def draws(self, text: str) -> bool:
        return text.isascii() and text.isprintable()

    def width(self, text: str, size: int, bold: bool = False) -> int:
        (width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size / 30, self._thickness(size) + bold)
        return int(width)

    def draw(
        self, picture: Photo, text: str, left: int, baseline: int, size: int, colour: Colour, bold: bool = False
    ) -> None:
        thickness = self._thickness(size) + bold
        where, scale = (left, baseline), size / 30  # its capitals are 22 pixels high at scale 1
        cv2.putText(picture, text, where, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, thickness, cv2.LINE_AA)

    def _thickness(self, size: int) -> int:
        return max(1, round(size / 18))


def make_font() -> Font:
    """Return the best font that the installed OpenCV has."""
    return UnicodeFont() if hasattr(cv2, "FontFace") else AsciiFont()


def spell(text: str, font: Font) -> str | None:
    """Return a text as a font can draw it: as it is, or without accents; None if characters are still missing."""
    text = " ".join(text.split())
    if font.draws(text):
        return text
    decomposed = unicodedata.normalize("NFKD", text.translate(_SPELLED))
    plain = "".join(one for one in decomposed if not unicodedata.combining(one))
    return plain if font.draws(plain) else None


def wrap(text: str, width: int, size: int, font: Font, bold: bool = False) -> list[str]:
    """Break a text into lines of at most `width` pixels: between words, and inside words that are longer."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if font.width(longer, size, bold) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if lines[-1] and font.width(lines[-1] + character, size, bold) > width:
                lines.append("")
            lines[-1] += character
    return lines


def as_drawn(text: str, font: Font) -> str:
    """Return a text as `spell` does, with the numbers of characters that are still missing: U+4E2D."""
    whole = spell(text, font)
    if whole is not None:
        return whole
    parts = [spell(one, font) or f"U+{ord(one):04X} " if one.strip() else " " for one in text]
    return "".join(parts).rstrip()


def fit(text: str, width: int, size: int, font: Font, keeps_end: bool = False, bold: bool = False) -> str:
    """Shorten a text to `width` pixels: in its middle if its end matters, as in a file's name; else at its end."""
    if font.width(text, size, bold) <= width:
        return text
    low, high = 0, len(text)  # letters that are kept
    while low < high:
        middle = (low + high + 1) // 2
        fits = font.width(_cut(text, middle, keeps_end), size, bold) <= width
        low, high = (middle, high) if fits else (low, middle - 1)
    return _cut(text, low, keeps_end)


def _cut(text: str, kept: int, keeps_end: bool) -> str:
    if not keeps_end:
        return f"{text[:kept].rstrip()}..."
    end = min(kept // 2 + 2, kept)
    return f"{text[: kept - end]}...{text[len(text) - end :]}" if kept else "..."
