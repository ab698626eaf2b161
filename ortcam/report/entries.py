"""Describe an explanation for a report: an entry of plain JSON for each target, and its row of the table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ortcam.core.pictures import Crop
    from ortcam.core.targets import Target
    from ortcam.output.explanation import Pictures

_LEAST_CUT = 0.005  # share of the photo; below it, only rounding cut something off
_SCORES = ("similarity", "value")  # targets whose score is no probability

COLUMNS = (
    "photo", "path", "target", "index", "label", "probability", "score", "layer", "model", "method", "preset",
    "error", "error_low", "error_high", "maximum_x", "maximum_y", "box_left", "box_top", "box_right", "box_bottom",
    "share_above_half", "share_at_edge", "width", "height", "cut", "flags", "failure",
)  # fmt: skip


def describe(explanation: Pictures, photo: int, name: str, least_probability: float) -> list[dict[str, Any]]:
    """Return an entry for each target of an explanation.

    Args:
        explanation: the explanation.
        photo: the number of the photo in the report.
        name: the photo's name.
        least_probability: a lower probability is flagged `low`, in [0,1].

    Returns:
        plain JSON: the numbers of the record (docs/record.md), and
        ``target``: the name of the target, ``class``: its name without the place,
        ``probability``, or ``score`` for a similarity or a value; the other one is None,
        ``cut``: the share of the photo that the model did not see, in [0,1],
        ``flags``: some of `flat`, `low`, `edge` and `cropped`. `edge`: the box around the maximum reaches an edge where
        preprocessing cut the photo off; the object may go on there.
    """
    record = explanation.to_dict()
    crop, (height, width) = explanation.crop, explanation.photo_size
    shared = {
        "photo": photo,
        "name": name,
        "path": record["source"] or record["photo"]["path"] or name,
        "width": width,
        "height": height,
        "cut": 1 - crop.height * crop.width / (height * width),
        "model": record["model"]["name"] or "",
        "layer": record["model"]["layer"],
        "method": record["method"]["name"],
        "options": _show_options(record["method"]),
        "preset": record["preset"]["name"],
        "provider": record["run"]["provider"],
        "scored": record["run"]["channels"]["scored"],
        "channels": record["run"]["channels"]["total"],
        "seconds": record["run"]["seconds"],
    }
    entries = []
    for place, (target, recorded) in enumerate(zip(explanation.targets, record["targets"], strict=True)):
        is_score = target.place is not None and target.place["kind"] in _SCORES
        entry = {
            **shared,
            "place": place,
            "target": target.name,
            "class": class_name(target),
            "index": target.index,
            "label": target.label,
            "probability": None if is_score else recorded["probability"],
            "score": recorded["logit"] if is_score else None,
            **{
                key: recorded[key]
                for key in ("error", "maximum", "peak_box", "half_maximum_box", "share_above_half", "share_at_edge")
            },
        }
        reaches = _reaches_cut(explanation.measures[place].peak_box, crop, (height, width))
        entries.append({**entry, "flags": _flags(entry, recorded["map_is_flat"], reaches, least_probability)})
    return entries


def describe_failure(photo: int, name: str, path: str, message: str) -> dict[str, Any]:
    """Return the entry of a photo that could not be explained; it has no numbers."""
    return {"photo": photo, "name": name, "path": path, "failure": message, "flags": ["failed"]}


def class_name(target: Target) -> str:
    """Return the name of a target without the place of its box or region, to filter by."""
    if target.place is None or target.place["kind"] in _SCORES:
        return target.name
    return f"class {target.index}" if target.label is None else target.label.split(",")[0].strip()


def table_row(entry: Mapping[str, Any]) -> list[Any]:
    """Return an entry as a row of the table, in the order of `COLUMNS`; what it does not have is empty."""
    error, maximum, box = (entry.get(key) or {} for key in ("error", "maximum", "peak_box"))
    cells = {
        **entry,
        "photo": entry["name"],
        "error": error.get("expected"),
        "error_low": error.get("low"),
        "error_high": error.get("high"),
        **{f"maximum_{axis}": maximum.get(axis) for axis in "xy"},
        **{f"box_{side}": box.get(side) for side in ("left", "top", "right", "bottom")},
        "flags": " ".join(entry["flags"]),
    }
    return [as_cell(cells.get(column)) for column in COLUMNS]


def as_cell(value: Any) -> Any:
    """Return a value for the table. A text that a spreadsheet would run as a formula begins with an apostrophe."""
    if isinstance(value, str) and value != "-" and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return value


def _flags(entry: Mapping[str, Any], is_flat: bool, reaches_cut: bool, least_probability: float) -> list[str]:
    probability, is_cropped = entry["probability"], entry["cut"] >= _LEAST_CUT
    flags = {
        "flat": is_flat,
        "low": probability is not None and probability < least_probability,
        "edge": is_cropped and reaches_cut,
        "cropped": is_cropped,
    }
    return [flag for flag, is_set in flags.items() if is_set]


def _reaches_cut(box: Crop | None, crop: Crop, size: tuple[int, int]) -> bool:
    """Return whether a box inside the crop reaches an edge of the crop that is no edge of the photo (H, W)."""
    if box is None:
        return False
    height, width = size
    return (
        (box.top == crop.top > 0)
        or (box.left == crop.left > 0)
        or (box.bottom == crop.bottom < height)
        or (box.right == crop.right < width)
    )


def _show_options(method: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name}={'+'.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in method.items()
        if name != "name" and value is not None
    )
