"""Metrics by name: METRICS, and the reading of texts such as ``insertion:rise``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from ortcam.errors import OptionError, nearest
from ortcam.evaluation.asks import Measured
from ortcam.evaluation.curves import DELETION, HIGHEST_CONFIDENCE, INSERTION
from ortcam.evaluation.localisation import BOX_IOU, ENERGY, POINTING, RANK, BoxIoU, Energy, Pointing, Rank
from ortcam.evaluation.maps import split_spec
from ortcam.evaluation.masking import ADCC_PRESETS, DROP, GAIN, INCREASE
from ortcam.evaluation.replacements import MEANINGS, REPLACEMENTS, Replacement
from ortcam.evaluation.road import ROAD
from ortcam.evaluation.rows import Column

if TYPE_CHECKING:
    from typing import Protocol

    from ortcam.evaluation.asks import Measuring, View

    class Metric(Protocol):
        """A convention of a metric: a frozen dataclass whose fields are its definition."""

        @property
        def metric(self) -> str:
            """The metric that it defines."""

        @property
        def name(self) -> str:
            """The name of the convention."""

        def columns(self, column: str, size: tuple[int, int]) -> tuple[Column, ...]:
            """Return its columns under a name, for a model's input size (H, W)."""

        def measure(self, column: str, view: View) -> Measuring:
            """Measure one map: a generator of asks (`ortcam.evaluation.asks`)."""


@dataclass(frozen=True)
class OnPhoto:
    """A convention of localisation, which compares the map at the photo's size with the place of the object."""

    convention: Energy | Pointing | Rank | BoxIoU

    @property
    def metric(self) -> str:
        return self.convention.metric

    @property
    def name(self) -> str:
        return self.convention.name

    def columns(self, column: str, size: tuple[int, int]) -> tuple[Column, ...]:
        return (Column(column, f"{self.metric}:{self.name}", self.convention.better),)

    def measure(self, column: str, view: View) -> Measuring:
        yield from ()  # it asks nothing of the model
        if view.place is None:
            return Measured({column: None}, {column: "no box or mask"})
        value = self.convention.measure(view.on_photo(), view.place)
        return Measured({column: value}, {} if value is not None else {column: "no positive value on the photo"})


def _on_photo(presets: Mapping[str, Any], default: str) -> dict[str, OnPhoto]:
    """Return conventions of localisation by name, the default first."""
    return {name: OnPhoto(presets[name]) for name in sorted(presets, key=lambda name: name != default)}


LOCALISATION = {
    "energy": _on_photo(ENERGY, "quantus"),
    "pointing": _on_photo(POINTING, "torchray"),
    "rank": _on_photo(RANK, "quantus"),
    "box-iou": _on_photo(BOX_IOU, "cam"),
}
# The first preset of a metric is its default.
METRICS: Mapping[str, Mapping[str, Any]] = {
    "insertion": INSERTION,
    "deletion": DELETION,
    "drop": DROP,
    "increase": INCREASE,
    "gain": GAIN,
    "adcc": ADCC_PRESETS,
    "road": ROAD,
    "highest-confidence": HIGHEST_CONFIDENCE,
    **LOCALISATION,
}


@dataclass(frozen=True)
class Chosen:
    """A metric under its name in tables: the text by which it was chosen."""

    name: str
    metric: Metric

    @property
    def needs_place(self) -> bool:
        """Whether it needs a box or a mask."""
        return self.metric.metric in LOCALISATION

    @property
    def replacement(self) -> Replacement | None:
        """The replacement for hidden pixels that its convention names; None if it names none."""
        name = getattr(self.metric, "baseline", None) or getattr(self.metric, "hidden", None)
        return None if name is None else REPLACEMENTS[name]

    def describe(self) -> dict[str, Any]:
        """Return the convention for the record, with the baseline that it names."""
        stated = {"metric": self.metric.metric, **asdict(_definition(self.metric))}
        if not self.needs_place:
            stated.setdefault("score", "probability")  # ADCC and ROAD know no other
        if "mask" in stated:
            stated["baseline"] = "zero"
        for key in stated.keys() & {"baseline", "hidden"}:
            replacement = REPLACEMENTS[stated[key]]
            stated[key] = {"name": stated[key], **asdict(replacement), "meaning": MEANINGS[replacement.kind]}
        return dict(stated)


def _definition(metric: Any) -> Any:
    return metric.convention if isinstance(metric, OnPhoto) else metric


def choose_metrics(specs: Sequence[Any]) -> tuple[Chosen, ...]:
    """Return the metrics of texts, or of conventions themselves.

    Args:
        specs: NAME, NAME:PRESET or NAME:PRESET,KEY=VALUE,...; a key is a field of the convention. Or conventions, such
            as ``Curve("insertion", "mine", "here", steps=50)``.

    Raises:
        OptionError: a name, preset or field is unknown, a value is invalid, or a metric is given twice.
    """
    chosen = tuple(_choose(spec) for spec in ([specs] if isinstance(specs, str) else specs))
    if not chosen:
        raise OptionError(f"metrics is empty; expected at least one of {', '.join(METRICS)}")
    names = [one.name for one in chosen]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise OptionError(f"metric {twice!r} is given twice; give it once")
    return chosen


def _choose(spec: Any) -> Chosen:
    if not isinstance(spec, str):
        if not hasattr(spec, "measure") or isinstance(spec, type):
            raise OptionError(f"metric is {spec!r}; expected a name such as 'insertion:rise', or a convention")
        default = next(iter(METRICS.get(spec.metric, {})), None)
        return Chosen(spec.metric if spec.name == default else f"{spec.metric}:{spec.name}", spec)
    name, options = split_spec(spec, "metric")
    if name not in METRICS:
        raise OptionError(f"metric {name!r} is unknown; expected {', '.join(METRICS)}{nearest(name, METRICS)}")
    presets = METRICS[name]
    preset = options.pop("", next(iter(presets)))
    if preset not in presets:
        raise OptionError(
            f"preset {preset!r} of {name} is unknown; expected {', '.join(presets)}{nearest(preset, presets)}"
        )
    return Chosen(spec.strip(), _changed(presets[preset], options, spec))


def _changed(metric: Any, options: Mapping[str, str], spec: str) -> Any:
    """Return the convention with other values of its fields, given as text."""
    if isinstance(metric, OnPhoto):
        return OnPhoto(_changed(metric.convention, options, spec))
    known = {field.name: getattr(metric, field.name) for field in fields(metric)}
    changes: dict[str, Any] = {}
    for key, text in options.items():
        old = known.get(key)
        if key in ("metric", "source", "name") or not isinstance(old, str | int | float):
            expected = [name for name, value in known.items() if isinstance(value, str | int | float)]
            expected = [name for name in expected if name not in ("metric", "source", "name")]
            raise OptionError(f"metric {spec!r}: unknown option {key!r}; expected {', '.join(expected) or 'none'}")
        changes[key] = _read(old, text, key, spec)
    return replace(metric, **changes)


def _read(old: str | float, text: str, key: str, spec: str) -> Any:
    if isinstance(old, bool):
        if text not in ("true", "false"):
            raise OptionError(f"metric {spec!r}: {key} is {text!r}; expected true or false")
        return text == "true"
    try:
        return type(old)(text)
    except ValueError as error:
        raise OptionError(f"metric {spec!r}: {key} is {text!r}; expected a number") from error
