"""The opened explainers of a comparison: they explain photo after photo, and their maps are compared."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from ortcam import __version__
from ortcam.comparison.columns import Opened
from ortcam.comparison.measures import Samples, Similarity, common_area, compare_samples, sample
from ortcam.comparison.result import Cell, Compared, Pair, Predicted
from ortcam.comparison.strips import Strip
from ortcam.comparison.targets import Classes, Watched, carry_over, same_target
from ortcam.core.convention import Floats
from ortcam.core.provenance import now
from ortcam.core.references import Asked, Box, Detecting
from ortcam.core.targets import Target, Wanted, top_targets
from ortcam.errors import ModelError, OrtcamWarning
from ortcam.explain.explainer import ModelExplainer
from ortcam.model.pixels import read_image
from ortcam.output.explanation import Explanation
from ortcam.output.render import resize_map
from ortcam.runtime.providers import ProviderLike
from ortcam.runtime.session import RUNTIME_VERSION

if TYPE_CHECKING:
    from ortcam.core.method import Method

_UNRELATED = 40  # photos whose maps are compared with each other
_SIDE = 32  # of these maps
_UNKNOWN = Similarity(None, None, None)


@dataclass
class _Group:
    """Columns that share passes."""

    explainer: ModelExplainer
    columns: list[int]
    budget: dict[str, Any]

    @property
    def watched(self) -> Watched:
        return cast("Watched", self.explainer.method)


@dataclass(frozen=True)
class _Map:
    """A map of a photo: the explanation that holds it, and its place in it."""

    explanation: Explanation
    place: int
    predicted: Predicted | None

    @property
    def cell(self) -> Cell:
        one, place = self.explanation, self.place
        return Cell(
            one.targets[place], self.predicted, one.errors[place], one.flat[place], one.scored, round(one.seconds, 4)
        )


class Bench:
    """The opened explainers of a comparison, which explain photo after photo."""

    def __init__(
        self,
        stack: ExitStack,
        opened: Sequence[Opened],
        provider: ProviderLike,
        batch_size: int | Literal["auto"] | None,
        threads: int | None,
        detecting: Detecting | None,
    ) -> None:
        self._opened, self._small = opened, list[Floats]()
        _require_one_task(opened)
        first = opened[0].model
        self._classes = [Classes(first, one.model) for one in opened]
        self._keys = list[Any]()  # the distinct targets
        for one in opened:
            if not any(_is_same(one.column.target, key) for key in self._keys):
                self._keys.append(one.column.target)
        self._key_of = [
            next(at for at, key in enumerate(self._keys) if _is_same(one.column.target, key)) for one in opened
        ]
        self._check_targets(first)
        self._groups = list[_Group]()
        for place, one in enumerate(opened):
            group = next((each for each in self._groups if opened[each.columns[0]].shares_passes(one)), None)
            if group is not None:
                group.columns.append(place)
                continue
            method = cast("Method", Watched(one.contestant.method))
            explainer = ModelExplainer(
                one.model, method, provider, batch_size, threads, one.contestant.layer, detecting
            )  # fmt: skip
            self._groups.append(_Group(stack.enter_context(explainer), [place], asdict(one.contestant.limits)))

    def _check_targets(self, first: Any) -> None:
        """Report an unknown class once, before the first photo."""
        if not first.contract.classifies or first.classes is None:
            return
        for key in self._keys:
            for wanted in first.resolve_targets(key, first.classes) or ():
                for classes in self._classes:
                    classes.of(wanted.index)

    def compare(
        self, name: str, image: Any, report: Callable[[float], None], side: int | None
    ) -> tuple[Compared, Strip | None]:
        """Explain a photo by every column, and compare the maps.

        Args:
            name: the photo's name.
            image: as for `ModelExplainer.explain`.
            report: called with the part of this photo's work that is done, in [0,1].
            side: the longer side of its pictures in pixels; None to draw none.

        Raises:
            OrtcamError: a column cannot explain the photo.
        """
        pixels, origin = read_image(image)
        maps = self._explain(pixels, report)
        area = common_area([one.explanation.crop for one in maps])
        strip = None if side is None else Strip(maps[0].explanation, side)
        samples = list[Samples | None]()
        for one in maps:  # one map at the photo's size at a time
            saliency = one.explanation.map_at(one.place)
            samples.append(None if area is None else sample(saliency, area))
            if strip is not None:
                strip.add(one.explanation, one.place, saliency)
        if samples[0] is not None and len(self._small) < _UNRELATED:
            self._small.append(resize_map(samples[0].values.astype(np.float32), _SIDE, _SIDE))
        cells = tuple(one.cell for one in maps)
        pairs = tuple(
            self._pair(one, other, cells, samples) for one, other in itertools.combinations(range(len(maps)), 2)
        )
        origin = maps[0].explanation.provenance.photo if origin is None else origin
        return Compared(name, origin, maps[0].explanation.photo_size, cells, pairs), strip

    def _pair(self, one: int, other: int, cells: Sequence[Cell], samples: Sequence[Samples | None]) -> Pair:
        a, b = samples[one], samples[other]
        similarity = _UNKNOWN if a is None or b is None else compare_samples(a, b)
        if self._opened[one].model is self._opened[other].model:
            return Pair(one, other, similarity, None, None)
        mine, theirs = cells[one].predicted, cells[other].predicted
        same = None
        if mine is not None and theirs is not None:
            classes = Classes(self._opened[one].model, self._opened[other].model)
            same = classes.agree(mine.index, theirs.index)
        asked_alike = self._key_of[one] == self._key_of[other]
        difference = cells[other].score - cells[one].score if asked_alike else None
        return Pair(one, other, similarity, same, difference)

    def _explain(self, pixels: Any, report: Callable[[float], None]) -> list[_Map]:
        maps: dict[int, _Map] = {}
        wanted: list[Wanted] = []
        targets: tuple[Target, ...] = ()
        for number, group in enumerate(self._groups):
            explainer = group.explainer

            def progress(done: int, total: int, number: int = number) -> None:
                report((number + done / total) / len(self._groups))

            if number == 0:
                asked = self._first_asks(explainer, pixels)
                found = _explain(group, pixels, asked, progress)
                wanted, targets = [one[2] for one in found], tuple(one[0].targets[one[1]] for one in found)
                forward, first = group.watched.forward, found[0][0]
                assert forward is not None
                found = [found[self._key_of[place]] for place in group.columns]
            else:
                keys = [self._key_of[place] for place in group.columns]
                model = self._opened[group.columns[0]].model
                if model is self._opened[0].model:
                    asked = [same_target(wanted[key]) for key in keys]
                else:
                    classes = self._classes[group.columns[0]]
                    asked = [
                        carry_over(
                            wanted[key], targets[key], self._keys[key], classes, forward, first.crop, first.photo_size
                        )
                        for key in keys
                    ]
                found = _explain(group, pixels, asked, progress)
            predicted = _predicted(group)
            for place, (explanation, at, _) in zip(group.columns, found, strict=True):
                maps[place] = _Map(explanation, at, predicted)
        return [maps[place] for place in range(len(self._opened))]

    def _first_asks(self, explainer: ModelExplainer, pixels: Any) -> list[Any]:
        """Return what to ask of the first model, one for each distinct target."""
        if len(self._keys) == 1:
            return [self._keys[0]]
        top = explainer.predict(pixels, 1)[0] if any(key is None for key in self._keys) else None
        asked = list[Any]()
        for key in self._keys:
            if key is None and top is not None:
                place = top.place or {}
                key = top.index if place.get("kind") != "box" else Box(place["number"])
            asked.append(key)
        return asked

    def unrelated_r(self) -> float | None:
        """Return the mean r of the first column's maps of different photos."""
        units = [Samples(small.astype(np.float64)) for small in self._small]
        found = [compare_samples(one, other).r for one, other in itertools.combinations(units, 2)]
        known = [r for r in found if r is not None]
        return sum(known) / len(known) if known else None

    def settings(self, budget: int | None) -> dict[str, Any]:
        """Return what a reader needs to repeat the comparison."""
        explainers = {place: group for group in self._groups for place in group.columns}
        return {
            "created": now(),
            "versions": {"ortcam": __version__, "onnxruntime": RUNTIME_VERSION, "numpy": np.__version__},
            "budget": budget,
            "columns": [
                _describe(one, explainers[place]) for place, one in enumerate(self._opened)
            ],
        }  # fmt: skip


def _explain(
    group: _Group, pixels: Any, asked: Sequence[Any], progress: Callable[[int, int], None]
) -> list[tuple[Explanation, int, Wanted]]:
    """Explain the targets of a photo in the same passes. Return the explanation, place and target for each asked."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the map of .* flat", category=OrtcamWarning)  # they are counted
        explainer = group.explainer
        targets = None if list(asked) == [None] else list(asked)
        explanation = explainer.explain(pixels, targets, on_progress=progress, **group.budget)
        wanted = group.watched.wanted
        if len(wanted) == len(asked):
            return [(explanation, at, one) for at, one in enumerate(wanted)]
        if explainer.model.contract.classifies:
            resolved = [explainer.model.resolve_targets(one, len(_forward(group).logits)) for one in asked]
            return [(explanation, wanted.index(one), one) for found in resolved for one in found or ()]
        found = list[tuple[Explanation, int, Wanted]]()  # two names of the same box: rare
        for one in asked:
            found.append((explainer.explain(pixels, [one], **group.budget), 0, group.watched.wanted[0]))
        return found


def _forward(group: _Group) -> Any:
    assert group.watched.forward is not None
    return group.watched.forward


def _predicted(group: _Group) -> Predicted | None:
    """Return the most probable class of the photo that was explained last."""
    model, forward = group.explainer.model, _forward(group)
    if not model.contract.classifies:
        return None
    index = top_targets(forward.logits, 1)[0].index
    _, probabilities = model.contract.read_output(forward.output)
    labels = model.labels or ()
    return Predicted(index, labels[index] if index < len(labels) else None, float(probabilities[index]))


def _is_same(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and one == other)


def _require_one_task(opened: Sequence[Opened]) -> None:
    first = opened[0].model
    for one in opened:
        if one.model.contract.task != first.contract.task:
            raise ModelError(
                f"{first.shown} is made for the task {first.contract.task!r} and {one.model.shown} for "
                f"{one.model.contract.task!r}; expected models of one task"
            )


def _describe(one: Opened, group: _Group) -> dict[str, Any]:
    explainer, target = group.explainer, one.column.target
    model, method = explainer.model, one.contestant.method
    fingerprint, *external = model.fingerprints
    contract = model.contract
    return {
        "name": one.name,
        "model": {
            "name": model.name,
            "path": None if model.path is None else str(model.path.absolute()),
            "sha256": fingerprint.sha256,
            "external_data": [
                {"name": None if each.path is None else each.path.name, "sha256": each.sha256} for each in external
            ],
            "task": contract.task,
            "layer": contract.layer,
            "output": contract.output if contract.classifies else contract.task,
            "activation": contract.makes_probabilities if contract.classifies else None,
        },
        "preprocessing": None if contract.preprocessing is None else contract.preprocessing.to_dict(),
        "method": method.describe(),
        "preset": asdict(method.convention),
        **asdict(one.contestant.limits),
        "target": target.to_json() if isinstance(target, Asked) else target,
        "detecting": asdict(explainer.detecting) if contract.task == "detect" else None,
        "run": {
            "provider": explainer.provider,
            "provider_options": dict(explainer._provider.options),
            "device_id": explainer._provider.device_id,
            "batch_size": explainer.batch_size,
        },
    }
