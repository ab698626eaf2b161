"""Hold, draw and save an explanation of a photo."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from ortcam.core.convention import Convention
from ortcam.core.files import only, replace_directory
from ortcam.core.measures import MapMeasures, Meter, contrast_maps
from ortcam.core.pictures import Crop, Photo
from ortcam.core.provenance import Provenance
from ortcam.core.references import Asked, Box, Output
from ortcam.core.selection import ErrorEstimate
from ortcam.core.targets import Target, find_target
from ortcam.errors import OptionError, OrtcamWarning, OutputError, TargetError
from ortcam.output.record import build_record, is_written_by_save, overlay_name, why_not_same, write_record
from ortcam.output.render import Style, encode_png, find_peak_box, place_map
from ortcam.output.show import MOST_IN_A_ROW, draw, one_line, plot, to_html, to_image, to_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

    from ortcam.output.record import Recordable


class Pictures:
    """The drawing and saving that all explanations share."""

    photo: Photo | None
    crop: Crop
    targets: tuple[Target, ...]
    errors: tuple[ErrorEstimate | None, ...]
    source: Path | None
    provenance: Provenance
    if TYPE_CHECKING:  # fields of one kind of explanation, properties of the other

        @property
        def flat(self) -> tuple[bool, ...]: ...
        @property
        def layer(self) -> str: ...
        @property
        def preset(self) -> str: ...

    @property
    def error(self) -> ErrorEstimate | None:
        """The largest of `errors`; None if an error is unknown."""
        known = [error for error in self.errors if error is not None]
        return max(known, key=lambda error: error.expected) if len(known) == len(self.errors) else None

    @property
    def photo_size(self) -> tuple[int, int]:
        """(H, W) of the photo, or of the input tensor."""
        if self.photo is None:
            return self.crop.bottom, self.crop.right
        return self.photo.shape[0], self.photo.shape[1]

    @property
    def bytes_to_write(self) -> int:
        """The approximate number of bytes that `save` writes: a float32 map, a PNG (1 byte a pixel) and the arrays."""
        height, width = self.photo_size
        return 5 * len(self.targets) * height * width + sum(array.nbytes for array in self.arrays().values())

    def with_source(self, source: Path) -> Self:
        """Return the same explanation with another `source`."""
        other = copy.copy(self)
        object.__setattr__(other, "source", source)
        return other

    def map(self, target: int | str | Asked | None = None) -> NDArray[np.float32]:
        """Return the map of an explained class, float32 [H,W] in [0,1] at the photo's size.

        Args:
            target: a class index, a label or one of a label's synonyms; a `Box` with the number of a detection, or an
                `Output`; None for the first target.

        Raises:
            TargetError: the class was not explained.
        """
        return self.map_at(self.place_of(target))

    def __getitem__(self, target: int | str | Asked) -> NDArray[np.float32]:
        """Return `map(target)`: ``explanation[285]``, ``explanation["tiger cat"]``."""
        return self.map(target)

    def __contains__(self, target: object) -> bool:
        """Return whether a class index or label was explained."""
        return isinstance(target, int | str | Box | Output) and len(find_target(target, self.targets)) == 1

    __iter__ = None  # explanation[N] is the map of class N, not the N-th map: these are `maps`

    def map_at(self, place: int) -> NDArray[np.float32]:
        """Return the map of the target at a place of `targets`, float32 [H,W]; -1 is the last place.

        Raises:
            OptionError: the place is not in `targets`.
        """
        raise NotImplementedError

    def place_of(self, target: int | str | Asked | None) -> int:
        """Return the place in `targets` of a class index or label; 0 for None.

        Raises:
            TargetError: the class was not explained, or several explained classes have the label.
        """
        if target is None:
            return 0
        places = find_target(target, self.targets)
        if len(places) == 1:
            return places[0]
        shown = ", ".join(
            f"{one.index}" if one.label is None else f"{one.index} {one.name}" for one in self.targets[:5]
        )
        more = "" if len(self.targets) <= 5 else f" and {len(self.targets) - 5} more"
        if places:
            kinds = "classes" if self.targets[0].place is None else "targets"
            which = "the class index" if kinds == "classes" else "ortcam.Box(number), or take map_at(place)"
            raise TargetError(f"label {target!r} names several explained {kinds} ({shown}{more}); give {which}")
        raise TargetError(
            f"class {target!r} was not explained; expected one of the explained classes: {shown}{more} "
            "(map_at and overlay_at take places)"
        )

    def _checked_place(self, place: int) -> int:
        """Return the place as an index, after checking it."""
        count = len(self.targets)
        if isinstance(place, bool) or not isinstance(place, int | np.integer) or not -count <= place < count:
            raise OptionError(f"place is {place!r}; expected the place of one of the {count} targets, from 0")
        return int(place)

    def to_dict(self) -> dict[str, Any]:
        """Return the explanation without its arrays as plain JSON: the record that `save` writes (docs/record.md)."""
        return build_record(cast("Recordable", self))  # both kinds of explanation have these attributes

    @property
    def measures(self) -> tuple[MapMeasures, ...]:
        """Numbers of each of the T maps: place of the maximum, box of the half maximum, shares."""
        return self._measured[0]

    @property
    def correlations(self) -> tuple[tuple[float | None, ...], ...] | None:
        """Pearson's r of every two maps, [T,T]; None for a flat map, and None alone for more than 20 maps."""
        return self._measured[1]

    @cached_property
    def _measured(self) -> tuple[tuple[MapMeasures, ...], tuple[tuple[float | None, ...], ...] | None]:
        meter = Meter(self.crop, len(self.targets), find_peak_box)
        for place in range(len(self.targets)):
            meter.add(self.map_at(place))
        return tuple(meter.measures), meter.correlations()

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return the arrays that `save` writes beside the maps, by name."""
        return {}

    def overlay(
        self,
        target: int | str | Asked | None = None,
        opacity: float = 0.6,
        colormap: str = "turbo",
        *,
        caption: bool = False,
        boxes: bool = False,
        against: int | str | Asked | None = None,
    ) -> Photo:
        """Draw the map of an explained class over the photo.

        Args:
            target: as for `map`.
            opacity: opacity of the heat map, 0 to 1.
            colormap: turbo, jet, inferno or viridis.
            caption: write a caption and a colour bar under the overlay, which makes the picture taller. A photo that
                is narrower than 168 pixels is magnified.
            boxes: draw the box around the map's maximum, `MapMeasures.peak_box`.
            against: draw `contrast(target, against)` instead of the map.

        Returns:
            uint8 [H,W,3] RGB; over mid-grey where the photo is unknown.

        Raises:
            TargetError: the class was not explained.
            OptionError: the colormap is unknown, or the opacity is out of range.
        """
        style = Style(opacity, colormap, caption, boxes)
        other = None if against is None else self.place_of(against)
        return draw(self, self.place_of(target), style, against=other)

    def overlay_at(
        self,
        place: int,
        opacity: float = 0.6,
        colormap: str = "turbo",
        *,
        caption: bool = False,
        boxes: bool = False,
        against: int | None = None,
    ) -> Photo:
        """Draw the map of the target at a place of `targets` over the photo; otherwise as `overlay`."""
        other = None if against is None else self._checked_place(against)
        return draw(self, self._checked_place(place), Style(opacity, colormap, caption, boxes), against=other)

    def image(self, target: int | str | Asked | None = None, **style: Any) -> Image.Image:
        """Return `overlay` as a Pillow image; the arguments are those of `overlay`.

        Raises:
            TargetError, OptionError: as `overlay`; Pillow is missing.
        """
        return to_image(self.overlay(target, **style))

    def plot(
        self, target: int | str | Asked | None = None, opacity: float = 0.6, colormap: str = "turbo", **more: Any
    ) -> Figure:
        """Return a matplotlib figure: the photo, the overlay, and a colour bar with its scale.

        Args:
            target: as for `map`; None for the first 4 targets side by side.
            opacity, colormap, more: as for `overlay`, but `caption`: there is always one.

        Raises:
            TargetError, OptionError: as `overlay`; matplotlib is missing.
        """
        against = more.pop("against", None)
        other = None if against is None else self.place_of(against)
        several = target is None and other is None
        places = range(len(self.targets))[:MOST_IN_A_ROW] if several else [self.place_of(target)]
        return plot(self, places, Style(opacity, colormap, **more), other)

    def contrast(self, target: int | str | Asked, against: int | str | Asked) -> NDArray[np.float32]:
        """Return the map of what speaks for one explained class rather than another, float32 [H,W] in [0,1].

        Both maps are from the same passes; `ortcam.core.measures.contrast_maps` defines the contrast.

        Args:
            target, against: as for `map`.

        Raises:
            TargetError: a class was not explained.
        """
        return self.contrast_at(self.place_of(target), self.place_of(against))

    def contrast_at(self, place: int, against: int) -> NDArray[np.float32]:
        """Return `contrast` of the targets at two places of `targets`."""
        return contrast_maps(self.map_at(place), self.map_at(against))

    def __repr__(self) -> str:
        return one_line(self)

    def _repr_html_(self) -> str:
        return to_html(self)

    def _repr_png_(self) -> bytes:
        return to_png(self)

    def save(
        self,
        directory: str | PathLike[str],
        opacity: float = 0.6,
        colormap: str = "turbo",
        overwrite: bool = False,
        *,
        caption: bool = False,
        boxes: bool = False,
    ) -> Path:
        """Write overlays (PNG), ``maps.npy`` and ``explanation.json``.

        Explanations of a model file also have ``raw_maps.npy`` and ``weights.npy``; those of a packed explainer do not.

        The directory appears whole or not at all. A directory that holds an earlier explanation of the same photo,
        model, classes and options, and nothing else, is replaced: see docs/record.md.

        Args:
            directory: the directory to write.
            opacity, colormap, caption, boxes: for the overlays, as for `overlay`.
            overwrite: replace any earlier explanation. Other files are never deleted.

        Raises:
            OccupiedError: the directory holds another explanation, or other files.
            OutputError: the directory cannot be written.
        """
        style = Style(opacity, colormap, caption, boxes)
        shape = (len(self.targets), *self.photo_size)
        meter = Meter(self.crop, len(self.targets), find_peak_box)
        with replace_directory(Path(directory), lambda folder: self._why_occupied(folder, overwrite)) as unfinished:
            try:
                maps = open_memmap(unfinished / "maps.npy", mode="w+", dtype=np.float32, shape=shape)
                for row, target in enumerate(self.targets):  # one by one: all classes may be a thousand
                    saliency = maps[row] = self.map_at(row)
                    meter.add(saliency)
                    overlay = draw(self, row, style, saliency=saliency, measures=meter.measures[-1])
                    (unfinished / overlay_name(target, row)).write_bytes(encode_png(overlay))
                maps.flush()
                for name, array in self.arrays().items():
                    np.save(unfinished / f"{name}.npy", array)
                vars(self)["_measured"] = tuple(meter.measures), meter.correlations()  # drawn once, measured once
                write_record(self.to_dict(), unfinished)
            except OSError as error:
                raise OutputError(f"cannot write {directory}: {error.strerror or error}") from error
        return Path(directory)

    def _why_occupied(self, folder: Path, overwrite: bool) -> str | None:
        """Return why `save` must not replace a directory that is not empty; None if it may."""
        refused = only(is_written_by_save)(folder)
        if refused is not None or overwrite:
            return refused
        reason = why_not_same(cast("Recordable", self), folder)
        return None if reason is None else f"it holds {reason}; give another directory, or overwrite=True (--overwrite)"


@dataclass(frozen=True, repr=False)
class Explanation(Pictures):
    """The Score-CAM maps of one photo.

    Attributes:
        raw_maps: float32 [T,h,w], the weighted sums of the channels at the layer's size, before ReLU and
            normalisation.
        weights: float32 [T,K], the weight of every channel.
        targets: the T classes, in the order of the maps.
        errors: the estimated error of every map against the exact map; None if the method of selection cannot estimate
            it, or has fewer than 8 scores.
        source: the path from which the photo was read; None if it was not read from a path.
        photo: uint8 [H,W,3] RGB; None for an input tensor that cannot be turned back into a photo.
        crop: the part of the photo that preprocessing left for the model.
        convention: the definition of Score-CAM in use.
        input_size: the model's input size (h_in, w_in).
        channels: K, all channels of the target layer.
        live: the number of channels that vary in space; None if the method does not use them.
        scored: the number of masked inputs that were run: one for each distinct mask, or fewer with a budget.
        layer: the target layer; `provider` is the execution provider.
        seconds: wall time of the explanation; for photos that were explained together, the photo's share. On CUDA it
            includes waiting for another group of photos in `explain_batch`.
        seconds_scoring: the part of `seconds` that chose and ran the masked inputs.
        flat: which of the T maps are flat (no channel of the layer supports the class).
        provenance: the hashes of photo and model, the options given, versions and time, for the record.
    """

    raw_maps: NDArray[np.float32]
    weights: NDArray[np.float32]
    targets: tuple[Target, ...]
    errors: tuple[ErrorEstimate | None, ...]
    source: Path | None
    photo: Photo | None
    crop: Crop
    convention: Convention
    input_size: tuple[int, int]
    channels: int
    live: int | None
    scored: int
    layer: str
    provider: str
    seconds: float
    seconds_scoring: float
    flat: tuple[bool, ...]
    provenance: Provenance

    @property
    def preset(self) -> str:
        """The name of the convention."""
        return self.convention.name

    @cached_property
    def input_maps(self) -> NDArray[np.float32]:
        """float32 [T,h_in,w_in] in [0,1] at the model's input size: the convention's own result."""
        return self.convention.saliency(self.raw_maps, self.input_size)

    @cached_property
    def maps(self) -> NDArray[np.float32]:
        """float32 [T,H,W] in [0,1] at the photo's size; 0 outside `crop`, where the model did not see the photo."""
        return np.stack([self.map_at(place) for place in range(len(self.targets))])

    def map_at(self, place: int) -> NDArray[np.float32]:
        # Only this map is drawn: all maps of many classes are large.
        (saliency,) = self.convention.saliency(self.raw_maps[[self._checked_place(place)]], self.input_size)
        return place_map(saliency, self.crop, self.photo_size)

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        return {"raw_maps": self.raw_maps, "weights": self.weights}


def warn_of_flat_maps(explanation: Recordable, stacklevel: int = 3) -> None:
    """Warn of flat maps, by default the caller's caller."""
    names = [target.name for target, nothing in zip(explanation.targets, explanation.flat, strict=True) if nothing]
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        why = f"no channel of layer {explanation.layer} supports it, or their weighted sum is nowhere above 0"
        if explanation.provenance.method["name"] != "score-cam":
            why = "all masked inputs score the same"
        message = f"the map of {', '.join(names[:5])}{more} is flat (all zero): {why}"
        warnings.warn(message, OrtcamWarning, stacklevel=stacklevel)
