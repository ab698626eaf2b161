"""Draw a comparison as pages: photos down, columns across."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ortcam.comparison.result import Cell, Compared, Comparison
from ortcam.comparison.strips import Strip, split
from ortcam.core.pictures import Photo
from ortcam.model.image import decode_photo
from ortcam.output.render import encode_png
from ortcam.output.text import Colour, as_drawn, fit, make_font, wrap

ROWS = 20  # photos on a page
MOST_PAGES = 50
_WIDTH = 2100  # pixels that a page keeps to, as far as pictures stay visible
_SIDES = (150, 280)  # the smallest and the largest side of a picture
_GAP, _MARGIN = 12, 18
_LINE = 17  # pixels
_LOW = 0.8  # an r below it is red
_LETTERS, _BASELINE = 13, 13  # pixels: the height of letters, and from the top of a line to its baseline
_MOST_LINES = 4  # of a head, and of the legend
_BLACK, _GREY, _RED = (27, 27, 27), (95, 95, 95), (179, 38, 30)


@dataclass(frozen=True)
class Line:
    """A line of text below a picture."""

    text: str
    colour: Colour = _GREY
    bold: bool = False
    keeps_end: bool = False


class Grid:
    """Collects the pictures of photos on disk, and draws them at the end, the photos with the least r first."""

    def __init__(self, folder: Path, columns: Sequence[str]) -> None:
        """Prepare for a comparison; `folder` is unfinished."""
        self._folder, self._columns = folder, columns
        self._strips = folder / ".strips"
        self._strips.mkdir()
        self._count = 0
        self._font = make_font()
        across = len(columns) + 1
        fits = (_WIDTH - 2 * _MARGIN + _GAP) // across - _GAP
        self.side = int(np.clip(fits, *_SIDES))

    def add(self, strip: Strip) -> None:
        """Take the pictures of the next photo."""
        (self._strips / f"{self._count}.jpg").write_bytes(strip.encode())
        self._count += 1

    def draw(self, result: Comparison) -> None:
        """Write grid.png, grid-2.png, ... and forget the pictures."""
        order = sorted(range(len(result.photos)), key=lambda at: result.photos[at].rank)[: ROWS * MOST_PAGES]
        pages = [order[begin : begin + ROWS] for begin in range(0, len(order), ROWS)]
        for number, page in enumerate(pages, 1):
            title = _title(result, number, len(pages))
            rows = [(result.photos[at], self._read(at)) for at in page]
            name = "grid.png" if number == 1 else f"grid-{number}.png"
            (self._folder / name).write_bytes(encode_png(self._page(title, rows)))
        shutil.rmtree(self._strips)

    def _read(self, at: int) -> Sequence[Photo]:
        row: Photo = decode_photo((self._strips / f"{at}.jpg").read_bytes(), "a picture")
        return split(row, len(self._columns) + 1)

    def _page(self, title: str, rows: Sequence[tuple[Compared, Sequence[Photo]]]) -> Photo:
        side = self.side
        heads = ["photo", *self._columns]
        lines = [self._wrap(head, side, bold=True) for head in heads]
        captions = [list(_captions(photo)) for photo, _ in rows]
        width = 2 * _MARGIN + len(heads) * (side + _GAP) - _GAP
        legend = self._wrap(title, width - 2 * _MARGIN)
        top = _MARGIN + len(legend) * _LINE + 10
        begin = top + max(map(len, lines)) * _LINE + 8
        heights = [
            pictures[0].shape[0] + max(map(len, texts)) * _LINE + 16
            for (_, pictures), texts in zip(rows, captions, strict=True)
        ]
        sheet: Photo = np.full((begin + sum(heights) + _MARGIN, width, 3), 255, np.uint8)
        for number, word in enumerate(legend):
            self._write(sheet, _MARGIN, _MARGIN + number * _LINE, Line(word), width - 2 * _MARGIN)
        for place, words in enumerate(lines):
            for number, word in enumerate(words):
                self._write(
                    sheet, _left(place, side), top + number * _LINE, Line(word, _BLACK, keeps_end=True, bold=True), side
                )
        for (_, pictures), texts, height in zip(rows, captions, heights, strict=True):
            for place, (picture, caption) in enumerate(zip(pictures, texts, strict=True)):
                left = _left(place, side)
                sheet[begin : begin + picture.shape[0], left : left + picture.shape[1]] = picture
                for number, line in enumerate(caption):
                    self._write(sheet, left, begin + picture.shape[0] + 5 + number * _LINE, line, side)
            begin += height
        return sheet

    def _wrap(self, text: str, width: int, bold: bool = False) -> list[str]:
        """Break a text into at most `_MOST_LINES` lines; the last one may be too long."""
        lines = wrap(as_drawn(text, self._font), width, _LETTERS, self._font, bold)
        last = " ".join(lines[_MOST_LINES - 1 :])
        return [*lines[: _MOST_LINES - 1], *([last] if last else [])]

    def _write(self, sheet: Photo, left: int, top: int, line: Line, width: int) -> None:
        """Write a line, shortened to a width in pixels; `left` and `top` are its corner in pixels of the sheet."""
        text = fit(as_drawn(line.text, self._font), width, _LETTERS, self._font, line.keeps_end, line.bold)
        self._font.draw(sheet, text, left, top + _BASELINE, _LETTERS, line.colour, line.bold)


def _left(place: int, side: int) -> int:
    return _MARGIN + place * (side + _GAP)


def _title(result: Comparison, number: int, pages: int) -> str:
    """Return the line above the heads: how many photos, in which order, and what the letters and colours mean."""
    count, shown = len(result.photos), min(len(result.photos), ROWS * MOST_PAGES)
    parts = [
        f"{count} photo{'' if count == 1 else 's'}{f', the {shown} with the least r' if shown < count else ''}",
        *([f"page {number} of {pages}"] if pages > 1 else []),
        *(["the least r first"] if count > 1 else []),
        "r: Pearson's correlation with the first column's map",
        "P: probability of the explained class (change from the first column)",
        "red: the map's maximum",
        "grey: not seen by the model",
    ]
    if not result.classifies:
        parts[-3] = "score: of the explained target (change from the first column)"
    return " · ".join(parts)


def _captions(photo: Compared) -> Iterator[list[Line]]:
    """Yield the lines below each picture of a photo."""
    height, width = photo.size
    yield [Line(photo.name, _BLACK, keeps_end=True), Line(f"{width} x {height}")]
    first = photo.cells[0]
    yield [Line(first.target.name, _BLACK), Line(_score(first)), *_top(first, None)]
    for place, cell in enumerate(photo.cells[1:], 1):
        pair = photo.with_first(place)
        r = pair.similarity.r
        lines = [Line("no r: a map is flat", _RED)]
        if r is not None:
            lines = [Line(f"r {r:.3f}", _RED if r < _LOW else _BLACK, bold=True)]
        if cell.target.name != first.target.name:
            lines += [Line(cell.target.name, _BLACK), Line(_score(cell))]
        elif pair.difference is not None:
            moved = round(pair.difference, 2) + 0.0  # no -0.00
            lines.append(Line(f"{_score(cell)} ({moved:+.2f})"))
        yield [*lines, *_top(cell, pair.same_class)]


def _score(cell: Cell) -> str:
    return f"{'P' if cell.target.place is None else 'score'} {cell.score:.2f}"


def _top(cell: Cell, same_class: bool | None) -> list[Line]:
    """Return a line for a top class that is not the explained class."""
    top = cell.predicted
    if top is None or (top.index == cell.target.index and same_class is not False):
        return []
    return [Line(f"top class: {top.name} {top.probability:.2f}", _RED if same_class is False else _GREY)]
