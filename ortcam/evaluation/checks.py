"""Check the fields of a convention."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ortcam.errors import OptionError, nearest, whole
from ortcam.evaluation.replacements import REPLACEMENTS


def check_convention(convention: Any) -> None:
    """Check the fields that are words, `steps`, `baseline` and `epsilon`.

    Raises:
        OptionError: a value is unknown or out of range.
    """
    for name, hint in get_type_hints(type(convention)).items():
        value = getattr(convention, name)
        words = get_args(hint) if get_origin(hint) is Literal else tuple(REPLACEMENTS) if name == "baseline" else ()
        if words and value not in words:
            expected = f"expected {', '.join(words)}{nearest(str(value), words)}"
            raise OptionError(f"{name} of {convention.metric} is {value!r}; {expected}")
    if hasattr(convention, "steps"):
        whole(f"steps of {convention.metric}", convention.steps)
    if hasattr(convention, "epsilon") and not 0 <= convention.epsilon < math.inf:
        raise OptionError(f"epsilon of {convention.metric} is {convention.epsilon}; expected a number of at least 0")
