"""Check a record against its JSON Schema, without a package for schemas."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("explanation.schema.json")
_SHOWN = 60  # characters of a wrong value


@lru_cache(maxsize=1)
def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a record."""
    found: dict[str, Any] = json.loads(PATH.read_text(encoding="utf-8"))
    return found


_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "null": type(None),
}


def find_violation(value: Any, rule: Mapping[str, Any], name: str = "the record") -> str | None:
    """Return the first violation of the schema in a JSON value, in words; None if the value is valid.

    The function supports only the keywords that this schema uses, so that reading a record needs no other package.
    """
    if "$ref" in rule:
        rule = schema()["$defs"][rule["$ref"].rpartition("/")[2]]
    if "anyOf" in rule:
        found = [find_violation(value, one, name) for one in rule["anyOf"]]
        return None if None in found else found[0]
    if "const" in rule and value != rule["const"]:
        return f"{name} is {value!r}; expected {rule['const']!r}"
    if "enum" in rule and value not in rule["enum"]:
        return f"{name} is {value!r}; expected one of {rule['enum']}"
    kinds = rule.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    fits = any(isinstance(value, _TYPES[kind]) for kind in kinds)
    if kinds and (not fits or (isinstance(value, bool) and "boolean" not in kinds)):
        return f"{name} is {_shown(value)}; expected {' or '.join(kinds)}"
    if isinstance(value, str) and not re.search(rule.get("pattern", ""), value):
        return f"{name} is {_shown(value)}; expected {rule['pattern']}"
    if isinstance(value, int | float) and not rule.get("minimum", -math.inf) <= value <= rule.get("maximum", math.inf):
        return f"{name} is {value}; expected {rule.get('minimum', '')} to {rule.get('maximum', '')}"
    if isinstance(value, list) and "items" in rule:
        parts = [(one, rule["items"], f"{name}[{place}]") for place, one in enumerate(value)]
    elif isinstance(value, dict):
        return _find_in_object(value, rule, name)
    else:
        parts = []
    return next((wrong for part in parts if (wrong := find_violation(*part)) is not None), None)


def _find_in_object(value: Mapping[str, Any], rule: Mapping[str, Any], name: str) -> str | None:
    prefix = "" if name == "the record" else f"{name}."
    known, other = rule.get("properties", {}), rule.get("additionalProperties", True)
    for key in rule.get("required", ()):
        if key not in value:
            return f"{prefix}{key} is missing"
    for key, one in value.items():
        if key not in known and other is False:
            return f"{prefix}{key} is unknown"
        wrong = find_violation(one, known.get(key, other if isinstance(other, dict) else {}), f"{prefix}{key}")
        if wrong is not None:
            return wrong
    return None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
