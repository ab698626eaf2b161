"""Write and read the record of an explanation, `explanation.json`, and decide whether two explanations are the same.

docs/record.md describes every field; `explanation.schema.json`, beside this module, is its JSON Schema.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import ortcam
from ortcam.core.files import Fingerprint
from ortcam.core.provenance import Provenance
from ortcam.errors import OutputError, one_line
from ortcam.output.schema import find_violation, schema

if TYPE_CHECKING:
    from ortcam.core.convention import Convention
    from ortcam.core.measures import MapMeasures
    from ortcam.core.pictures import Crop
    from ortcam.core.selection import ErrorEstimate
    from ortcam.core.targets import Target

FORMAT = 1
MANIFEST = "explanation.json"


if TYPE_CHECKING:  # protocols take milliseconds to make, and only the type checker reads them

    class Recordable(Protocol):
        """The attributes of an explanation that `build_record` reads."""

        @property
        def provenance(self) -> Provenance: ...
        @property
        def source(self) -> Path | None: ...
        @property
        def photo_size(self) -> tuple[int, int]: ...
        @property
        def crop(self) -> Crop: ...
        @property
        def layer(self) -> str: ...
        @property
        def preset(self) -> str: ...
        @property
        def convention(self) -> Convention | None: ...
        @property
        def provider(self) -> str: ...
        @property
        def channels(self) -> int | None: ...
        @property
        def live(self) -> int | None: ...
        @property
        def scored(self) -> int: ...
        @property
        def seconds(self) -> float: ...
        @property
        def seconds_scoring(self) -> float | None: ...
        @property
        def targets(self) -> Sequence[Target]: ...
        @property
        def errors(self) -> Sequence[ErrorEstimate | None]: ...
        @property
        def flat(self) -> Sequence[bool]: ...
        @property
        def measures(self) -> Sequence[MapMeasures]: ...
        @property
        def correlations(self) -> tuple[tuple[float | None, ...], ...] | None: ...


def build_record(explanation: Recordable) -> dict[str, Any]:
    """Return an explanation without its arrays as plain JSON; docs/record.md describes it."""
    record = outline(explanation)
    for target, measures in zip(record["targets"], explanation.measures, strict=True):
        target |= _describe_measures(measures)
    return {**record, "map_correlations": plain(explanation.correlations)}


def outline(explanation: Recordable) -> dict[str, Any]:
    """Return the record without the numbers that need drawn maps."""
    e, known = explanation, explanation.provenance
    height, width = e.photo_size
    photo, model = known.photo, known.model
    record = {
        "format": FORMAT,
        "created": known.created,
        "versions": {"ortcam": ortcam.__version__, "onnxruntime": known.onnxruntime},
        "source": None if e.source is None else str(e.source),
        "photo": {
            "name": None if photo.path is None else photo.path.name,
            "path": None if photo.path is None else str(photo.path),
            "hashed": photo.kind,
            "sha256": photo.sha256,
            "height": height,
            "width": width,
        },
        "crop": e.crop.to_dict(),
        "model": {
            **_describe_files(model),
            "packed": known.packed,
            "layer": e.layer,
            "output": known.output,
            "activation": known.activation,
        },
        "preprocessing": known.preprocessing,
        "method": known.method,
        "preset": {"name": e.preset} if e.convention is None else asdict(e.convention),
        "asked": asdict(known.asked),
        "run": {
            "provider": e.provider,
            "provider_options": known.provider_options,
            "device_id": known.device_id,
            "batch_size": known.batch_size,
            "channels": {"total": e.channels, "live": e.live, "scored": e.scored},
            "seconds": round(e.seconds, 4),
            "seconds_scoring": None if e.seconds_scoring is None else round(e.seconds_scoring, 4),
        },
        "targets": [
            describe_target(target, error, flat) | {"overlay": overlay_name(target, place)}
            for place, (target, error, flat) in enumerate(zip(e.targets, e.errors, e.flat, strict=True))
        ],
    }
    done: dict[str, Any] = plain(record)
    return done


def describe_target(target: Target, error: ErrorEstimate | None, flat: bool) -> dict[str, Any]:
    """Return a target of an explanation for the record."""
    return {
        "index": target.index,
        "label": target.label,
        "logit": target.logit,
        "probability": target.probability,
        "error": None if error is None else asdict(error),
        "map_is_flat": flat,
        **({} if target.place is None else {"place": dict(target.place)}),
    }


def _describe_files(files: Sequence[Fingerprint]) -> dict[str, Any]:
    if not files:
        return {"name": None, "path": None, "sha256": None, "external_data": []}
    model, *external = files
    return {
        "name": None if model.path is None else model.path.name,
        "path": None if model.path is None else str(model.path),
        "sha256": model.sha256,
        "external_data": [
            {"name": None if file.path is None else file.path.name, "sha256": file.sha256} for file in external
        ],
    }


def _describe_measures(measures: MapMeasures) -> dict[str, Any]:
    place, box, peak = measures.maximum, measures.half_maximum_box, measures.peak_box
    return {
        "maximum": None if place is None else dict(zip("xy", place, strict=True)),
        "half_maximum_box": None if box is None else box.to_dict(),
        "share_above_half": measures.share_above_half,
        "share_at_edge": measures.share_at_edge,
        "peak_box": None if peak is None else peak.to_dict(),
        "peak_share": measures.peak_share,
    }


def plain(value: Any) -> Any:
    """Return a value in JSON's types; a number that is not finite becomes null."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def overlay_name(target: Target, place: int) -> str:
    """Return the file name of the overlay of the target at a place of an explanation."""
    words = "" if target.label is None else re.sub(r"[^a-z0-9]+", "-", target.label.split(",")[0].lower()).strip("-")
    parts = ["overlay", str(target.index), *([words[:40]] if words else [])]
    if target.place is not None and target.place["kind"] == "value":
        parts += ["down"] if target.place["sign"] < 0 else []
    elif target.place is not None:  # two boxes may have one class
        parts.append(f"at-{place}")
    return f"{'-'.join(parts)}.png"


def is_written_by_save(path: Path) -> bool:
    """Return whether `Explanation.save` writes a file of this name."""
    ours = path.name in (MANIFEST, "maps.npy", "raw_maps.npy", "weights.npy")
    return path.is_file() and (ours or re.fullmatch(r"overlay-\d+(-[a-z0-9-]+)?\.png", path.name) is not None)


def write_record(record: Mapping[str, Any], directory: Path) -> None:
    """Write `explanation.json`. File names that are not text are written as escapes that Python reads back."""
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    (directory / MANIFEST).write_text(text, encoding="utf-8", errors="backslashreplace")


def read_record(directory: Path) -> dict[str, Any]:
    """Return the record in a directory that `Explanation.save` wrote.

    Raises:
        OutputError: the record is missing or damaged, or has another format.
    """
    path = directory / MANIFEST
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise OutputError(f"{directory} holds no {MANIFEST}; expected a folder that `ortcam explain` wrote") from error
    except (OSError, ValueError, RecursionError) as error:
        raise OutputError(f"{path} cannot be read: {one_line(error)}") from error
    if not isinstance(record, dict) or "format" not in record:
        raise OutputError(
            f"{path} states no format: an older ortcam wrote it, or it is damaged; explain the photo again"
        )
    if record["format"] != FORMAT:
        raise OutputError(f"{path} has format {record['format']!r}; this ortcam reads format {FORMAT}")
    wrong = find_violation(record, schema())
    if wrong is not None:
        raise OutputError(f"{path} is damaged: {wrong}")
    return record


def why_not_same(explanation: Recordable, directory: Path) -> str | None:
    """Return what a directory holds if it does not hold an earlier run of the same explanation, else None.

    Two explanations are the same if photo, model, classes and options are the same: the photo's content, size and
    file name; the content of the model file and of its external weights; layer, preprocessing and preset; the
    classes; budget, tolerance, selection, batch size, and provider with its options.
    """
    try:
        other = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        if other["format"] != FORMAT:
            return "an explanation of another format"
        theirs = _identity(other)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "an explanation without a complete record"
    pairs = zip(_PARTS, _identity(outline(explanation)), theirs, strict=True)
    return next((f"an explanation {part}" for part, mine, other in pairs if mine != other), None)


_SCORE_CAM = {"name": "score-cam"}  # for records of an older ortcam, which had no other methods
_PARTS = (
    "of another photo",
    "with another model",
    "with another method or preset",
    "of other targets",
    "with other options",
)


def _place_of(target: Mapping[str, Any]) -> dict[str, Any]:
    """Return what says which box, region, reference or value a target is; nothing for a class."""
    return {
        name: value
        for name, value in (target.get("place") or {}).items()
        if name not in ("score", "share", "path", "region")
    }


def _identity(record: Mapping[str, Any]) -> tuple[Any, ...]:
    photo, model, asked, run = (record[name] for name in ("photo", "model", "asked", "run"))
    hashes = [model["sha256"], *(file["sha256"] for file in model["external_data"])]
    return (
        [photo[name] for name in ("name", "hashed", "sha256", "height", "width")],
        # A model of unknown content never counts as the same, not even as itself.
        [*([object()] if None in hashes else hashes), model["packed"], model["layer"], record["preprocessing"]],
        [record.get("method", _SCORE_CAM), record["preset"]],
        [(target["index"], _place_of(target)) for target in record["targets"]],
        [
            *(asked[name] for name in ("budget", "tolerance", "selection", "batch_size")),
            run["provider"],
            run["provider_options"],
        ],
    )
