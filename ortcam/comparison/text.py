"""Measure, shorten and draw lines of text on a picture with matplotlib."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ortcam.core.pictures import Photo

_DOTS = 100  # per inch
_POINTS = 9
_ASCENT = 13  # pixels from the top of a line to its baseline
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


class Writer:
    """Collects lines of text, and draws them at the end."""

    def __init__(self) -> None:
        from matplotlib import font_manager, ft2font

        found = {font.name for font in font_manager.fontManager.ttflist}
        self._families = ["DejaVu Sans", *(name for name in _WIDE_FONTS if name in found)]
        self._fonts: list[Any] = []
        for family in self._families:
            font = ft2font.FT2Font(font_manager.findfont(family))
            font.set_size(_POINTS, _DOTS)
            self._fonts.append(font)
        self._letters = [font.get_charmap() for font in self._fonts]
        self._texts = list[_Text]()

    def width(self, text: str) -> int:
        """Return the width of a text in pixels; bold text is up to a tenth wider."""
        at = 0.0
        for part, font in self._runs(text):
            font.set_text(part, 0.0)
            at += font.get_width_height()[0] / 64
        return int(np.ceil(at))

    def _runs(self, text: str) -> list[tuple[str, Any]]:
        """Return the parts of a text with the font that has their letters."""
        runs: list[tuple[str, Any]] = []
        for letter in self._printable(text):
            font = next(
                (font for font, letters in zip(self._fonts, self._letters, strict=True) if ord(letter) in letters),
                self._fonts[0],
            )
            if runs and runs[-1][1] is font:
                runs[-1] = (runs[-1][0] + letter, font)
            else:
                runs.append((letter, font))
        return runs

    def _printable(self, text: str) -> str:
        """Return a text whose letters without a font are written as their numbers: U+4E2D."""
        return "".join(
            letter
            if any(ord(letter) in letters for letters in self._letters)
            else " " if letter.isspace() else f"U+{ord(letter):04X} "
            for letter in text
        )  # fmt: skip

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
        width = int(width / 1.1)  # bold
        rest, lines = self._printable(text), list[str]()
        while rest and len(lines) < most - 1 and self.width(rest) > width:
            fits = max(count for count in range(1, len(rest) + 1) if count == 1 or self.width(rest[:count]) <= width)
            breaks = [at for at in range(1, fits + 1) if rest[at - 1] in " ,/_-.=:"]
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

        height, width = sheet.shape[:2]
        figure = Figure(figsize=(width / _DOTS, height / _DOTS), dpi=_DOTS)
        canvas: Any = FigureCanvasAgg(figure)
        figure.patch.set_alpha(0)
        for one in self._texts:
            figure.text(
                one.left / width, 1 - (one.top + _ASCENT) / height, one.text, color=one.colour, fontsize=_POINTS,
                va="baseline", weight="bold" if one.bold else "normal", family=self._families, parse_math=False,
            )  # fmt: skip
        canvas.draw()
        drawn = np.asarray(canvas.buffer_rgba())[:height, :width].astype(np.float32)
        cover = drawn[..., 3:] / 255
        return np.rint(sheet * (1 - cover) + drawn[..., :3] * cover).astype(np.uint8)


def _cut(text: str, kept: int, keeps_end: bool) -> str:
    if not keeps_end:
        return f"{text[:kept].rstrip()}…"
    end = min(kept // 2 + 2, kept)
    return f"{text[: kept - end]}…{text[len(text) - end :]}" if kept else "…"
