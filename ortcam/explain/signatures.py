"""Accept arguments by position that are keyword-only since version 0.2, with a warning."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import wraps
from os import PathLike
from typing import Any, ParamSpec, TypeVar

from ortcam.errors import OptionError, OrtcamError

OnError = Callable[[Any, OrtcamError], None]
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
_POSITIONAL = 3  # self, the image or images, and targets
BEHIND_THE_NAMES = 4  # the stacklevel of a warning's function that such a method calls: `call` stands between


def names_from_the_third(*names: str) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Accept the keywords `names` also by position, in this order, with a warning."""

    def decorate(method: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        @wraps(method)
        def call(*given: Any, **named: Any) -> Result:
            old = given[_POSITIONAL:]
            if not old:
                return method(*given, **named)
            if len(old) > len(names):
                raise TypeError(f"{method.__name__} takes at most {len(names) + 2} positional arguments")
            shown = ", ".join(f"{name}=" for name in names[: len(old)])
            warnings.warn(
                f"{method.__name__} takes these arguments by name from version 0.2 on: {shown}",
                DeprecationWarning,
                stacklevel=2,
            )
            return method(*given[:_POSITIONAL], **dict(zip(names, old, strict=False)), **named)

        return call

    return decorate


def check_images(images: object) -> None:
    """Raise an OptionError if `explain_batch` got a single image."""
    if isinstance(images, str | PathLike):
        raise OptionError(f"images is the one path {str(images)!r}; expected several images, or use explain")
    if isinstance(images, bytes | bytearray | memoryview) or hasattr(images, "read"):
        raise OptionError(f"images is one {type(images).__name__}; expected several images, or use explain")
