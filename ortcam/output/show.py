"""Show explanations to people: one line, HTML for notebooks, a Pillow image, a matplotlib figure."""

from __future__ import annotations

import base64
import html
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ortcam.core.measures import MapMeasures, measure_map
from ortcam.core.pictures import Photo
from ortcam.errors import OptionError, printable
from ortcam.output.caption import SCALE, Caption, add_caption, describe, magnify, show_error, show_method, show_share
from ortcam.output.render import (
    Style,
    colour_table,
    draw_dashed_box,
    draw_overlay,
    draw_place,
    encode_jpeg,
    encode_png,
    find_peak_box,
    join_pictures,
    shrink_map,
    shrink_photo,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

    from ortcam.output.explanation import Pictures

_MOST_NAMED = 3  # targets in one line
_MOST_SHOWN = 12  # targets in a notebook
MOST_IN_A_ROW = 4  # targets in a picture
_LONGEST_IN_NOTEBOOK = 320  # pixels
_LONGEST_IN_ROW = 480  # pixels
_LONGEST_PLOTTED = 1000  # pixels
_TINY = 160  # pixels; a shorter picture is magnified
_STOPS = 16  # colours of a bar in HTML


def one_line(explanation: Pictures) -> str:
    """Return the explanation in one line: photo, targets, method, layer and error."""
    height, width = explanation.photo_size
    kind = "an input" if explanation.photo is None else "a photo"
    what = f"{explanation.source.name if explanation.source else kind}, {width}x{height}"
    named = ", ".join(str(caption_of(explanation, place)) for place in range(len(explanation.targets))[:_MOST_NAMED])
    more = len(explanation.targets) - _MOST_NAMED
    method = explanation.provenance.method["name"]
    error = show_error(explanation.error, method)
    line = f"<{type(explanation).__name__} of {what}: {named}{f' and {more} more' if more > 0 else ''}"
    how = f"{show_method(method, explanation.preset)}, layer {explanation.layer}{error and f', {error}'}"
    return printable(" ".join(f"{line}; {how}>".split()))


def draw(
    explanation: Pictures,
    place: int,
    style: Style,
    *,
    against: int | None = None,
    longest: int | None = None,
    saliency: NDArray[np.float32] | None = None,
    measures: MapMeasures | None = None,
) -> Photo:
    """Draw the overlay of a target.

    Args:
        explanation: the explanation.
        place: the place of the target.
        style: colours, caption and boxes.
        against: the place of a target to contrast it with.
        longest: the longer side of the overlay in pixels, at most; None for the photo's size.
        saliency: the map, float32 [H,W], if it is known.
        measures: the measures of the map, if they are known.

    Returns:
        uint8 [H,W,3] RGB; over mid-grey where the photo is unknown.
    """
    if saliency is None:
        saliency = explanation.map_at(place) if against is None else explanation.contrast_at(place, against)
    if style.boxes and measures is None:
        measures = measure_map(saliency, explanation.crop, find_peak_box)
    size = explanation.photo_size
    photo = np.full((*size, 3), 128, np.uint8) if explanation.photo is None else explanation.photo
    small = photo if longest is None else shrink_photo(photo, longest)
    crop, saliency = explanation.crop.resized(size, small.shape[:2]), shrink_map(saliency, *small.shape[:2])
    overlay = draw_overlay(small, saliency, crop, style.opacity, style.colormap)
    if style.caption:
        overlay = magnify(overlay)
    new = overlay.shape[:2]
    overlay = draw_place(overlay, explanation.targets[place].place or {}, explanation.crop.resized(size, new), size)
    if style.boxes and measures is not None and measures.peak_box is not None:
        overlay = draw_dashed_box(overlay, measures.peak_box.resized(size, new))
    if style.caption:
        shown = caption_of(explanation, place, measures if style.boxes else None, against)
        overlay = add_caption(overlay, shown, style.colormap)
    return overlay


def caption_of(
    explanation: Pictures, place: int, measures: MapMeasures | None = None, against: int | None = None
) -> Caption:
    """Return the caption of the overlay of a target; with `measures`, it explains the dashed box."""
    e = explanation
    other = None if against is None else e.targets[against]
    return describe(e.targets[place], e.errors[place], e.flat[place], e.provenance.method, e.preset, measures, other)


def to_html(explanation: Pictures) -> str:
    """Return HTML for a notebook: a card for each target, with its overlay, the numbers and a colour bar."""
    count = len(explanation.targets)
    beside = "display:flex;flex-wrap:wrap;gap:12px;align-items:flex-start" if count == 1 else "width:min-content"
    cards = [_card(explanation, place, beside) for place in range(min(count, _MOST_SHOWN))]
    if count > _MOST_SHOWN:
        cards.append(f"<div>and {count - _MOST_SHOWN} more; explanation.image(target) shows one</div>")
    return f'<div style="display:flex;flex-wrap:wrap;gap:16px;margin:4px 0">{"".join(cards)}</div>'


def _card(explanation: Pictures, place: int, style: str) -> str:
    saliency = explanation.map_at(place)
    overlay = draw(explanation, place, Style(), longest=_LONGEST_IN_NOTEBOOK, saliency=saliency)
    caption, measures = caption_of(explanation, place), measure_map(saliency, explanation.crop, find_peak_box)
    height, width = overlay.shape[:2]
    times = -(-_TINY // max(height, width))
    kind, data = ("png", encode_png(overlay)) if times > 1 else ("jpeg", encode_jpeg(overlay, 88))
    pixels = "image-rendering:pixelated;" if times > 1 else ""
    numbers = []
    if measures.maximum is not None and measures.peak_box is not None and measures.peak_share is not None:
        box = measures.peak_box
        numbers = [
            f"maximum at x {measures.maximum[0]}, y {measures.maximum[1]}",
            f"box around half of the maximum: x {box.left} to {box.right}, y {box.top} to {box.bottom}, "
            f"{show_share(measures.peak_share)} of the photo",
        ]
    layer = f"layer {explanation.layer}"
    lines = "".join(f"<br>{html.escape(line)}" for line in (", ".join(caption.details), layer, *numbers))
    return (
        f'<div style="{style}"><img style="{pixels}max-width:none;display:block" width="{width * times}" '
        f'height="{height * times}" alt="{html.escape(f"map of {caption} over the photo")}" '
        f'src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'
        f'<div style="min-width:200px;max-width:360px;margin:3px 0;font-size:13px;line-height:1.45;'
        f'overflow-wrap:anywhere">'
        f"<b>{html.escape(caption.name)}</b> {html.escape(caption.score)}"
        f'<span style="opacity:.75">{lines}</span>{_bar("turbo")}</div></div>'
    )


def _bar(colormap: str) -> str:
    """Return the colours from 0 to the maximum; they fade to the page as the overlay fades to the photo."""
    levels = np.linspace(0, 255, _STOPS).round().astype(int)
    stops = ",".join(
        f"rgba({red},{green},{blue},{(level / 255) ** 0.5:.2f})"
        for level, (red, green, blue) in zip(levels.tolist(), colour_table(colormap)[levels].tolist(), strict=True)
    )
    first, last = SCALE
    return (
        '<div style="height:10px;margin:7px 1px 2px;box-shadow:0 0 0 1px #8888;'
        f'background:linear-gradient(to right,{stops})"></div>'
        f'<div style="display:flex;justify-content:space-between;opacity:.75"><span>{first}</span>'
        f"<span>{last}</span></div>"
    )


def to_png(explanation: Pictures) -> bytes:
    """Return a PNG file with the captioned overlays of the first targets side by side."""
    places = range(len(explanation.targets))[:MOST_IN_A_ROW]
    style = Style(caption=True)
    return encode_png(join_pictures([draw(explanation, place, style, longest=_LONGEST_IN_ROW) for place in places]))


def to_image(picture: Photo) -> Image.Image:
    """Return a picture uint8 [H,W,3] as a Pillow image.

    Raises:
        OptionError: Pillow is missing.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise OptionError("image() needs Pillow: pip install 'ortcam[plot]'") from error
    return Image.fromarray(picture)


def plot(explanation: Pictures, places: Sequence[int], style: Style, against: int | None) -> Figure:
    """Draw the photo, overlays and the scale of their colours as a matplotlib figure.

    In a notebook, and without a display, the figure is closed in pyplot: it is then shown once and not kept in memory.

    Raises:
        OptionError: matplotlib is missing.
    """
    try:
        import matplotlib
        import matplotlib.pyplot as plt
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import ListedColormap
    except ImportError as error:
        raise OptionError("plot() needs matplotlib: pip install 'ortcam[plot]'") from error
    cells: list[tuple[Photo, Caption | None]] = []
    if explanation.photo is not None:
        cells.append((shrink_photo(explanation.photo, _LONGEST_PLOTTED), None))
    for place in places:
        overlay = draw(explanation, place, style, against=against, longest=_LONGEST_PLOTTED)
        cells.append((overlay, caption_of(explanation, place, None, against)))
    height, width = cells[0][0].shape[:2]
    across = float(np.clip(3.2 * width / height, 2.2, 5))
    size = across * len(cells) + 0.9, float(np.clip(across * height / width, 1.2, 5)) + 0.55
    figure, axes = plt.subplots(1, len(cells), figsize=size, layout="constrained", squeeze=False)
    for axis, (picture, caption) in zip(axes[0], cells, strict=True):
        axis.imshow(picture)
        axis.set_axis_off()
        axis.set_title("photo" if caption is None else _title(caption, across), fontsize=9)
    cover = np.sqrt(np.arange(256) / 255)[:, None]  # they fade to white, as the overlay fades to the photo
    mapped = ScalarMappable(cmap=ListedColormap(colour_table(style.colormap) / 255 * cover + 1 - cover))
    scale = figure.colorbar(mapped, cax=axes[0][-1].inset_axes((1.03, 0, 0.045, 1)), ticks=[0, 0.5, 1])
    scale.set_label(f"share of {SCALE[1]}", fontsize=8)
    scale.ax.tick_params(labelsize=8)
    backend = matplotlib.get_backend().lower()
    if backend == "agg" or backend.endswith("inline"):
        plt.close(figure)
    return figure


def _title(caption: Caption, inches: float) -> str:
    """Return the lines over an overlay that is so many inches wide."""
    letters, name = max(16, round(inches * 15)), " ".join(caption.name.split())
    if not _has_letters(name):
        name = caption.unlabelled
    if len(name) > 2 * letters - 8:
        name = f"{name[: 2 * letters - 11].rstrip()}..."
    lines = [*textwrap.wrap(f"{name} {caption.score}", letters), *textwrap.wrap(", ".join(caption.details), letters)]
    return "\n".join(lines).replace("$", r"\$")


def _has_letters(text: str) -> bool:
    """Return whether matplotlib's fonts, as the user set them, have all characters of a text."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    fonts = [get_font(findfont(FontProperties(family=[name]))) for name in FontProperties().get_family()]
    return all(any(font.get_char_index(ord(letter)) for font in fonts) for letter in text)
