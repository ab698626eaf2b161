"""The opened explainers of a comparison: they explain photo after photo, and their maps are compared."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import numpy as np

from ortcam import __version__
from ortcam.comparison.columns import Opened
from ortcam.comparison.measures import Samples, Similarity, common_area, compare_samples, sample
from ortcam.comparison.result import Cell, Compared, Pair, Predicted
from ortcam.comparison.strips import Strip
from ortcam.comparison.targets import Classes, Watched, carry_over, same_target
from ortcam.core.budget import Limits
from ortcam.core.convention import Floats
from ortcam.core.forward import Forward
from ortcam.core.provenance import Origin, Provenance, now
from ortcam.core.references import Asked, Box, Detecting
from ortcam.core.targets import Wanted, top_targets
from ortcam.errors import ModelError, OptionError, OrtcamWarning
from ortcam.explain.explainer import ModelExplainer
from ortcam.model.cam_model import CamModel
from ortcam.output.explanation import Explanation
from ortcam.output.render import resize_map
from ortcam.runtime.providers import ProviderLike
from ortcam.runtime.scorer import Progress
from ortcam.runtime.session import RUNTIME_VERSION

if TYPE_CHECKING:
    from ortcam.core.method import Method

_UNRELATED = 40  # photos whose maps are compared with each other
_SIDE = 32  # of these maps
_UNKNOWN = Similarity(None, None, None)


class _Found(NamedTuple):
    """A target that was explained: the explanation, the target's place in it, and the target itself."""

    explanation: Explanation
    place: int
    wanted: Wanted


class _Group:
    """Columns that share passes, and the explainer that makes them."""

    def __init__(self, explainer: ModelExplainer, limits: Limits, column: int) -> None:
        self.explainer, self.columns = explainer, [column]
        self._limits: dict[str, Any] = asdict(limits)

    @property
    def model(self) -> CamModel:
        return self.explainer.model

    @property
    def forward(self) -> Forward:
        """The plain pass of the photo that was explained last."""
        forward = self._watched.forward
        assert forward is not None
        return forward

    @property
    def _watched(self) -> Watched:
        return cast("Watched", self.explainer.method)

    def explain(self, pixels: Any, asked: Sequence[Any], progress: Progress) -> list[_Found]:
        """Explain targets of a photo in the same passes. A flat map gives no warning: it is counted."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="the map of .* flat", category=OrtcamWarning)
            targets = None if list(asked) == [None] else list(asked)
            explanation = self.explainer.explain(pixels, targets, on_progress=progress, **self._limits)
            wanted = self._watched.wanted
            if len(wanted) == len(asked):
                return [_Found(explanation, at, one) for at, one in enumerate(wanted)]
            if self.model.contract.classifies:  # two names of one class
                count = len(self.forward.logits)
                resolved = [one for each in asked for one in self.model.resolve_targets(each, count) or ()]
                return [_Found(explanation, wanted.index(one), one) for one in resolved]
            return [found for one in asked for found in self.explain(pixels, [one], progress)]  # two names of one box

    def predicted(self) -> Predicted | None:
        """Return the most probable class of the photo that was explained last; None of a model that has no classes."""
        contract, labels, forward = self.model.contract, self.model.labels or (), self.forward
        if not contract.classifies:
            return None
        index = top_targets(forward.logits, 1)[0].index
        _, probabilities = contract.read_output(forward.output)
        return Predicted(index, labels[index] if index < len(labels) else None, float(probabilities[index]))

    def describe(self, one: Opened, known: Provenance | None) -> dict[str, Any]:
        """Return what decides the maps of one of the columns; `known` is of one of its explanations, if it has any."""
        model, method, target = self.model, one.contestant.method, one.column.target
        fingerprint, *external = model.fingerprints
        described: dict[str, Any] = {
            "name": one.name,
            "model": {
                "name": model.name,
                "path": None if model.path is None else str(model.path.absolute()),
                "sha256": fingerprint.sha256,
                "external_data": [
                    {"name": None if file.path is None else file.path.name, "sha256": file.sha256} for file in external
                ],
                "task": model.contract.task,
                "layer": model.contract.layer,
            },
            "method": method.describe(),
            "preset": asdict(method.convention),
            **self._limits,
            "target": target.to_json() if isinstance(target, Asked) else target,
            "detecting": asdict(self.explainer.detecting) if model.contract.task == "detect" else None,
            "run": {"provider": self.explainer.provider},
        }
        if known is not None:
            described["model"] |= {"output": known.output, "activation": known.activation}
            described["run"] |= {
                "provider_options": dict(known.provider_options),
                "device_id": known.device_id,
                "batch_size": known.batch_size,
            }
            described |= {"preprocessing": known.preprocessing, "method": known.method}
        return described


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
        self._matched: dict[tuple[int, int], Classes] = {}
        self._keys = list[Any]()  # the distinct targets
        for one in opened:
            if not any(_is_same(one.column.target, key) for key in self._keys):
                self._keys.append(one.column.target)
        self._key_of = [
            next(at for at, key in enumerate(self._keys) if _is_same(one.column.target, key)) for one in opened
        ]
        self._check_classes(opened[0].model)
        self._groups, self._known = list[_Group](), list[Provenance | None]()
        for place, one in enumerate(opened):
            group = next((each for each in self._groups if opened[each.columns[0]].shares_passes(one)), None)
            if group is not None:
                group.columns.append(place)
                continue
            method, layer = cast("Method", Watched(one.contestant.method)), one.contestant.layer
            explainer = ModelExplainer(one.model, method, provider, batch_size, threads, layer, detecting)
            self._groups.append(_Group(stack.enter_context(explainer), one.contestant.limits, place))

    def _check_classes(self, first: CamModel) -> None:
        """Report models that do not match, and unknown classes, once, before the first photo."""
        matched = [self._classes_of(0, place) for place in range(len(self._opened))]
        for key in self._keys:
            if key == "all":
                raise OptionError("target 'all' makes no columns; name the targets")
            if key is not None and first.contract.classifies and first.classes is not None:
                for wanted in first.resolve_targets(key, first.classes) or ():
                    for classes in matched:
                        classes.of(wanted.index)

    def compare(
        self, name: str, pixels: Any, origin: Origin | None, report: Callable[[float], None], sides: Sequence[int]
    ) -> tuple[Compared, list[Strip]]:
        """Explain a photo by every column, and compare the maps.

        Args:
            name: the photo's name.
            pixels, origin: the photo, as `read_image` returns it.
            report: called with the part of this photo's work that is done, in [0,1].
            sides: the longer sides of its pictures in pixels, one for each strip.

        Raises:
            OrtcamError: a column cannot explain the photo.
        """
        maps = self._explain(pixels, report)
        self._known = [one.explanation.provenance for one in maps]
        area = common_area([one.explanation.crop for one in maps])
        strips = [Strip(maps[0].explanation, side) for side in sides]
        samples = list[Samples | None]()
        for one in maps:  # one map at the photo's size at a time
            saliency = one.explanation.map_at(one.place)
            samples.append(None if area is None else sample(saliency, area))
            for strip in strips:
                strip.add(one.explanation, one.place, saliency)
        if samples[0] is not None and len(self._small) < _UNRELATED:
            self._small.append(resize_map(samples[0].values.astype(np.float32), _SIDE, _SIDE))
        cells = tuple(one.cell for one in maps)
        pairs = tuple(
            self._pair(one, other, cells, samples) for one, other in itertools.combinations(range(len(maps)), 2)
        )
        origin = maps[0].explanation.provenance.photo if origin is None else origin
        return Compared(name, origin, maps[0].explanation.photo_size, cells, pairs), strips

    def _pair(self, one: int, other: int, cells: Sequence[Cell], samples: Sequence[Samples | None]) -> Pair:
        a, b = samples[one], samples[other]
        similarity = _UNKNOWN if a is None or b is None else compare_samples(a, b)
        if self._opened[one].model is self._opened[other].model:
            return Pair(one, other, similarity, None, None)
        mine, theirs = cells[one].predicted, cells[other].predicted
        same = None
        if mine is not None and theirs is not None:
            same = self._classes_of(one, other).agree(mine.index, theirs.index)
        asked_alike = self._key_of[one] == self._key_of[other]
        difference = cells[other].score - cells[one].score if asked_alike else None
        return Pair(one, other, similarity, same, difference)

    def _classes_of(self, one: int, other: int) -> Classes:
        if (one, other) not in self._matched:
            self._matched[one, other] = Classes(self._opened[one].model, self._opened[other].model)
        return self._matched[one, other]

    def _explain(self, pixels: Any, report: Callable[[float], None]) -> list[_Map]:
        maps: dict[int, _Map] = {}
        lead = list[_Found]()  # the first model's, one for each distinct target
        for number, group in enumerate(self._groups):

            def progress(done: int, total: int, number: int = number) -> None:
                report((number + done / total) / len(self._groups))

            keys = [self._key_of[place] for place in group.columns]
            if not lead:
                lead = group.explain(pixels, self._first_asks(group.explainer, pixels), progress)
                found = [lead[key] for key in keys]
            else:
                found = group.explain(pixels, [self._ask(lead[key], key, group) for key in keys], progress)
            predicted = group.predicted()
            for place, one in zip(group.columns, found, strict=True):
                maps[place] = _Map(one.explanation, one.place, predicted)
        return [maps[place] for place in range(len(self._opened))]

    def _ask(self, lead: _Found, key: int, group: _Group) -> Any:
        """Return what to ask of another group, so that its maps explain the target that the first model found."""
        first, place = self._opened[0].model, group.columns[0]
        if self._opened[place].model is first:
            return same_target(lead.wanted)
        explanation, forward = lead.explanation, self._groups[0].forward
        target, size = explanation.targets[lead.place], explanation.photo_size
        return carry_over(
            lead.wanted, target, self._keys[key], self._classes_of(0, place), forward, explanation.crop, size
        )

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
        """Return what a reader needs to repeat the comparison; a photo was compared before."""
        return {
            "created": now(),
            "versions": {"ortcam": __version__, "onnxruntime": RUNTIME_VERSION, "numpy": np.__version__},
            "budget": budget,
            "columns": self.describe(),
        }

    def describe(self) -> list[dict[str, Any]]:
        """Return what decides the maps of each column; before the first photo, as far as it is known."""
        groups = {place: group for group in self._groups for place in group.columns}
        known = self._known or [None] * len(self._opened)
        return [groups[at].describe(*pair) for at, pair in enumerate(zip(self._opened, known, strict=True))]


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
