"""Define targets as data, and resolve the indices and labels of a user."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ortcam.core.references import Asked, Box, Output, Reference, refuse
from ortcam.errors import TargetError, nearest

_LONGEST_SHOWN = 100  # characters of an unknown label
_MOST_SUGGESTED = 5  # labels that contain an unknown label's words


@dataclass(frozen=True)
class Class:
    """A class of a classifier, as a target to explain. `ortcam.graph.scores.write_class_scores` writes its nodes.

    Attributes:
        index: the class index.
    """

    index: int

    def read(self, logits: NDArray[Any]) -> float:
        """Return the target's score from the logits [N] of all classes."""
        return float(logits[self.index])


# What a method explains: a class, or a reference of a model of another task.
Wanted = Class | Reference
# The argument of `explain`: class indices or labels, one or several, or "all"; None for the most probable classes. For
# other models also boxes, regions, similarities and outputs.
Targets = int | str | Asked | Sequence[int | str | Asked] | NDArray[np.integer[Any]] | None


@dataclass(frozen=True)
class Target:
    """A class, or another target, that was explained.

    Attributes:
        index: the class index; of a value, its number; of a similarity, its place among the targets.
        label: the name of the class, or None when the model file has no labels.
        logit: its logit for the whole input; for a target that is not a class, its score (`ortcam.core.references`).
        probability: its probability for the whole input; of a detection, the score of its box; of a target of
            another task, its score again.
        place: for a target of another task, plain JSON that says which box, region, picture or value it is, with its
            ``kind``; None for a class.
    """

    index: int
    label: str | None
    logit: float
    probability: float
    place: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """The label's first synonym, or ``class N``; where a box or region is, for these."""
        kind = None if self.place is None else self.place["kind"]
        if self.place is not None and kind == "similarity":
            return f"similarity to {self.place['like']}"
        if self.place is not None and kind == "value":
            return f"{'-' if self.place['sign'] < 0 else ''}{self.label or f'value {self.index}'}"
        word = f"class {self.index}" if self.label is None else self.label.split(",")[0].strip()
        if self.place is None or self.place.get("box") is None:
            return word
        return f"{word} at {','.join(f'{side:.0f}' for side in self.place['box'])}"


def describe_targets(
    wanted: Iterable[Class], labels: Sequence[str] | None, logits: NDArray[Any], probabilities: NDArray[Any]
) -> tuple[Target, ...]:
    """Return the description of each target, from the logits and probabilities [N] of all classes."""
    names = labels or ()
    return tuple(
        Target(
            one.index,
            names[one.index] if one.index < len(names) else None,
            one.read(logits),
            float(probabilities[one.index]),
        )
        for one in wanted
    )


def describe_references(references: Iterable[Reference], scores: NDArray[Any]) -> tuple[Target, ...]:
    """Return the description of each reference, from its score."""
    return tuple(
        Target(
            one.index if one.class_index is None else one.class_index,
            one.label,
            float(value),
            float(value if one.place.get("score") is None else one.place["score"]),
            one.place,
        )
        for one, value in zip(references, scores, strict=True)
    )


def resolve_targets(
    targets: Targets, classes: int, labels: Sequence[str] | None, model: str
) -> tuple[Class, ...] | None:
    """Return the targets that a user names; None if `targets` is None.

    Args:
        targets: None, ``"all"``, a class index, a label, or a sequence of these; digits are an index. A label may
            be a synonym: the model's label is split at commas, and case is ignored.
        classes: the number of the model's classes.
        labels: their names; None if they are unknown.
        model: the model's name in error messages.

    Raises:
        TargetError: an index is out of range, or a label belongs to no class or to several classes.
    """
    if targets is None:
        return None
    words: Any = targets.tolist() if hasattr(targets, "tolist") else targets  # arrays, tensors and numpy's numbers
    if isinstance(words, str | int | float | Asked):
        words = [words]
    if isinstance(words, Iterable):
        words = list(words)
    wrong = next((word for word in words if isinstance(word, Asked)), None) if isinstance(words, list) else None
    if wrong is not None:
        raise refuse("classify", wrong, model)
    named = [word for word in words if isinstance(word, str)] if isinstance(words, list | tuple) else []
    if "all" in named and not find_label("all", labels or ()):
        if len(words) > 1:
            raise TargetError("targets has 'all' and other classes; give 'all' alone, or the classes")
        return tuple(map(Class, range(classes)))
    if not isinstance(words, Iterable):
        raise TargetError(f"targets is {targets!r}; expected class indices or labels")
    indices = dict.fromkeys(resolve_class(word, classes, labels or (), model) for word in words)
    if not indices:
        raise TargetError("targets is empty; expected at least one class index or label, or None for the top class")
    return tuple(map(Class, indices))


def top_targets(logits: NDArray[Any], count: int) -> tuple[Class, ...]:
    """Return the classes with the highest logits [N], the best first; of equal logits, the lower index first."""
    return tuple(Class(int(index)) for index in np.argsort(-logits, kind="stable")[:count])


def resolve_class(target: Any, classes: int, labels: Sequence[str], model: str, kind: str = "classes") -> int:
    """Return the index of a class that is named by its index or label; errors are those of `resolve_targets`.

    `kind` names what has the labels in messages.
    """
    if hasattr(target, "tolist"):
        target = target.tolist()
    if isinstance(target, str) and not is_index(target):
        matches = find_label(target, labels)
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise TargetError(f"label {target!r} names the {kind} {matches[:5]} of {model}; give the index")
        hint = _suggest(target, labels) if labels else ", which has no labels; give an index"
        shown = target if len(target) <= _LONGEST_SHOWN else target[:_LONGEST_SHOWN] + "..."
        raise TargetError(f"label {shown!r} is unknown to {model}{hint}")
    if isinstance(target, bool) or not isinstance(target, str | int):
        raise TargetError(f"target is {target!r}; expected a class index or a label")
    index = int(target)
    if not 0 <= index < classes:
        raise TargetError(f"target {index} is out of range; {model} has {classes} {kind}, 0 to {classes - 1}")
    return index


def is_index(text: str) -> bool:
    """Return whether the text of a target is a class index, and not a label."""
    return re.fullmatch(r"\s*-?[0-9]{1,18}\s*", text) is not None


def find_label(name: str, labels: Sequence[str]) -> list[int]:
    """Return the classes with the label `name`; if none has it, the classes with this synonym. Case is ignored."""
    wanted = name.strip().casefold()
    exact = [index for index, label in enumerate(labels) if label.casefold() == wanted]
    if exact:
        return exact
    return [
        index for index, label in enumerate(labels) if wanted in (part.strip() for part in label.casefold().split(","))
    ]


def find_target(target: int | str | Asked, explained: Sequence[Target]) -> list[int]:
    """Return the places of the explained classes with this index or label; digits are an index.

    A `Box` with the number of a detection and an `Output` are found too.
    """
    if isinstance(target, Box | Output):
        return [place for place, one in enumerate(explained) if one.place is not None and _is_of(one, target)]
    if isinstance(target, str) and not is_index(target):
        return find_label(target, [one.label or "" for one in explained])
    if isinstance(target, bool) or not isinstance(target, str | Integral):
        return []
    return [place for place, one in enumerate(explained) if one.index == int(target)]


def _is_of(explained: Target, asked: Box | Output) -> bool:
    place = explained.place or {}
    if isinstance(asked, Box):
        return place["kind"] == "box" and place["number"] is not None and place["number"] == asked.which
    return place["kind"] == "value" and (explained.index, place["sign"]) == (asked.index, asked.sign)


def _suggest(unknown: str, labels: Sequence[str]) -> str:
    """Return hints for an unknown label: the labels that contain it, as whole words first; else the nearest labels."""
    synonyms = list(dict.fromkeys(part.strip() for label in labels for part in label.split(",")))
    wanted = unknown.strip().casefold()
    inside = [synonym for synonym in synonyms if wanted and wanted in synonym.casefold()]
    inside.sort(key=lambda synonym: wanted not in re.findall(r"\w+", synonym.casefold()))
    if not inside:
        listed = ", ".join(map(str, labels[:_MOST_SUGGESTED]))
        more = f" and {len(labels) - _MOST_SUGGESTED} more" if len(labels) > _MOST_SUGGESTED else ""
        return nearest(unknown, synonyms) or f"; its labels are {listed}{more}"
    more = f" and {len(inside) - _MOST_SUGGESTED} more" if len(inside) > _MOST_SUGGESTED else ""
    return f"; labels with {unknown.strip()!r} in them: {', '.join(inside[:_MOST_SUGGESTED])}{more}"
