"""Methods of explanation, one file each: their queries to the model, and the map from the scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ortcam.errors import OptionError, nearest

if TYPE_CHECKING:
    from ortcam.core.convention import Convention
    from ortcam.core.method import Method

METHODS = {
    "score-cam": ("scorecam", "ScoreCAMMethod"),
    "cam": ("cam", "CAM"),
    "recipro-cam": ("reciprocam", "ReciproCAM"),
    "ablation-cam": ("ablationcam", "AblationCAM"),
    "eigen-cam": ("eigencam", "EigenCAM"),
    "ss-cam": ("smoothed", "SSCAM"),
    "is-cam": ("smoothed", "ISCAM"),
    "poly-cam": ("polycam", "PolyCAM"),
    "rise": ("rise", "RISE"),
    "fused": ("fused", "Fused"),
}


def make_method(name: str, options: Mapping[str, Any] | None = None) -> Method:
    """Make a method. The values of its options may be text, as on the command line.

    Raises:
        OptionError: the name or an option is unknown, or a value is invalid.
    """
    if name not in METHODS:
        raise OptionError(f"method {name!r} is unknown; expected {', '.join(METHODS)}{nearest(name, METHODS)}")
    module, kind = METHODS[name]
    method = getattr(import_module(f"ortcam.methods.{module}"), kind)
    defaults = {field.name: field.default for field in fields(method) if field.init and field.name != "convention"}
    given = {}
    for option, value in (options or {}).items():
        if option not in defaults:
            expected = ", ".join(defaults) or "none"
            raise OptionError(f"method option {option!r} of {name} is unknown; expected {expected}")
        given[option] = _as(type(defaults[option]), option, value)
    made: Method = method(**given)
    return made


def with_preset(method: Method, preset: str | Convention | None) -> Method:
    """Return Score-CAM by the definition `preset`; the method itself if `preset` is None.

    Raises:
        OptionError: the preset is unknown, or the method is not Score-CAM.
    """
    if preset is None:
        return method
    if method.name != "score-cam":
        raise OptionError(f"got a preset with method {method.name}; only score-cam has presets: leave preset out")
    from ortcam.core.convention import resolve_convention
    from ortcam.methods.scorecam import ScoreCAMMethod

    return ScoreCAMMethod(resolve_convention(preset))


def _as(kind: type, option: str, value: Any) -> Any:
    """Return a value as the type of the option's default."""
    if not isinstance(value, str) or kind is str:
        return value
    try:
        return kind(value)
    except ValueError as error:
        expected = "a whole number" if kind is int else "a number"
        raise OptionError(f"method option {option} is {value!r}; expected {expected}") from error
