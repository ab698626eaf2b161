"""Put questions to a packed explainer: the targets of a user -> the inputs of the file; its outputs -> targets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ortcam.core.convention import Floats
from ortcam.core.detections import Detections
from ortcam.core.pictures import Crop
from ortcam.core.readers import check, list_targets, resolve
from ortcam.core.references import Box, Reference, Region
from ortcam.core.targets import (
    Class,
    Target,
    Targets,
    describe_references,
    describe_targets,
    resolve_class,
    resolve_targets,
    top_targets,
)
from ortcam.core.view import View, rounded
from ortcam.errors import TargetError
from ortcam.explain.tasks import with_embeddings
from ortcam.model.contract import ROLES, Contract

Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[dict[str, NDArray[Any]]], Arrays]  # the inputs of the targets -> all outputs by name
_CLOSE = 1e-2  # pixels: two boxes are the same
_SURE = 1e-5  # of the sides of a box: float32


@dataclass(frozen=True)
class Answer:
    """The answer of a packed explainer.

    Attributes:
        made: the outputs of the file by name.
        targets: the targets that the maps are of.
    """

    made: Arrays
    targets: tuple[Target, ...]


class Questions(Protocol):
    """Puts questions to a packed explainer."""

    def check(self, words: Targets) -> Targets:
        """Check what can be checked before there is a photo, and return the targets, with reference pictures embedded.

        Raises:
            TargetError: the model has no such target.
            ImageError: a reference picture cannot be read.
        """

    def answer(self, words: Targets, top_k: int, run: Run, view: View) -> Answer:
        """Run the file for the targets of a user, `words`, or the `top_k` surest if `words` is None.

        Raises:
            TargetError: the photo has no such target.
        """


class ClassQuestions:
    """Of classifiers."""

    def __init__(self, contract: Contract, facts: Mapping[str, Any], name: str) -> None:
        self._contract, self._scores, self._classes, self._name = contract, facts["scores"], facts["classes"], name

    def check(self, words: Targets) -> Targets:
        self._resolve(words)
        return words

    def answer(self, words: Targets, top_k: int, run: Run, view: View) -> Answer:
        wanted = self._resolve(words)
        made = run(self._inputs([Class(-1)] if wanted is None else wanted))
        if wanted is None and top_k > 1:
            made = run(self._inputs(top_targets(made[self._scores], top_k)))
        explained = [Class(int(index)) for index in made["target_class"]]
        read = self._contract.read_output(made[self._scores])
        return Answer(made, describe_targets(explained, self._contract.labels, *read))

    def _resolve(self, words: Targets) -> tuple[Class, ...] | None:
        return resolve_targets(words, self._classes, self._contract.labels, self._name)

    def _inputs(self, classes: Iterable[Class]) -> dict[str, NDArray[Any]]:
        return {"target": np.array([one.index for one in classes], np.int64)}


class TaskQuestions:
    """Of other models. A second run follows if the first one explained other targets than the photo has."""

    def __init__(self, contract: Contract, facts: Mapping[str, Any], embed: Callable[[Any], Floats], name: str) -> None:
        """Begin.

        Args:
            contract: the contract of the model.
            facts: the facts of the packing.
            embed: returns the embedding [D] of a picture.
            name: the name of the file in messages.
        """
        self._labels, self._name = contract.labels, name
        self._task, self._classes, self._raw, self._embed = contract.task, facts["classes"], facts["raw"], embed

    def check(self, words: Targets) -> Targets:
        check(self._task, words, self._classes, self._labels, self._name)
        for word in list_targets(words, self._labels) or () if words is not None else ():
            if isinstance(word, Region) and (word.at is not None or word.mask is not None):
                raise TargetError(
                    f"{self._name} is packed, and explains all places of a class; expected a class (--target); "
                    "a pixel or a mask needs the model file"
                )
        return with_embeddings(words, self._embed) if self._task == "embed" else words

    def answer(self, words: Targets, top_k: int, run: Run, view: View) -> Answer:
        if not self._raw and self._task == "segment":  # the file sees no padding
            crop = view.crop
            view = replace(view, crop=Crop(0, 0, *view.input_size), photo_size=view.input_size)
        else:
            crop = None
        made = run(self._first(words, view))
        results = self._results(made, view)
        found = resolve(self._task, words, top_k, results, view)
        if not self._is_of(made, found, view):
            made = run(self._inputs(found, view))
        if crop is not None:
            found = tuple(_placed(one, crop, view.input_size) for one in found)
        return Answer(made, describe_references(found, made["target_score"]))

    def _first(self, words: Targets, view: View) -> dict[str, NDArray[Any]]:
        """Return inputs for what is asked, as far as it can be known before the photo's results are."""
        if self._task == "embed":
            return self._inputs(resolve(self._task, words, 1, [np.ones(self._classes, np.float32)], view), view)
        if self._task == "value":
            return self._inputs(resolve(self._task, words, 1, [np.zeros(self._classes, np.float32)], view), view)
        targets, boxes = [], []
        for word in (None if words is None else list_targets(words, view.labels)) or [None]:
            box = np.zeros(4, np.float32)
            if isinstance(word, str | Integral):
                targets.append(resolve_class(word, self._classes, view.labels or (), view.model))
            elif self._task == "detect":
                index, box = self._first_box(word, view)
                targets.append(index)
            else:
                targets.append(self._first_region(word, view))
            boxes.append(box)
        made: dict[str, NDArray[Any]] = {"target": np.array(targets, np.int64)}
        return made | ({"box": np.stack(boxes)} if self._task == "detect" else {})

    def _first_box(self, word: Any, view: View) -> tuple[int, Floats]:
        nothing = np.zeros(4, np.float32)
        if word is None or (isinstance(word, Box) and isinstance(word.which, Integral)):
            return -1, nothing  # the photo's results say which box it is
        none = [np.zeros((0, 4), np.float32), np.zeros((0, self._classes), np.float32)]
        given = Detections(none, view).find(word, 0)
        assert given.class_index is not None
        return given.class_index, self._boxes([given], view)[0]

    def _first_region(self, word: Any, view: View) -> int:
        if not isinstance(word, Region) or word.label is None:
            return -1
        return resolve_class(word.label, self._classes, view.labels or (), view.model)

    def _inputs(self, found: Iterable[Reference], view: View) -> dict[str, NDArray[Any]]:
        """Return the inputs of references."""
        found = list(found)
        if self._task == "embed":
            return {"like": np.stack([one.vector for one in found])}
        made: dict[str, NDArray[Any]] = {"target": np.array([one.class_index for one in found], np.int64)}
        if self._task == "value":
            made["sign"] = np.array([one.place["sign"] for one in found], np.float32)
        elif self._task == "detect":
            made["box"] = self._boxes(found, view)
        return made

    def _results(self, made: Arrays, view: View) -> list[Floats]:
        results = {role: np.asarray(made[role], np.float32) for role in ROLES[self._task]}
        if self._raw and self._task == "detect":
            results["boxes"] = view.crop.to_input(results["boxes"], view.input_size).astype(np.float32)
        return list(results.values())

    def _boxes(self, found: Iterable[Reference], view: View) -> Floats:
        """Return boxes in the pixels that the file takes, float32 [T,4]."""
        boxes = np.stack([one.vector for one in found])
        return view.crop.to_photo(boxes, view.input_size).astype(np.float32) if self._raw else boxes

    def _is_of(self, made: Arrays, found: Iterable[Reference], view: View) -> bool:
        """Whether a run explained these references."""
        if self._task not in ("detect", "segment"):
            return True
        found = list(found)
        if made["target_class"].tolist() != [one.class_index for one in found]:
            return False
        if self._task == "segment":
            return True
        return np.allclose(made["target_box"], self._boxes(found, view), rtol=_SURE, atol=_CLOSE)


def _placed(one: Reference, crop: Crop, size: tuple[int, int]) -> Reference:
    """Return a reference whose place is on the photo instead of the input."""
    return replace(one, place={**one.place, "box": rounded(crop.to_photo(np.array(one.place["box"]), size))})
