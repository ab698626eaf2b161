"""The captions of a video: class, probability and a colour bar under every frame, in strips of one height."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from ortcam.core.pictures import Photo
from ortcam.output.caption import SCALE, Caption, add_strip, describe, draw_strip, magnify, show_method
from ortcam.output.text import make_font

if TYPE_CHECKING:
    from ortcam.core.targets import Target

_KEPT = 16  # strips; frames that follow each other mostly share one
_SCALE = SCALE[0], "this video's maximum"  # all frames have one scale


def describe_row(target: Target, flat: bool, method: Mapping[str, Any], preset: str, steady: float) -> Caption:
    """Return the caption of the frames that show the map of an explained frame.

    An averaged map has no estimated error, so no error is written. A box is drawn, and moves: it is not written.

    Args:
        target: the target with its probability in the explained frame.
        flat: whether the explained frame's own map is flat.
        method, preset: the method with its options, and the name of the preset.
        steady: the time constant of the average in seconds.
    """
    has_box = target.place is not None and target.place.get("box") is not None
    named = describe(replace(target, place=None) if has_box else target, None, flat, method, preset)
    details = show_method(str(method["name"]), preset).split(", ")
    if steady:
        details.append(f"averaged over {steady:g} s")
    if flat:
        details.append("the map of this frame alone is flat")
    return replace(named, details=tuple(details))


def without_map(caption: Caption) -> Caption:
    """Return the caption of frames without a map, from that of a frame of the same video."""
    return replace(caption, score="", details=("no map in this frame",))


class FrameCaptions:
    """Writes the captions of a video under its frames. It may be used from several threads.

    Attributes:
        height: of the strip under each frame in pixels.
        size: (H, W) of the captioned frames. H is even, as codecs need it.
    """

    def __init__(self, captions: Iterable[Caption], size: tuple[int, int], colormap: str) -> None:
        """Find the height that all strips have.

        Args:
            captions: all captions of the video.
            size: (H, W) of the frames. A frame that is narrower than 168 pixels is magnified by a whole number.
            colormap: the overlays' colours.
        """
        self._frame, self._colormap, self._lock = magnify(np.zeros((*size, 3), np.uint8)).shape[:2], colormap, Lock()
        self._strips: dict[Caption, Photo] = {}
        font, widest = make_font(), dict[tuple[str, tuple[str, ...]], tuple[int, Caption]]()
        for caption in set(captions):
            kind, width = (caption.name, caption.details), font.width(caption.score, 100)
            if width >= widest.get(kind, (0, caption))[0]:
                widest[kind] = width, caption
        shapes = [self._draw(caption).shape for _, caption in widest.values()]  # a strip holds a canvas of megabytes
        height = max(shape[0] for shape in shapes)
        self.height = height + (self._frame[0] + height) % 2
        self.size = self._frame[0] + self.height, shapes[0][1]

    def add(self, frame: Photo, caption: Caption) -> Photo:
        """Return a frame with its caption under it, uint8 [H,W,3] RGB of `size`."""
        with self._lock:
            strip = self._strips.get(caption)
            if strip is None:
                drawn = self._draw(caption)[: self.height]
                strip = np.full((self.height, *drawn.shape[1:]), 255, np.uint8)
                strip[: len(drawn)] = drawn
                if len(self._strips) == _KEPT:
                    self._strips.clear()
                self._strips[caption] = strip
        return add_strip(magnify(frame), strip)

    def _draw(self, caption: Caption) -> Photo:
        return draw_strip(caption, self._frame, self._colormap, _SCALE)
