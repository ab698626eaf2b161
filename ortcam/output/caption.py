"""Describe an overlay in words, and write the words and a colour bar under it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ortcam.core.pictures import Photo
from ortcam.output.render import colour_table
from ortcam.output.text import Colour, make_font, spell, wrap

if TYPE_CHECKING:
    from ortcam.core.measures import MapMeasures
    from ortcam.core.selection import ErrorEstimate
    from ortcam.core.targets import Target
    from ortcam.output.text import Font

_INK: Colour = (25, 25, 25)
_GREY: Colour = (95, 95, 95)
_LEAST_LETTERS = 12  # pixels; smaller letters are hard to read
_LEAST_WIDTH = 168  # pixels; narrower photos are magnified
_LONGEST_MAGNIFIED = 1024  # pixels
_WIDE = 36  # letters' heights; a wider picture has the bar beside the words
_MOST_TITLE_LINES = 2
_LONGEST_LABEL = 160  # characters
SCALE = ("0", "this map's maximum")


@dataclass(frozen=True)
class Caption:
    """The words under an overlay.

    Attributes:
        name: what was explained.
        unlabelled: the same without its label.
        score: its probability or score; "" if it has none.
        details: method, preset, error and the like, in the order in which they are written.
    """

    name: str
    unlabelled: str
    score: str
    details: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(filter(None, (self.name, self.score)))


def show_score(target: Target) -> str:
    """Return the probability of a target, or of a similarity or value its number."""
    kind = None if target.place is None else target.place["kind"]
    if kind in ("similarity", "value"):
        return f"{target.logit:.3g}"
    return "" if np.isnan(target.probability) else f"{target.probability:.1%}"


def show_error(error: ErrorEstimate | None, method: str) -> str:
    """Return the estimated error of a map; "" for another method than Score-CAM, which estimates none."""
    if method != "score-cam":
        return ""
    if error is None:
        return "error unknown"
    return "exact map" if error.high == 0 else f"error about {error.expected:.1g}"


def show_method(method: str, preset: str) -> str:
    """Return the name of a method; of Score-CAM with its preset."""
    return f"{method}, preset {preset}" if method == "score-cam" else method


def describe(
    target: Target,
    error: ErrorEstimate | None,
    flat: bool,
    method: Mapping[str, Any],
    preset: str,
    measures: MapMeasures | None = None,
    against: Target | None = None,
) -> Caption:
    """Return the caption of an overlay.

    Args:
        target, error, flat: what was explained, the estimated error of its map, and whether the map is flat.
        method, preset: the method with its options, and the name of the preset.
        measures: those of the map, if the box of its maximum is drawn.
        against: the target that it is contrasted with.
    """
    name = str(method["name"])
    details = [*show_method(name, preset).split(", ")]
    if flat:
        details.append("flat map: nothing supports it")
    elif against is not None:
        details.append(f"{show_score(target)} and {show_score(against)}")
    elif shown := show_error(error, name):
        details.append(shown)
    if measures is not None and measures.peak_share is not None:
        details.append(f"box around half of the maximum: {show_share(measures.peak_share)} of the photo")
    if against is None:
        return Caption(target.name, _unlabelled(target), show_score(target), tuple(details))
    names, numbers = (target.name, against.name), (_unlabelled(target), _unlabelled(against))
    return Caption(" rather than ".join(names), " rather than ".join(numbers), "", tuple(details))


def show_share(share: float) -> str:
    """Return a share of a photo as a percentage: small shares with a digit more."""
    return f"{share:.1%}" if share < 0.1 else f"{share:.0%}"


def _unlabelled(target: Target) -> str:
    """Return a name without the label, for a font that cannot draw the label."""
    if target.place is not None and target.place["kind"] == "similarity":
        return f"similarity to reference {target.index}"
    return replace(target, label=None).name


def add_caption(overlay: Photo, caption: Caption, colormap: str) -> Photo:
    """Return a picture with an overlay and, under it, its caption and a colour bar on white.

    The overlay's pixels stay where they are.

    Args:
        overlay: uint8 [H,W,3] RGB.
        caption: the words.
        colormap: the overlay's colours.

    Returns:
        uint8 [H',W',3] RGB.
    """
    return add_strip(overlay, draw_strip(caption, overlay.shape[:2], colormap))


def draw_strip(caption: Caption, size: tuple[int, ...], colormap: str, scale: tuple[str, str] = SCALE) -> Photo:
    """Return the strip that `add_caption` sets under an overlay, uint8 [h,W',3] RGB.

    Args:
        caption: the words.
        size: (H, W) of the overlay.
        colormap: the overlay's colours.
        scale: the words at the ends of the colour bar.
    """
    height, width = size
    letters = max(_LEAST_LETTERS, min(round(width / 44), round(height / 9)))
    strip = _Strip(max(width, _LEAST_WIDTH), letters, scale)
    strip.write(caption, colormap)
    return strip.picture[: strip.height]


def add_strip(overlay: Photo, strip: Photo) -> Photo:
    """Return a picture with an overlay and, under it, a strip that is at least as wide; white beside the overlay."""
    height, width = overlay.shape[:2]
    made = np.full((height + len(strip), strip.shape[1], 3), 255, np.uint8)
    made[:height, :width] = overlay
    made[height:] = strip
    return made


def magnify(overlay: Photo) -> Photo:
    """Magnify an overlay that is narrower than 168 pixels by a whole number, so that a caption fits under it."""
    height, width = overlay.shape[:2]
    times = min(-(-_LEAST_WIDTH // width), max(1, _LONGEST_MAGNIFIED // height))
    return overlay if times == 1 else overlay.repeat(times, axis=0).repeat(times, axis=1)


def title_lines(caption: Caption, width: int, size: int, font: Font) -> list[str]:
    """Return the lines of name and score, at most `width` pixels wide. A long name is shortened, the score is not."""
    name = spell(caption.name, font) or caption.unlabelled
    if len(name) > _LONGEST_LABEL:
        name = f"{name[:_LONGEST_LABEL]}..."
    lines = wrap(f"{name} {caption.score}", width, size, font)
    while len(lines) > _MOST_TITLE_LINES and name:
        name = name.removesuffix("...")[:-1].rstrip()
        name += "..." if name else ""
        lines = wrap(f"{name} {caption.score}", width, size, font)
    return lines


class _Strip:
    """The strip under an overlay: words, and a colour bar under them or to their right."""

    def __init__(self, width: int, letters: int, scale: tuple[str, str]) -> None:
        """Begin a strip that is `width` pixels wide, with letters of about `letters` pixels and the ends of its bar."""
        self.width, self.letters, self.scale = width, letters, scale
        self.small = max(11, round(letters * 0.82))
        self.edge = round(letters * 0.6)
        self.height = self.edge
        self.font = make_font()
        self.picture: Photo = np.full((letters * 24, width, 3), 255, np.uint8)
        self.picture[: max(1, letters // 12)] = 215  # a white photo ends here

    def write(self, caption: Caption, colormap: str) -> None:
        """Write the words and the bar; `height` is then the number of rows that are used."""
        beside = self.width >= _WIDE * self.letters
        inner = self.width - 2 * self.edge
        bar = round(inner * 0.34) if beside else inner
        words = inner - bar - 2 * self.letters if beside else inner
        for line in title_lines(caption, words, self.letters, self.font):
            self._line(line, self.letters, _INK)
        for line in self._parts([shown for part in caption.details if (shown := spell(part, self.font))], words):
            self._line(line, self.small, _GREY)
        below, left = self.height, self.edge
        if beside:
            self.height, left = self.edge, self.width - self.edge - bar
        else:
            self.height += round(self.letters * 0.35)
        self._bar(left, bar, colormap)
        self.height = max(self.height, below) + round(self.edge * 0.6)

    def _line(self, text: str, size: int, colour: Colour) -> None:
        self.font.draw(self.picture, text, self.edge, self.height + size, size, colour)
        self.height += round(size * 1.4)

    def _parts(self, parts: Sequence[str], width: int) -> list[str]:
        """Return the lines of the details: a part is broken only if it does not fit in a line."""
        lines: list[str] = []
        for part in parts:
            joined = f"{lines[-1]}, {part}" if lines else part
            if lines and self.font.width(joined, self.small) <= width:
                lines[-1] = joined
            else:
                lines.extend(wrap(part, width, self.small, self.font))
        return lines

    def _bar(self, left: int, width: int, colormap: str) -> None:
        """Draw the colours from 0 to the maximum, which fade to white as the overlay fades to the photo."""
        top, thick = self.height + round(self.letters * 0.15), round(self.letters * 0.75)
        levels = np.rint(np.linspace(0, 255, width)).astype(np.intp)
        cover = np.sqrt(levels / 255)[:, None]
        colours = np.rint(colour_table(colormap)[levels] * cover + 255 * (1 - cover)).astype(np.uint8)
        self.picture[top - 1 : top + thick + 1, left - 1 : left + width + 1] = 190
        self.picture[top : top + thick, left : left + width] = colours
        first, last = self.scale
        baseline = top + thick + round(self.small * 1.15)
        self.font.draw(self.picture, first, left, baseline, self.small, _GREY)
        right = left + width - self.font.width(last, self.small)
        self.font.draw(self.picture, last, right, baseline, self.small, _GREY)
        self.height = baseline + round(self.small * 0.35)
