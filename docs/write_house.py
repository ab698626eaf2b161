"""Write the drawing of the rooms (docs/house.svg) and their table (in docs/design.md) from the imports of the source.

With --check, fail where they show other rooms, purposes or imports than the source has; figures may differ.
"""

from __future__ import annotations

import re
import sys
import textwrap
from dataclasses import dataclass
from html import escape
from pathlib import Path

from house import FLOORS, House, Source, may_import

ROOT = Path(__file__).parent.parent
DRAWING = ROOT / "docs" / "house.svg"
PAGE = ROOT / "docs" / "design.md"
BEGIN, END = "<!-- written by docs/write_house.py -->\n", "<!-- end -->\n"

WIDTH, MARGIN, GAP, HEAD, LINE = 840, 24, 40, 58, 17  # pixels
# Colours: the ground, what computes, what explains, what is made of it, and the door.
FILLS = {"errors": "#e7e5e4", "core": "#dcfce7", "explain": "#fef3c7", "cli": "#fce7f3"}
BELOW, ABOVE = "#e0f2fe", "#ede9fe"
DOWN, UP = "#475569", "#dc2626"
STYLE = f"""
text {{ font-family: system-ui, "Segoe UI", "DejaVu Sans", sans-serif; font-size: 13px; fill: #334155 }}
.title {{ font-size: 19px; font-weight: 700; fill: #0f172a }}
.room {{ font-size: 17px; font-weight: 700; fill: #0f172a }}
.size {{ font-size: 12px; fill: #64748b; text-anchor: end }}
.also {{ fill: #64748b }}
.count {{ font-weight: 700; fill: #0f172a }}
.box {{ stroke: #94a3b8 }}
.down {{ stroke: {DOWN}; stroke-width: 2; marker-end: url(#down) }}
.up {{ stroke: {UP}; stroke-width: 2; stroke-dasharray: 5 3; marker-end: url(#up) }}
"""


@dataclass(frozen=True)
class Box:
    """A room in the drawing, in pixels; `first` and `last` are the rows that it stands in, from the roof down."""

    left: float
    top: float
    right: float
    bottom: float
    first: int
    last: int


class Drawing:
    """The rooms of a house as boxes on their floors, with the words in them."""

    def __init__(self, house: House):
        self.house = house
        self.floors: list[list[str]] = []
        for floor in FLOORS:
            here = [room for room in floor if room in house.rooms]
            if self.floors and set(self.floors[-1]) <= set(here):
                self.floors.pop()  # no room stands there alone
            if here and not (self.floors and set(here) <= set(self.floors[-1])):
                self.floors.append(here)
        placed = {room: [row for row, floor in enumerate(self.floors) if room in floor] for room in house.rooms}
        self.rows = {room: (rows[0], rows[-1]) for room, rows in placed.items() if rows}
        self.boxes = self._place()

    def _place(self) -> dict[str, Box]:
        """Return the boxes. A floor is as high as the words of its rooms need; a room of several floors is narrow."""
        sides: dict[str, tuple[float, float]] = {}
        tops, top = [], float(HEAD)
        for floor in self.floors:
            left, full = float(MARGIN), WIDTH - 2 * MARGIN + GAP / 2
            high = [room for room in floor if self.rows[room][0] < self.rows[room][1]]
            narrow = full / max(3, len(floor))
            for room in floor:
                width = narrow if room in high else (full - narrow * len(high)) / (len(floor) - len(high))
                sides[room] = left, left + width - GAP / 2
                left += width
            words = {room: self.purpose(room, *sides[room]) + self.also(room, *sides[room]) for room in floor}
            tops.append(top)
            top += 42 + LINE * max(len(lines) for room, lines in words.items() if room not in high) + GAP
        tops.append(top)
        return {
            room: Box(sides[room][0], tops[first], sides[room][1], tops[last + 1] - GAP, first, last)
            for room, (first, last) in self.rows.items()
        }

    def purpose(self, room: str, left: float, right: float) -> list[str]:
        return wrap(purpose(self.house, room), right - left)

    def also(self, room: str, left: float, right: float) -> list[str]:
        """Return the imports that have no arrow, in lines that break alike whatever the numbers are."""
        further = [
            other
            for other in self.rows
            if (room, other) in self.house.between and may_import(room, other) and not self.has_arrow(room, other)
        ]
        lines = wrap("also imports: " + ", ".join(f"{other}\N{NO-BREAK SPACE}000" for other in further), right - left)
        counts = iter(len(self.house.between[room, other]) for other in further)
        return [re.sub("000", lambda _: str(next(counts)), line) for line in lines] if further else []

    def has_arrow(self, room: str, other: str) -> bool:
        """Whether a room imports from the next floor, or from above."""
        return not may_import(room, other) or self.rows[other][0] == self.rows[room][1] + 1

    def draw(self) -> str:
        bottom = max(box.bottom for box in self.boxes.values()) + 84
        arrows = [pair for pair in self.house.between if set(pair) <= set(self.boxes) and self.has_arrow(*pair)]
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom:g}" width="{WIDTH}" '
            f'height="{bottom:g}">',
            "<title>The rooms of ortcam and their imports</title>",
            f"<style>{STYLE}</style>",
            f"<defs>{head('down', DOWN)}{head('up', UP)}</defs>",
            f'<rect width="{WIDTH}" height="{bottom:g}" rx="12" fill="#ffffff"/>',
            text(MARGIN, 36, "The rooms of ortcam: a room imports only rooms below it", "title"),
            *(part for room in self.boxes for part in self.draw_room(room)),
            *(part for pair in arrows for part in self.draw_arrow(*pair)),
            *legend(bottom - 54, any(not may_import(*pair) for pair in arrows)),
            "</svg>",
        ]
        return "\n".join(parts) + "\n"

    def draw_room(self, room: str) -> list[str]:
        box, sources = self.boxes[room], self.house.rooms[room]
        fill = FILLS.get(room, BELOW if may_import("explain", room) else ABOVE)
        x, also = box.left + 12, self.also(room, box.left, box.right)
        return [
            f'<rect class="box" x="{box.left:g}" y="{box.top:g}" width="{box.right - box.left:g}" '
            f'height="{box.bottom - box.top:g}" rx="8" fill="{fill}"/>',
            text(x, box.top + 25, room, "room"),
            text(box.right - 12, box.top + 25, size(sources), "size"),
            *(
                text(x, box.top + 46 + LINE * row, line)
                for row, line in enumerate(self.purpose(room, box.left, box.right))
            ),
            *(text(x, box.bottom - 11 - LINE * row, line, "also") for row, line in enumerate(reversed(also))),
        ]

    def draw_arrow(self, room: str, other: str) -> list[str]:
        """Draw the imports of a room from one on the next floor, or from one above it."""
        here, there = self.boxes[room], self.boxes[other]
        middle = (max(here.left, there.left) + min(here.right, there.right)) / 2
        start = min(max(middle, here.left + GAP), here.right - GAP)
        end = min(max(middle, there.left + GAP), there.right - GAP)
        count = str(len(self.house.between[room, other]))
        if not may_import(room, other):
            return [
                arrow(start - 70, here.top - 2, end - 70, there.bottom + 2, "up"),
                text(start - 60, here.top - 14, count, "count"),
            ]
        return [
            arrow(start, here.bottom + 2, end, there.top - 2, "down"),
            text(start - 14 if start < end else start + 10, here.bottom + 25, count, "count"),
        ]


def legend(top: float, runs_up: bool) -> list[str]:
    x = MARGIN + 22
    lines = [
        text(x, top + 3, "imports. A number counts pairs of files: one that imports and one that is imported."),
        text(x, top + 24, "also imports: rooms further down; their arrows are left out."),
        arrow(MARGIN + 8, top - 12, MARGIN + 8, top + 8, "down"),
    ]
    if runs_up:
        lines += [
            text(x + 480, top + 24, "an import that runs up: to be removed"),
            arrow(x + 466, top + 28, x + 466, top + 10, "up"),
        ]
    return lines


def head(name: str, colour: str) -> str:
    return (
        f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="6" markerHeight="6" orient="auto">'
        f'<path d="M0 0L10 5L0 10z" fill="{colour}"/></marker>'
    )


def arrow(x: float, y: float, to_x: float, to_y: float, kind: str) -> str:
    return f'<path class="{kind}" d="M{x:g} {y:g}L{to_x:g} {to_y:g}"/>'


def text(x: float, y: float, words: str, kind: str = "") -> str:
    kind = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}"{kind}>{escape(words, quote=False)}</text>'


def wrap(words: str, width: float) -> list[str]:
    return textwrap.wrap(words, int((width - 24) / 7.2))


def purpose(house: House, room: str) -> str:
    """Return the first sentence of the docstring of a room's package or, without a package, of its first file."""
    sources = house.rooms[room]
    package = [source for source in sources if source.file.endswith("__init__.py")]
    return (package or sources)[0].purpose.replace("`", "").partition(". ")[0].rstrip(".")


def size(sources: list[Source]) -> str:
    return f"{len(sources)} file{'s' * (len(sources) > 1)}, {sum(source.lines for source in sources):,} lines"


def table(house: House) -> str:
    lines = ["", "| room | what it is for | files | lines | imports |", "|---|---|---:|---:|---|"]
    for room, sources in house.rooms.items():
        below = [
            f"{other}\N{NO-BREAK SPACE}{len(house.between[room, other])}"
            for other in house.rooms
            if (room, other) in house.between
        ]
        code = f"{sum(source.lines for source in sources):,}"
        lines.append(f"| {room} | {purpose(house, room)} | {len(sources)} | {code} | {', '.join(below)} |")
    return "\n".join([*lines, "", ""])


def without_figures(page: str) -> str:
    """Return a page as --check compares it: with numbers that differ in every commit left out."""
    return re.sub(r"\d[\d,.]*( files?)?", "0", page)


def main() -> None:
    house = House(ROOT)
    page = PAGE.read_text(encoding="utf-8")
    before, found, rest = page.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not (found and ended):
        sys.exit(f"docs/design.md lacks the lines {BEGIN.strip()} and {END.strip()}; put them round the table of rooms")
    written = {DRAWING: Drawing(house).draw(), PAGE: before + BEGIN + table(house) + END + after}
    for path, new in written.items():
        if "--check" not in sys.argv:
            path.write_text(new, encoding="utf-8")
        elif not path.is_file() or without_figures(path.read_text(encoding="utf-8")) != without_figures(new):
            sys.exit(f"docs/{path.name} shows other rooms or imports: run python docs/write_house.py")


if __name__ == "__main__":
    main()
