"""The targets of `ortcam explain` that are no classes: boxes, regions, references and values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ortcam.cli import console
from ortcam.errors import OptionError, OrtcamError

if TYPE_CHECKING:
    from ortcam.cli.folders import Given
    from ortcam.explain.protocol import Explainer

_MOST_LISTED = 100

Boxes = Annotated[
    list[str] | None,
    typer.Option(
        "--box",
        help="For a detector: the number of a detection (see --list), or left,top,right,bottom in pixels of the photo, "
        "with its class as --target. May be repeated.",
        show_default=False,
    ),
]
At = Annotated[
    list[str] | None,
    typer.Option(
        "--at",
        help="For a segmenter: the region that holds the pixel x,y of the photo. May be repeated.",
        show_default=False,
    ),
]
Like = Annotated[
    list[Path] | None,
    typer.Option(
        "--like",
        help="For a model that returns an embedding: a reference picture, or an embedding as .npy. May be repeated.",
        show_default=False,
    ),
]
LikeOne = Annotated[
    Path | None,
    typer.Option(
        "--like",
        help="For a model that returns an embedding: explain the similarity to this picture, or embedding as .npy.",
        show_default=False,
    ),
]
Sign = Annotated[
    int, typer.Option("--sign", help="For plain values: 1 for what raises the value, -1 for what lowers it.")
]
LeastScore = Annotated[
    float, typer.Option("--least-score", min=0, max=1, help="For a detector: boxes below this score do not count.")
]
Listing = Annotated[
    bool, typer.Option("--list", help="List what the model sees, detections, regions or classes, and explain nothing.")
]


def read(
    labels: Sequence[str] | None,
    boxes: Sequence[str] | None,
    at: Sequence[str] | None,
    like: Sequence[Path] | None,
    sign: int,
) -> list[Any] | None:
    """Return the targets that the options name; None if they name none.

    Raises:
        OptionError: options do not go together, or are no numbers.
    """
    from ortcam.core.references import Box, Output, Region, Similarity

    given = [name for name, one in (("--box", boxes), ("--at", at), ("--like", like)) if one]
    if sign not in (1, -1):
        raise OptionError(f"--sign is {sign}; expected 1 or -1")
    if sign != 1:
        given.append("--sign")
    if len(given) > 1:
        raise OptionError(f"{' and '.join(given)} are targets of different kinds of models; give one of them")
    if given and given != ["--like"] and labels is not None and len(labels) > 1:
        raise OptionError(f"{given[0]} takes one --target; got {len(labels)}")
    label = labels[0] if labels else None
    if boxes:
        return [_read_box(text, label, Box) for text in boxes]
    if at:
        points = [_numbers(text, 2, "--at", "x,y") for text in at]
        return [Region(label, at=(x, y)) for x, y in points]
    if like:
        if labels:
            raise OptionError("--like takes no --target; a reference is the target")
        return [Similarity(path) for path in like]
    if sign != 1:
        if label is not None and not label.isdecimal():
            raise OptionError(f"--target is {label!r}; with --sign expected the number of a value")
        return [Output(0 if label is None else int(label), sign)]
    return list(labels) if labels else None


def read_one(name: str | None, like: Path | None, sign: int, option: str = "--explain") -> Any:
    """Return the one target that the options of an evaluation name; None if they name none.

    Args:
        name: a class, as `option` names it; or words that the evaluation knows.
        like, sign: as for `read`.
        option: the option of `name`.

    Raises:
        OptionError: options do not go together.
    """
    if like is not None and name is not None:
        raise OptionError(f"--like takes no {option}; a reference is the target")
    if name in ("predicted", "true") and sign == 1:
        return name
    if sign != 1 and name is not None and not name.isdecimal():
        raise OptionError(f"{option} is {name!r}; with --sign expected the number of a value")
    found = read(None if name is None else [name], None, None, None if like is None else [like], sign)
    return None if found is None else found[0]


def _read_box(text: str, label: str | None, box: Any) -> Any:
    if text.strip().isdecimal():
        if label is not None:
            raise OptionError("--box with the number of a detection takes no --target; the detection has its class")
        return box(int(text))
    left, top, right, bottom = _numbers(
        text, 4, "--box", "the number of a detection from 0 (see --list), or left,top,right,bottom"
    )
    return box((left, top, right, bottom), label)


def _numbers(text: str, count: int, option: str, expected: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise OptionError(f"{option} is {text!r}; expected {expected}")
    return numbers


def show(explainer: Explainer, photos: Sequence[Given], as_json: bool) -> None:
    """List what the model sees in photos, the surest first. Raise `typer.Exit` if a photo fails."""
    predict = getattr(explainer, "predict", None)
    if predict is None:
        raise OptionError("--list needs a model file; a packed explainer cannot list")
    listed, errors = list[dict[str, Any]](), list[dict[str, str]]()
    for photo in photos:
        try:
            found = predict(photo.image, _MOST_LISTED)
        except OrtcamError as error:
            errors.append({"source": str(photo.source), "error": str(error)})
            console.fail(console.about(photo.source.name, error))
            continue
        listed.append({"source": str(photo.source), "targets": [_plain(one) for one in found]})
    if as_json:
        console.print_json({"listed": listed, "errors": errors})
    elif listed:
        table = console.make_table("photo", "number", "target", "score", right=("number", "score"))
        for entry in listed:
            for number, target in enumerate(entry["targets"]):
                name = Path(str(entry["source"])).name if not number else ""
                table.add_row(name, str(number), name_of(target), score_of(target))
        console.print_table(table)
    if errors:
        raise typer.Exit(1)


def _plain(target: Any) -> dict[str, Any]:
    fields = {name: getattr(target, name) for name in ("index", "label", "logit", "probability")}
    return {**fields, "place": None if target.place is None else dict(target.place)}


def name_of(target: dict[str, Any]) -> str:
    """Return the name of a recorded target for a table."""
    place = target.get("place")
    word = f"{target['index']} {target['label'] or ''}".strip()
    if place is None:
        return word
    if place["kind"] == "similarity":
        return f"like {place['like']}"
    if place["kind"] == "value":
        return f"{'-' if place['sign'] < 0 else ''}{word}"
    return f"{word} at {','.join(f'{side:.0f}' for side in place['box'])}"


def score_of(target: dict[str, Any]) -> str:
    """Return the score of a recorded target for a table: a share, or of a similarity or value the number."""
    place = target.get("place")
    if place is not None and place["kind"] in ("similarity", "value"):
        return f"{target['logit']:.3g}"
    return f"{target['probability']:.1%}"
