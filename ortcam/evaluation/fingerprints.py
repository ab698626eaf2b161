"""Hashes of what the values of a photo depend on, so that a run that goes on never keeps values of other inputs."""

from __future__ import annotations

import hashlib
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ortcam.core.files import Fingerprint

if TYPE_CHECKING:
    from ortcam.evaluation.samples import Sample


def hash_file(path: str | PathLike[str]) -> str:
    """Return the SHA-256 of a file; empty if it cannot be read."""
    return Fingerprint(path).sha256 or ""


def hash_array(values: NDArray[Any]) -> str:
    """Return a hash of the type, shape and values of an array."""
    start = f"{values.dtype} {values.shape}".encode()
    return hashlib.sha256(start + np.ascontiguousarray(values).tobytes()).hexdigest()


def hash_files_of(sample: Sample) -> str:
    """Return a hash of the photo and the masks of a sample that are files."""
    files = [sample.image, *(getattr(mask, "path", None) for mask in sample.masks)]
    return " ".join(hash_file(file) for file in files if isinstance(file, str | PathLike))
