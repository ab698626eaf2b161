"""State the provenance of an explanation: hashes of photo and model, the caller's options, the time."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ortcam.core.files import Fingerprint


@dataclass(frozen=True)
class Origin:
    """The content that was explained.

    Attributes:
        kind: the hashed data: the bytes of a ``file``; the ``pixels`` of a photo, uint8 [H,W,3] RGB in C order; or the
            values of an input ``tensor``, float32 [1,C,H,W] (or the model's own layout) in C order.
        sha256: the hash, in hexadecimal digits.
        path: the absolute path of the photo; None if the photo has no path.
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
    """The caller's options.

    Attributes:
        targets: class indices and labels as given, ``"all"``, or None for the most probable classes.
        top_k: the number of classes, if `targets` is None.
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
    def targets_of(cls, targets: Any) -> str | tuple[Any, ...] | None:
        """Return targets, in any form that `explain` takes, as plain values."""
        if hasattr(targets, "tolist"):
            targets = targets.tolist()
        if targets is None or targets == "all":
            return targets  # type: ignore[no-any-return]
        several = targets if isinstance(targets, Iterable) and not isinstance(targets, str) else (targets,)
        return tuple(
            value.to_json() if hasattr(value, "to_json") else value.tolist() if hasattr(value, "tolist") else value
            for value in several
        )


@dataclass(frozen=True)
class Provenance:
    """The provenance of an explanation.

    Attributes:
        photo: the photo or tensor that was explained.
        model: the model file, then the files of its external weights.
        packed: whether the model file is a packed explainer.
        output: the kind of a classifier's output: ``logits``, ``log_probabilities``, ``probabilities`` or ``sigmoid``;
            of another model, its task.
        activation: the function that turns logits into probabilities, ``softmax`` or ``sigmoid``; a guess if the file
            does not state it; None for a model of another task.
        preprocessing: `Preprocessing.to_dict()`; None if it is unknown.
        asked: the caller's options.
        method: the name and the options of the method.
        batch_size: the largest number of masked inputs in a batch.
        provider_options: the provider's options.
        device_id: the number of the device.
        onnxruntime: its version.
        created: when the explanation was made, UTC, ISO 8601.
    """

    photo: Origin
    model: tuple[Fingerprint, ...]
    packed: bool
    output: str
    activation: str | None
    preprocessing: Mapping[str, Any] | None
    asked: Asked
    method: Mapping[str, Any]
    batch_size: int
    provider_options: Mapping[str, str]
    device_id: int
    onnxruntime: str
    created: str


def now() -> str:
    """Return the time, UTC, ISO 8601, as 2026-01-31T12:00:00Z."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
