"""The references of a photo that is evaluated, of a model of another task, and their places in the photo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ortcam.core.convention import Floats
from ortcam.core.forward import Forward
from ortcam.core.readers import resolve
from ortcam.core.references import Box, Reference, Region, score
from ortcam.core.targets import describe_references
from ortcam.core.view import View
from ortcam.evaluation.localisation import Place
from ortcam.evaluation.regions import Box as Edges
from ortcam.evaluation.regions import inside
from ortcam.output.render import place_map

if TYPE_CHECKING:
    from ortcam.evaluation.samples import Sample


class PhotoReferences:
    """The references of one photo, each once: the index of a reference is its place in `all`.

    Attributes:
        all: the references that were found.
    """

    def __init__(self, task: str, plain: Forward, view: View) -> None:
        self._task, self._plain, self._view = task, plain, view
        self.all: list[Reference] = []

    def find(self, end: Any, sample: Sample) -> Reference:
        """Return what is explained or scored in a sample (`ortcam.evaluation.cases.Choice`).

        Raises:
            TargetError: the photo has no such target.
            DatasetError: a box or mask of the sample does not fit the photo.
        """
        found = self._true(sample) if end == "true" else self._resolve(None if end == "predicted" else end)
        for one in self.all:
            if one.is_same(found):
                return one
        self.all.append(replace(found, index=len(self.all)))
        return self.all[-1]

    def scored(self, forward: Forward) -> Forward:
        """Return a plain pass whose logits are the scores of all references."""
        return replace(forward, logits=score(self._task, forward.results, self.all))

    def score_of(self, forward: Forward, reference: Reference) -> float:
        """Return the score of a reference in a plain pass."""
        return float(score(self._task, forward.results, [reference])[0])

    def name_of(self, reference: Reference) -> str:
        """Return the name of a target, such as ``cat at 10,20,90,200``."""
        (target,) = describe_references([reference], score(self._task, self._plain.results, [reference]))
        return target.name

    def place_of(self, reference: Reference, sample: Sample, is_true: bool) -> Place | None:
        """Return where a target is in the photo: its own box or region; of another target, what the data set states.

        Args:
            reference: the target.
            sample: the photo.
            is_true: the target is the object that the data set states.

        Returns:
            None if nothing states a place, or if it has no pixel.

        Raises:
            DatasetError: a box or mask of the sample does not fit the photo.
        """
        kind = reference.place["kind"]
        if kind == "box":
            return self._place_of_box(reference.place["box"])
        region = sample.region(self._view.photo_size) if is_true or kind != "region" else None
        if region is not None:
            return Place(region, sample.boxes)
        if kind != "region":
            return None
        region = self._on_photo(reference.vector)
        return Place(region) if region.any() else None

    def _resolve(self, asked: Any) -> Reference:
        return resolve(self._task, asked, 1, self._plain.results, self._view)[0]

    def _true(self, sample: Sample) -> Reference:
        """Return the object that the data set states. Of several boxes of a class, the one that scores highest."""
        region = sample.region(self._view.photo_size) if self._task in ("detect", "segment") else None
        if region is None:
            return self._resolve(sample.label)
        if self._task == "segment":
            return self._resolve(Region(sample.label, mask=region))
        found = [self._resolve(Box(box, sample.label)) for box in self._boxes(sample)]
        return found[int(score(self._task, self._plain.results, found).argmax())]

    def _boxes(self, sample: Sample) -> Sequence[tuple[float, float, float, float]]:
        if sample.boxes:
            return sample.boxes
        masks = [mask.read(self._view.photo_size) for mask in sample.masks]
        return [edges for mask in masks if mask.any() for edges in Place(mask).edges]

    def _place_of_box(self, box: Sequence[float]) -> Place | None:
        """Return the part of a box that lies in the photo; a detector's box may go beyond it."""
        height, width = self._view.photo_size
        left, top, right, bottom = box
        clipped = Edges(max(0.0, left), max(0.0, top), min(float(width), right), min(float(height), bottom))
        if clipped.left >= clipped.right or clipped.top >= clipped.bottom:
            return None
        region = inside(clipped, (height, width))
        return Place(region, (clipped,)) if region.any() else None

    def _on_photo(self, weights: Floats) -> NDArray[np.bool_]:
        """Return the pixels of the photo [H,W] that a region [h*w] covers on the grid of the model's mask."""
        rows, columns = self._plain.results[0].shape[1:]
        grid, (height, width) = weights.reshape(rows, columns) > 0, self._view.input_size
        down, across = (
            ((np.arange(length) + 0.5) * cells / length).astype(np.intp)
            for length, cells in ((height, rows), (width, columns))
        )
        on_input = grid[down[:, None], across].astype(np.float32)
        return np.asarray(place_map(on_input, self._view.crop, self._view.photo_size) >= 0.5)
