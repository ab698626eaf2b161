"""The maps of a video's frames: read from explanations, kept in a file, and drawn over the frames."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ortcam.core.convention import Floats
from ortcam.core.pictures import Crop, Photo
from ortcam.core.targets import Targets
from ortcam.core.timeline import Place, Timeline, blend
from ortcam.errors import OrtcamError, OrtcamWarning
from ortcam.explain.ahead import read_ahead
from ortcam.output.explanation import Explanation, Pictures
from ortcam.output.render import Style, draw_box, draw_overlay, place_map, resize_map
from ortcam.output.video import Video
from ortcam.output.video_caption import FrameCaptions, describe_row, without_map
from ortcam.output.video_record import describe_frame

if TYPE_CHECKING:
    from ortcam.explain.protocol import Explainer
    from ortcam.output.caption import Caption

_PACKED_SIDE = 128  # pixels of the longer side of a packed explainer's map in the file of maps
FEWEST_AHEAD = 4  # frames that are decoded ahead


class Scan:
    """Explains every N-th frame of a video, and keeps the raw maps in a file.

    Attributes:
        first: the first explanation; None before there is one.
        rows: the record of each explained frame.
        boxes: the box of each explained frame, [4] in pixels; None if it has none.
        captions: the caption of each explained frame; None if it has no map.
        timeline: the explained frames and the cuts.
        read: the number of frames that were read.
        seconds: the time of the last frame.
    """

    def __init__(self, video: Video, every: int, steady: float) -> None:
        self.first: Pictures | None = None
        self.rows: list[dict[str, Any]] = []
        self.boxes: list[Floats | None] = []
        self.captions: list[Caption | None] = []
        self.timeline = Timeline()
        self.read, self.seconds = 0, 0.0
        self._video, self._every, self._steady = video, every, steady
        self._shape: tuple[int, ...] = ()

    def run(
        self,
        explainer: Explainer,
        targets: Targets,
        limits: dict[str, Any],
        file: Path,
        on_frame: Callable[[int], None],
    ) -> None:
        """Explain the frames.

        Args:
            explainer, targets, limits: as for `explain_batch`.
            file: the file of maps to write: float32 [J,h,w].
            on_frame: called with the number of frames done.

        Raises:
            OrtcamError: the error of the first frame, if no frame could be explained.
        """
        failures: list[OrtcamError] = []
        line = self.timeline

        def fail(_: Any, error: OrtcamError) -> None:
            failures.append(error)
            self._add(None, error)

        with file.open("wb") as kept, warnings.catch_warnings(), closing(self._pictures()) as pictures:
            warnings.filterwarnings("ignore", message=r"the map of .* is flat", category=OrtcamWarning)  # in the record
            for explanation in explainer.explain_batch(
                pictures,
                targets,
                on_error=fail,
                on_progress=lambda done: on_frame(min(round(done * self._every), self.read)),
                **limits,
            ):
                raw = raw_map(explanation)
                if self.first is None:
                    self.first, self._shape = explanation, raw.shape
                kept.write(bytes((len(line.has_map) * raw.nbytes) - kept.tell()))  # frames without a map
                kept.write(np.ascontiguousarray(raw, np.float32).tobytes())
                self._add(explanation, None)
            kept.write(bytes(len(line.has_map) * raw.nbytes - kept.tell()) if self.first is not None else b"")
        if self.first is None:
            raise failures[0]

    def maps(self, file: Path, mode: Any = "r") -> NDArray[np.float32]:
        """Return the file of maps, float32 [J,h,w], which is not held in memory."""
        return np.memmap(file, np.float32, mode, shape=(len(self.rows), *self._shape))

    def _add(self, explanation: Pictures | None, error: OrtcamError | None) -> None:
        line = self.timeline
        row = len(line.has_map)
        self.rows.append(describe_frame(line.numbers[row], line.seconds[row], explanation, error))
        self.captions.append(None if explanation is None else self._caption(explanation))
        place = None if explanation is None else explanation.targets[0].place
        box = None if place is None else place.get("box")
        self.boxes.append(None if box is None else np.asarray(box, np.float32))
        line.add(explanation is not None, self.boxes[-1])

    def _caption(self, one: Pictures) -> Caption:
        return describe_row(one.targets[0], one.flat[0], one.provenance.method, one.preset, self._steady)

    def _pictures(self) -> Generator[Photo, None, None]:
        frames = self._video.frames(lambda number: number % self._every == 0, find_cuts=True)
        with closing(read_ahead(frames, max(FEWEST_AHEAD, 2 * self._every))) as ahead:
            for frame in ahead:
                self.read, self.seconds = frame.number + 1, frame.seconds
                if frame.is_cut:
                    self.timeline.cuts.append(frame.number)
                if frame.picture is not None:
                    self.timeline.numbers.append(frame.number)
                    self.timeline.seconds.append(frame.seconds)
                    yield frame.picture


class Drawing:
    """Draws the maps over the frames.

    Attributes:
        scale: the largest value of the averaged maps of the video; it is drawn as 1.
        captions: writes the captions; None if there are none.
        size: (H, W) of the drawn frames.
    """

    def __init__(self, scan: Scan, file: Path, steady: float, style: Style) -> None:
        """Average the maps.

        Args:
            scan: the explained frames.
            file: the file of their maps. The averages are written beside it.
            steady: the time constant in seconds.
            style: colours, and whether there is a caption.
        """
        assert scan.first is not None
        self._first, self._scan, self._style = scan.first, scan, style
        averages = file.with_suffix(".steady")
        self._maps = scan.maps(averages, "w+")
        scan.timeline.average(scan.maps(file), steady, self._maps)
        rows = [row for row, has_map in enumerate(scan.timeline.has_map) if has_map]
        self.scale = max(0.0, *(float(self._maps[row].max()) for row in rows))
        known = [caption for caption in scan.captions if caption is not None]
        self._bare, size = without_map(known[0]), self._first.photo_size
        self.captions = FrameCaptions([*known, self._bare], size, style.colormap) if style.caption else None
        self.size = size if self.captions is None else self.captions.size

    def saliency(self, place: Place) -> Floats:
        """Return the map of a frame, float32 [H,W] in [0,1] at the frame's size."""
        first, raw = self._first, blend(place, self._maps)
        share = 0.0 if self.scale <= 0 else max(float(raw.max()), 0.0) / self.scale
        if isinstance(first, Explanation):
            (one,) = first.convention.saliency(raw[None], first.input_size)
            return place_map(one * np.float32(share), first.crop, first.photo_size)
        placed = np.zeros(first.photo_size, np.float32)
        bare = first.crop
        placed[bare.inside] = np.clip(resize_map(raw, bare.height, bare.width) / max(self.scale, 1e-12), 0, 1)
        return placed

    def draw(self, number: int, picture: Photo) -> Photo:
        """Return a frame with its map, box and caption, uint8 [H,W,3] RGB; without map and box if it has no map."""
        place = self._scan.timeline.find(number)
        drawn = picture if place is None else self._draw_map(picture, place)
        if self.captions is None:
            return drawn
        caption = None if place is None else self._scan.captions[place.first]
        return self.captions.add(drawn, caption or self._bare)

    def _draw_map(self, picture: Photo, place: Place) -> Photo:
        style = self._style
        drawn = draw_overlay(picture, self.saliency(place), self._first.crop, style.opacity, style.colormap)
        box = self._box(place)
        return drawn if box is None else draw_box(drawn, box.tolist())

    def _box(self, place: Place) -> Floats | None:
        first, second = self._scan.boxes[place.first], self._scan.boxes[place.second]
        if first is None or second is None:
            return first
        return np.asarray((1 - place.share) * first + place.share * second, np.float32)


def raw_map(explanation: Pictures) -> Floats:
    """Return the map of the first target before its last steps, float32 [h,w].

    A packed explainer returns finished maps: the part of the photo that the model saw, at most 128 pixels long.
    """
    if isinstance(explanation, Explanation):
        raw: Floats = explanation.raw_maps[0]
        return raw
    crop: Crop = explanation.crop
    seen = explanation.map_at(0)[crop.inside]
    ratio = min(1.0, _PACKED_SIDE / max(seen.shape))
    height, width = (max(1, round(side * ratio)) for side in seen.shape)
    return resize_map(np.ascontiguousarray(seen), height, width)
