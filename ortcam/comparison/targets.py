"""Ask a second model about the target that the first model's map explains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ortcam.core.budget import Limits, Predictors
from ortcam.core.forward import Forward
from ortcam.core.pictures import Crop
from ortcam.core.references import Box, Output, Reference, Region
from ortcam.core.targets import Class, Target, Wanted, find_label
from ortcam.errors import ModelError, TargetError
from ortcam.model.cam_model import CamModel

if TYPE_CHECKING:
    from ortcam.core.method import Method, Run


class Watched:
    """A method that keeps the plain pass and the targets of the photo that was explained last; else itself."""

    def __init__(self, method: Method) -> None:
        self._method = method
        self.forward: Forward | None = None
        self.wanted: tuple[Wanted, ...] = ()

    def begin(self, forward: Forward, targets: Sequence[Wanted], limits: Limits, predictors: Predictors) -> Run:
        self.forward, self.wanted = forward, tuple(targets)
        return self._method.begin(forward, targets, limits, predictors)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method, name)


class Classes:
    """The classes of a second model that correspond to those of the first.

    Attributes:
        same_geometry: whether both models see a photo alike, and their results have the same fixed shapes.
    """

    def __init__(self, first: CamModel, other: CamModel) -> None:
        """Match the classes by label if both models have labels and they differ, else by index.

        Raises:
            ModelError: the models have no label in common; or a model has no labels, and the numbers of classes differ.
        """
        self._first, self._other = first, other
        sizes = [
            (model.contract.preprocessing, model.contract.image_layout, model.input_shape, model.result_shapes)
            for model in (first, other)
        ]
        # A region is then the same cells, and a box the same pixels, of both models; else both go by way of the photo.
        self.same_geometry = sizes[0] == sizes[1] and all(None not in shape for shape in first.result_shapes)
        self._by_label = first.labels is not None and other.labels is not None and first.labels != other.labels
        if self._by_label:
            mine, theirs = (_words(model.labels or ()) for model in (first, other))
            if not mine & theirs:
                raise ModelError(
                    f"{first.shown} and {other.shown} have no label in common; expected models with the same classes"
                )
        elif None not in (first.classes, other.classes) and first.classes != other.classes:
            what = "values" if first.contract.task == "value" else "classes"
            raise ModelError(
                f"{first.shown} has {first.classes} {what} and {other.shown} has {other.classes}; expected the same "
                "number, or labels in both to match by: export them with --labels"
            )

    def of(self, index: int) -> int:
        """Return the second model's class for a class of the first.

        Raises:
            TargetError: the second model has no such label, or several.
        """
        labels = self._first.labels or ()
        if not self._by_label or self._first is self._other:
            return index
        if index >= len(labels):
            raise TargetError(
                f"class {index} of {self._first.name} has no label; expected one, by which the class is found in "
                f"{self._other.name}"
            )
        label = labels[index]
        for name in (label, *label.split(",")):
            found = find_label(name, self._other.labels or ())
            if len(found) == 1:
                return found[0]
        how = "names several classes of" if found else "is unknown to"
        raise TargetError(f"label {label!r} of {self._first.name} {how} {self._other.name}")

    def agree(self, first: int, other: int) -> bool:
        """Return whether a class of the first model and a class of the second are the same."""
        try:
            return self.of(first) == other
        except TargetError:
            return False


def _words(labels: Sequence[str]) -> set[str]:
    return {part.strip() for label in labels for part in label.casefold().split(",")}


def carry_over(
    wanted: Wanted, target: Target, asked: Any, classes: Classes, forward: Forward, crop: Crop, size: tuple[int, int]
) -> Any:
    """Return what to ask of a second model, so that it explains the target of the first model's map.

    Args:
        wanted: the target, resolved by the first model.
        target: its description.
        asked: the target as the user gave it.
        classes: the classes of the second model.
        forward: the first model's plain pass.
        crop: the part of the photo that the first model saw.
        size: (H, W) of the photo.

    Raises:
        TargetError: the second model has no such class.
    """
    if isinstance(wanted, Class):
        return classes.of(wanted.index)
    place = wanted.place
    if place["kind"] == "similarity":
        return asked  # each model has its own embedding of the reference
    if place["kind"] == "value":
        return Output(classes.of(target.index), place["sign"])
    if classes.same_geometry:
        return replace(wanted, class_index=classes.of(target.index))
    if place["kind"] == "box":
        left, top, right, bottom = place["box"]
        return Box((left, top, right, bottom), classes.of(target.index))
    rows, columns = forward.results[0].shape[1:]
    region = _on_photo(wanted.vector.reshape(rows, columns) > 0, crop, forward.size, size)
    return Region(classes.of(target.index), mask=region)


def _on_photo(
    cells: NDArray[np.bool_], crop: Crop, input_size: tuple[int, int], size: tuple[int, int]
) -> NDArray[np.bool_]:
    """Return a region on the grid of a model's mask as a region of the photo, bool [H,W]."""
    (rows, columns), (height, width) = cells.shape, size
    centres = np.zeros((max(size), 4))
    centres[:height, 1], centres[:width, 0] = np.arange(height) + 0.5, np.arange(width) + 0.5
    inside = crop.to_input(centres, input_size)
    down = np.floor(inside[:height, 1] * rows / input_size[0]).astype(np.intp)
    across = np.floor(inside[:width, 0] * columns / input_size[1]).astype(np.intp)
    seen = ((down >= 0) & (down < rows))[:, None] & ((across >= 0) & (across < columns))
    found = cells[np.clip(down, 0, rows - 1)[:, None], np.clip(across, 0, columns - 1)]
    return np.asarray(found & seen)


def same_target(wanted: Wanted) -> Any:
    """Return what to ask of the same model with another layer or method, so that it explains the same target."""
    return wanted if isinstance(wanted, Reference) else wanted.index
