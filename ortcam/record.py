"""The record of an explanation: `explanation.json`, and what decides whether two explanations are the same.

docs/record.md describes every field; `explanation.schema.json`, beside this module, is its JSON Schema.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

import ortcam
from ortcam.errors import OutputError, one_line
from ortcam.files import Fingerprint
from ortcam.schema import find_violation, schema

if TYPE_CHECKING:
    from ortcam.convention import Convention
    from ortcam.measures import MapMeasures
    from ortcam.preprocessing import Crop
    from ortcam.selection import ErrorEstimate
    from ortcam.targets import Target

FORMAT = 1
MANIFEST = "explanation.json"


@dataclass(frozen=True)
class Origin:
    """What was explained, by its content.

    Attributes:
        kind: what was hashed: the bytes of a ``file``; the ``pixels`` of a photo, uint8 [H,W,3] RGB in C order; or
            the values of an input ``tensor``, float32 [1,C,H,W] (or the model's own layout) in C order.
        sha256: the hash, in hexadecimal digits.
        path: the absolute path that the photo was read from; None where it was no file.
    """

    kind: Literal["file", "pixels", "tensor"]
    sha256: str
    path: Path | None = None

    @classmethod
    def of_file(cls, data: bytes | memoryview, path: str | PathLike[str] | None = None) -> Origin:
        """Return the origin of a picture whose file has the bytes `data`."""
        return cls("file", hashlib.sha256(data).hexdigest(), None if path is None else Path(path).absolute())

    @classmethod
    def of_array(cls, array: NDArray[Any]) -> Origin:
        """Return the origin of a photo uint8 [H,W,3], or of an input tensor float32."""
        kind: Literal["pixels", "tensor"] = "tensor" if array.dtype.kind == "f" else "pixels"
        return cls(kind, hashlib.sha256(np.ascontiguousarray(array).data).hexdigest())


@dataclass(frozen=True)
class Asked:
    """What the caller asked for.

    Attributes:
        targets: class indices and labels as they were given, ``"all"``, or None for the most probable classes.
        top_k: how many classes, where `targets` is None.
        budget, tolerance, selection: as in `ScoreCAM.explain`.
        batch_size: as in `ScoreCAM`.
    """

    targets: str | tuple[int | str, ...] | None
    top_k: int
    budget: int | None = None
    tolerance: float | None = None
    selection: str = "predict"
    batch_size: int | str | None = None

    @classmethod
    def targets_of(cls, targets: Any) -> str | tuple[int | str, ...] | None:
        """Return targets, in any form that `explain` takes, as plain values."""
        if hasattr(targets, "tolist"):
            targets = targets.tolist()
        if targets is None or targets == "all":
            return targets  # type: ignore[no-any-return]
        several = targets if isinstance(targets, Iterable) and not isinstance(targets, str) else (targets,)
        return tuple(value.tolist() if hasattr(value, "tolist") else value for value in several)


@dataclass(frozen=True)
class Provenance:
    """Where an explanation comes from.

    Attributes:
        photo: what was explained.
        model: the model file, and after it the files of its external weights.
        packed: whether the model file is a packed explainer.
        output: what the model's output holds: ``logits``, ``log_probabilities``, ``probabilities`` or ``sigmoid``.
        activation: what makes probabilities of logits, ``softmax`` or ``sigmoid``, guessed where nothing says it.
        preprocessing: `Preprocessing.to_dict()`; None where it is unknown.
        asked: what the caller asked for.
        batch_size: masked inputs in a batch, at most, as it was run.
        provider_options: the provider's options.
        device_id: which of several devices.
        onnxruntime: its version.
        created: when the explanation was made, UTC, ISO 8601.
    """

    photo: Origin
    model: tuple[Fingerprint, ...]
    packed: bool
    output: str
    activation: str
    preprocessing: Mapping[str, Any] | None
    asked: Asked
    batch_size: int
    provider_options: Mapping[str, str]
    device_id: int
    onnxruntime: str
    created: str


if TYPE_CHECKING:  # protocols take milliseconds to make, and only the type checker reads them

    class Recordable(Protocol):
        """What `build_record` reads: every explanation has it."""

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


def now() -> str:
    """Return the time, UTC, ISO 8601, as 2026-01-31T12:00:00Z."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def build_record(explanation: Recordable) -> dict[str, Any]:
    """Return everything but the arrays of an explanation, as plain JSON: docs/record.md."""
    record = outline(explanation)
    for target, measures in zip(record["targets"], explanation.measures, strict=True):
        target |= _describe_measures(measures)
    return {**record, "map_correlations": _plain(explanation.correlations)}


def outline(explanation: Recordable) -> dict[str, Any]:
    """Return the record without the numbers that the maps must be drawn for."""
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
        "crop": asdict(e.crop),
        "model": {
            **_describe_files(model),
            "packed": known.packed,
            "layer": e.layer,
            "output": known.output,
            "activation": known.activation,
        },
        "preprocessing": known.preprocessing,
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
            {
                "index": target.index,
                "label": target.label,
                "logit": target.logit,
                "probability": target.probability,
                "error": None if error is None else asdict(error),
                "map_is_flat": flat,
                "overlay": overlay_name(target),
            }
            for target, error, flat in zip(e.targets, e.errors, e.flat, strict=True)
        ],
    }
    plain: dict[str, Any] = _plain(record)
    return plain


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
    place, box = measures.maximum, measures.half_maximum_box
    return {
        "maximum": None if place is None else dict(zip("xy", place, strict=True)),
        "half_maximum_box": None if box is None else asdict(box),
        "share_above_half": measures.share_above_half,
        "share_at_edge": measures.share_at_edge,
    }


def _plain(value: Any) -> Any:
    """Return a value as JSON has it; a number that is not finite becomes null."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def overlay_name(target: Target) -> str:
    """Return the file name of a target's overlay."""
    words = "" if target.label is None else re.sub(r"[^a-z0-9]+", "-", target.label.split(",")[0].lower()).strip("-")
    return f"overlay-{target.index}-{words[:40]}.png" if words else f"overlay-{target.index}.png"


def is_written_by_save(path: Path) -> bool:
    """Whether a file in a directory is one that `Explanation.save` writes."""
    ours = path.name in (MANIFEST, "maps.npy", "raw_maps.npy", "weights.npy")
    return path.is_file() and (ours or re.fullmatch(r"overlay-\d+(-[a-z0-9-]+)?\.png", path.name) is not None)


def write_record(record: Mapping[str, Any], directory: Path) -> None:
    """Write `explanation.json`. File names that are no text are written as escapes that Python reads back."""
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    (directory / MANIFEST).write_text(text, encoding="utf-8", errors="backslashreplace")


def read_record(directory: Path) -> dict[str, Any]:
    """Return the record in a directory that `Explanation.save` wrote.

    Raises:
        OutputError: there is none, it is damaged, or it has another format.
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
    """Return what a directory holds instead of an earlier run of the same explanation; None where it holds one.

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


_PARTS = ("of another photo", "with another model", "with another preset", "of other classes", "with other options")


def _identity(record: Mapping[str, Any]) -> tuple[Any, ...]:
    photo, model, asked, run = (record[name] for name in ("photo", "model", "asked", "run"))
    hashes = [model["sha256"], *(file["sha256"] for file in model["external_data"])]
    return (
        [photo[name] for name in ("name", "hashed", "sha256", "height", "width")],
        # A model of unknown content is like no other, not even like itself.
        [*([object()] if None in hashes else hashes), model["packed"], model["layer"], record["preprocessing"]],
        record["preset"],
        [target["index"] for target in record["targets"]],
        [
            *(asked[name] for name in ("budget", "tolerance", "selection", "batch_size")),
            run["provider"],
            run["provider_options"],
        ],
    )
