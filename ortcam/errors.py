"""The errors that a user can cause. Each message is one line: what was given, what was expected, what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from numbers import Integral

# C0 and C1 controls, the ends of lines and paragraphs, and what turns the direction of text: a file name with them can
# break a line, colour or clear a terminal, or read as another name.
_UNSHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Return a text as a terminal may show it in one line: control characters become escapes.

    >>> printable("a\x1b[2J.jpg")
    'a\\x1b[2J.jpg'
    """
    return _UNSHOWN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class OrtcamError(Exception):
    """The base of all errors that a user can correct. The text is one line, whatever the names in it."""

    def __str__(self) -> str:
        return printable(super().__str__())


class ImageError(OrtcamError):
    """A photo or an input tensor that cannot be used."""


class ModelError(OrtcamError):
    """A model file that cannot be used."""


class PackedModelError(ModelError):
    """A packed explainer where a model file was expected."""


class NotFiniteError(ModelError):
    """Scores that are NaN or infinite."""


class LayerError(ModelError):
    """A target layer that does not exist or has no spatial map."""


class TargetError(OrtcamError):
    """A class index or label that the model does not have."""


class ProviderError(OrtcamError):
    """An execution provider that does not load."""


class OutputError(OrtcamError):
    """A file or directory that cannot be written."""


class OccupiedError(OutputError):
    """A directory that holds something that must not be replaced."""


class ExportError(OrtcamError):
    """A source model that cannot be exported, or whose export does not agree with it."""


class DatasetError(OrtcamError):
    """Photos, labels, boxes or masks for an evaluation that are missing or contradict each other."""


class OptionError(OrtcamError):
    """An invalid value of an argument."""


class OrtcamWarning(UserWarning):
    """A notice for the user that stops nothing, such as a flat map."""

    def __str__(self) -> str:
        return printable(super().__str__())


_LONGEST = 200  # characters of a name that are compared: the time grows with their square


def nearest(name: str, choices: Iterable[str], most: int = 3) -> str:
    """Return ``"; nearest: a, b"`` for the choices most similar to `name`; ``""`` if none is similar.

    >>> nearest("layer5", ["layer4", "layer3", "fc"])
    '; nearest: layer4, layer3'
    """
    folded: dict[str, str] = {}
    for choice in choices:
        folded.setdefault(choice.lower(), choice)
    matches = difflib.get_close_matches(name[:_LONGEST].lower(), folded, n=most, cutoff=0.5)
    return "; nearest: " + ", ".join(folded[match] for match in matches) if matches else ""


def one_line(error: BaseException, most: int = 300) -> str:
    """Return the message of another library's error as a single line of at most `most` characters."""
    text = printable(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= most else text[: most - 3] + "..."


def whole(name: str, number: object, other: str = "", *, least: int = 1) -> int:
    """Check a whole number from `least` of any integer type, and return it; `other` names other valid values.

    Raises:
        OptionError: it is not a whole number from `least`.
    """
    if isinstance(number, bool) or not isinstance(number, Integral) or number < least:
        raise OptionError(f"{name} is {number!r}; expected a whole number from {least}{other}")
    return int(number)
