"""Say whether the earlier result in a folder answers the same question, so that a new result may replace it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ortcam.core.files import Fingerprint
from ortcam.core.provenance import Origin
from ortcam.evaluation.journal import as_json, first_difference

_ADVICE = "give another folder, or overwrite=True (--overwrite)"


@dataclass(frozen=True)
class Question:
    """What decides a result.

    Attributes:
        options: the models, methods and options, as plain JSON.
        photos: the SHA-256 of each photo's content, by the photo's name. None for unknown content; in a record, for a
            photo that failed.
    """

    options: Mapping[str, Any]
    photos: Mapping[str, str | None]


def hash_photos(named: Iterable[tuple[str, Any]]) -> dict[str, str | None]:
    """Return the SHA-256 of each photo, by its name; None for an image that is no path, bytes or array."""
    found = dict[str, str | None]()
    for name, image in named:
        found[name] = None
        if isinstance(image, str | PathLike):
            found[name] = Fingerprint(image).sha256
        elif isinstance(image, bytes | bytearray | memoryview):
            found[name] = hashlib.sha256(image).hexdigest()
        elif isinstance(image, np.ndarray):
            found[name] = Origin.of_array(image).sha256
    return found


def why_other(record: Path, question: Question, read: Callable[[Mapping[str, Any]], Question]) -> str | None:
    """Return why a new result must not replace the result that a record describes; None if it may.

    Args:
        record: the record, a JSON file; it may be missing.
        question: the question of the new result.
        read: returns the question of a record, or raises a ValueError, KeyError or TypeError.
    """
    try:
        theirs = read(json.loads(record.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return f"it holds results without a complete {record.name}; {_ADVICE}"
    if (difference := first_difference(theirs.options, as_json(question.options, "the options"))) is not None:
        field, there, here = difference
        return f"it holds results with {field} = {there}; expected {here}; {_ADVICE}"
    if theirs.photos.keys() != question.photos.keys():
        return f"it holds results of other photos; {_ADVICE}"
    for name, sha256 in theirs.photos.items():
        if sha256 is not None and sha256 != question.photos[name]:
            return f"it holds results of another photo {name}; {_ADVICE}"
    return None
