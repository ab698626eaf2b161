"""Measure, shorten and draw lines of text on a picture with matplotlib."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ortcam.core.pictures import Photo

_DOTS = 100  # per inch
_POINTS = 9
_ASCENT = 13  # pixels from the top of a line to its baseline
_SPARE, _BOLD = 1.08, 1.12  # drawn letters are wider than the font says: their pixels are rounded; bold ones more
# Fonts with more letters than matplotlib's own, if they are installed.
_WIDE_FONTS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans", "Source Han Sans", "WenQuanYi Zen Hei", "Microsoft YaHei",
    "PingFang SC", "Hiragino Sans", "Yu Gothic", "Malgun Gothic", "Arial Unicode MS", "Noto Sans Arabic",
)  # fmt: skip


class _Text(NamedTuple):
    left: int
    top: int
    text: str
    colour: str
    bold: bool


@lru_cache(maxsize=1)
def _fonts() -> tuple[list[str], list[Any]]:
    """Return the names of the fonts that are tried for a letter, in this order, and the fonts."""
    from matplotlib import font_manager, ft2font

    found = {font.name for font in font_manager.fontManager.ttflist}
    families = ["DejaVu Sans", *(name for name in _WIDE_FONTS if name in found)]
    fonts = [ft2font.FT2Font(font_manager.findfont(family)) for family in families]
    for font in fonts:
        font.set_size(_POINTS, _DOTS)
    return families, fonts


@lru_cache(maxsize=4096)
def _width_of(letter: str) -> float | None:
    """Return the width of a letter in pixels; None if no font has the letter."""
    for font in _fonts()[1]:
        if font.get_char_index(ord(letter)):
            return float(font.load_char(ord(letter)).linearHoriAdvance) / 65536
    return None


class Writer:
    """Collects lines of text, and draws them at the end."""

    def __init__(self) -> None:
        self._texts = list[_Text]()

    def width(self, text: str) -> int:
        """Return an upper bound of the width of a text in pixels; bold text is up to a sixth wider."""
        return int(np.ceil(_SPARE * sum(_width_of(letter) or 0 for letter in self._printable(text))))

    def _printable(self, text: str) -> str:
        """Return a text whose letters without a font are written as their numbers: U+4E2D."""
        parts = list[str]()
        for letter in text:
            known = _width_of(letter) is not None
            parts.append(letter if known else " " if letter.isspace() else f"U+{ord(letter):04X} ")
        return "".join(parts)

    def fit(self, text: str, width: int, keeps_end: bool = False) -> str:
        """Shorten a text to a width in pixels: in the middle if its end matters, as in a file's name; else its end."""
        text = self._printable(text)
        if self.width(text) <= width:
            return text
        low, high = 0, len(text)  # letters that are kept
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.width(_cut(text, middle, keeps_end)) <= width else (low, middle - 1)
        return _cut(text, low, keeps_end)

    def wrap(self, text: str, width: int, most: int) -> list[str]:
        """Break a text into at most `most` lines of a width in pixels."""
        width = int(width / _BOLD)
        rest, lines = self._printable(text), list[str]()
        while rest and len(lines) < most - 1 and self.width(rest) > width:
            fits = next((count for count in range(2, len(rest)) if self.width(rest[:count]) > width), len(rest)) - 1
            breaks = [at for at in range(1, fits + 1) if rest[at - 1] in " ,/_:"]
            at = breaks[-1] if breaks else fits
            lines.append(rest[:at].strip())
            rest = rest[at:].strip()
        return [*lines, self.fit(rest, width, keeps_end=True)]

    def add(self, left: int, top: int, text: str, colour: str, bold: bool = False) -> None:
        """Take a line; `left` and `top` are its corner in pixels of the picture."""
        self._texts.append(_Text(left, top, self._printable(text), colour, bold))

    def draw(self, sheet: Photo) -> Photo:
        """Return the picture uint8 [H,W,3] with the lines on it."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        height, width = (side + 0.5 for side in sheet.shape[:2])  # matplotlib rounds down: 1.15 x 100 is below 115
        figure = Figure(figsize=(width / _DOTS, height / _DOTS), dpi=_DOTS)
        canvas: Any = FigureCanvasAgg(figure)
        figure.patch.set_alpha(0)
        for one in self._texts:
            figure.text(
                one.left / width, 1 - (one.top + _ASCENT) / height, one.text, color=one.colour, fontsize=_POINTS,
                va="baseline", weight="bold" if one.bold else "normal", family=_fonts()[0], parse_math=False,
            )  # fmt: skip
        canvas.draw()
        drawn = np.asarray(canvas.buffer_rgba())
        inked = drawn[..., 3] > 0
        colours, cover = drawn[inked][:, :3].astype(np.float32), drawn[inked][:, 3:].astype(np.float32) / 255
        result = sheet.copy()
        result[inked] = np.rint(sheet[inked] * (1 - cover) + colours * cover).astype(np.uint8)
        return result


def _cut(text: str, kept: int, keeps_end: bool) -> str:
    if not keeps_end:
        return f"{text[:kept].rstrip()}…"
    end = min(kept // 2 + 2, kept)
    return f"{text[: kept - end]}…{text[len(text) - end :]}" if kept else "…"
