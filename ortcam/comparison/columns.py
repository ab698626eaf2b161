"""Columns: what is compared. A column is a model, a method, a layer and a target."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ortcam.core.budget import Limits
from ortcam.core.convention import Convention, default_preset
from ortcam.core.references import Asked
from ortcam.errors import OptionError
from ortcam.evaluation.maps import Contestant, parse_method, split_spec
from ortcam.methods import with_preset
from ortcam.model.cam_model import CamModel, ModelLike

if TYPE_CHECKING:
    from ortcam.core.method import Method

MOST_COLUMNS = 12  # more do not fit on a page
_HOW_TO_ADD = "add a second model, layer, method, preset or target"


@dataclass(frozen=True)
class Column:
    """One column of a comparison.

    Attributes:
        model: a file that ortcam exported: its path, its bytes, an onnx.ModelProto, or its CamModel.
        method: a method, or a text such as ``recipro-cam`` or ``score-cam:budget=32,preset=paper``.
        preset: the definition of Score-CAM; None for that of the text, or the usual preset of the model's task.
        layer: the target layer, as for `ModelExplainer`; None for the layer of the text, or the first exposed layer.
        target: the target of the map, resolved with the first column's model; None for the first model's top class,
            surest box or largest region.
        name: the name in tables; "" to take what distinguishes the column from the others.
    """

    model: ModelLike
    method: str | Method = "score-cam"
    preset: str | Convention | None = None
    layer: str | None = None
    target: int | str | Asked | None = None
    name: str = ""


@dataclass(frozen=True)
class Opened:
    """A column whose model file was read and whose method was made.

    Attributes:
        column: as given.
        model: the model file. Columns with the same file share it.
        contestant: the method, its limits and the layer.
        name: the name in tables, unique.
    """

    column: Column
    model: CamModel
    contestant: Contestant
    name: str

    def shares_passes(self, other: Opened) -> bool:
        """Return whether one run makes both maps: at most the target differs."""
        mine, theirs = self.contestant, other.contestant
        return (
            self.model is other.model
            and (mine.method, mine.limits, mine.layer) == (theirs.method, theirs.limits, theirs.layer)
        )  # fmt: skip


def cross(
    models: Sequence[ModelLike],
    layers: Sequence[str] = (),
    methods: Sequence[str | Method] = (),
    presets: Sequence[str | Convention] = (),
    targets: Sequence[int | str | Asked] = (),
) -> list[Column]:
    """Return a column for each combination of a model, a layer, a method, a preset and a target.

    Presets are combined with Score-CAM only; a method without presets has one column for each model, layer and target.

    Raises:
        OptionError: there are more than 12 columns, or presets without Score-CAM.
    """
    kinds = list[tuple[Any, Any]]()
    for method in methods or ("score-cam",):
        name, options = split_spec(method, "method") if isinstance(method, str) else (method.name, {})
        takes = name == "score-cam" and "preset" not in options
        kinds += [(method, preset) for preset in (presets if takes and presets else (None,))]
    if presets and all(preset is None for _, preset in kinds):
        raise OptionError("got presets, but no method is score-cam without a preset of its own; leave the presets out")
    count = len(models) * max(len(layers), 1) * len(kinds) * max(len(targets), 1)
    if count > MOST_COLUMNS:
        raise OptionError(
            f"{_count(models, 'model')}, {_count(layers or [None], 'layer')}, {_count(kinds, 'method')} (with presets) "
            f"and {_count(targets or [None], 'target')} make {count} columns; expected at most {MOST_COLUMNS}"
        )
    return [
        Column(model, method, preset, layer, target)
        for model, layer, (method, preset), target in itertools.product(
            models, layers or (None,), kinds, targets or (None,)
        )
    ]


def open_columns(columns: Sequence[Column], budget: int | None) -> list[Opened]:
    """Read the model files and make the methods.

    Args:
        columns: two or more.
        budget: the most masked inputs, for methods that take a budget and state none.

    Raises:
        OptionError: there is one column, there are too many, or two are the same; or an option is invalid.
        ModelError: a file cannot be used, or the files are made for different tasks.
    """
    if not columns:
        raise OptionError(f"got no columns; expected two or more: {_HOW_TO_ADD}")
    if len(columns) > MOST_COLUMNS:
        raise OptionError(f"got {len(columns)} columns; expected at most {MOST_COLUMNS}")
    read = list[tuple[ModelLike, CamModel]]()
    models = [_read(column.model, read) for column in columns]
    made = [_contestant(column, model) for column, model in zip(columns, models, strict=True)]
    made = made if budget is None else _with_budget(made, budget)
    if len(columns) == 1:
        raise OptionError(f"got one column, {models[0].shown}; expected two or more: {_HOW_TO_ADD}")
    names = _names(columns, models, made)
    opened = [Opened(*parts) for parts in zip(columns, models, made, names, strict=True)]
    for one, other in itertools.combinations(opened, 2):
        if one.shares_passes(other) and _text(one.column.target) == _text(other.column.target):
            raise OptionError(f"two columns are the same: {_describe(one)}; give each once")
    return opened


def _read(model: ModelLike, read: list[tuple[ModelLike, CamModel]]) -> CamModel:
    """Return the model of a column; columns with the same file share it."""
    for given, known in read:
        if given is model or (_path(given) is not None and _path(given) == _path(model)):
            return known
    known = model if isinstance(model, CamModel) else CamModel(model)
    read.append((model, known))
    return known


def _path(model: ModelLike) -> Path | None:
    return Path(model).resolve() if isinstance(model, str | PathLike) else None


def _contestant(column: Column, model: CamModel) -> Contestant:
    if isinstance(column.method, str):
        made = parse_method(column.method, None, default_preset(model.contract.task))
    else:
        made = Contestant(column.method.name, column.method)
    method = with_preset(made.method, column.preset)
    return Contestant(made.name, method, made.limits, column.layer if made.layer is None else made.layer)


def _with_budget(made: Sequence[Contestant], budget: int) -> list[Contestant]:
    """Give a budget to every method that takes one and has no limits of its own.

    Raises:
        OptionError: the budget is invalid, or no method takes one.
    """
    limits, refused, limited = Limits(budget), OptionError(""), list[Contestant]()
    for one in made:
        try:
            if one.limits == Limits():
                one.method.check(limits)
                one = Contestant(one.name, one.method, limits, one.layer)
        except OptionError as error:
            refused = error
        limited.append(one)
    if all(one.limits == Limits() for one in limited):
        raise refused
    return limited


def _names(columns: Sequence[Column], models: Sequence[CamModel], made: Sequence[Contestant]) -> list[str]:
    """Return the columns' own names, or the parts that differ between columns."""
    parts = [
        _name_models(models),
        [one.name for one in made],
        [one.method.convention.name if one.method.name == "score-cam" else "" for one in made],
        [model.contract.layer if one.layer is None else one.layer for model, one in zip(models, made, strict=True)],
        [_text(column.target) for column in columns],
    ]
    layers = {one.layer for one in made}
    kept = [part for part in parts if len(set(filter(None, part))) > 1 and not (part is parts[3] and layers == {None})]
    found = [
        column.name or ", ".join(filter(None, words))
        for column, words in zip(columns, zip(*kept, strict=True) if kept else [()] * len(columns), strict=True)
    ]
    return [name if found.count(name) == 1 else f"{name} ({place})" for place, name in enumerate(found, 1)]


def _name_models(models: Sequence[CamModel]) -> list[str]:
    """Return the name of each model's file, with as many of its folders as distinguish it from the other files."""
    names = [model.name for model in models]
    for depth in range(2, 6):
        same = [
            {id(other) for other, theirs in zip(models, names, strict=True) if theirs == name} != {id(model)}
            for model, name in zip(models, names, strict=True)
        ]
        names = [
            str(Path(*model.path.resolve().parts[-depth:])) if repeated and model.path is not None else name
            for model, name, repeated in zip(models, names, same, strict=True)
        ]
    return names


def _text(target: Any) -> str:
    if target is None:
        return "default target"
    return str(target.to_json()) if isinstance(target, Asked) else str(target)


def _describe(one: Opened) -> str:
    return f"{one.model.shown}, {one.contestant.name}, {_text(one.column.target)}"


def _count(things: Sequence[Any], noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"
