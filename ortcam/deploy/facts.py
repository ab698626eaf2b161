"""The facts of a packed explainer, which its metadata states: method, preset, budget, ..."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ortcam.errors import ModelError, one_line
from ortcam.model.contract import EXPLAINER, EXPLAINER_FORMATS, Contract
from ortcam.model.source import read_proto

# The facts in the metadata entry `ortcam.explainer`.
_FACTS: dict[str, type | tuple[type, ...]] = {
    "method": dict,
    "preset": str,
    "budget": (int, type(None)),
    "batch_size": int,
    "raw": bool,
    "default_target": (int, type(None)),
    "input_shape": list,
    "classes": int,
    "scores": str,
    "source": dict,
    "ortcam": str,
}


def describe_run(facts: dict[str, Any]) -> str:
    """Return a few words for the method of a packed explainer: its options, or the preset and budget of Score-CAM."""
    method = dict(facts["method"])
    name = method.pop("name")
    if name == "score-cam":
        passes = "every channel" if facts["budget"] is None else f"a budget of {facts['budget']} masked images"
        return f"{facts['preset']} Score-CAM with {passes}"
    options = ", ".join(f"{option} {value}" for option, value in method.items())
    return f"{name} ({options})" if options else str(name)


def read_facts(path: Path) -> tuple[Contract, dict[str, Any]]:
    """Return the contract and the facts in the metadata of a packed explainer.

    Raises:
        ModelError: the file is missing, is not a packed explainer, or has a newer format.
    """
    return parse_facts({entry.key: entry.value for entry in read_proto(path).metadata_props}, path)


def parse_facts(entries: dict[str, str], path: Path) -> tuple[Contract, dict[str, Any]]:
    """Return the contract and the facts from metadata entries; see `read_facts`."""
    if EXPLAINER not in entries:
        raise ModelError(f"{path} is not a packed explainer; expected a file that `ortcam pack` wrote")
    try:
        facts = json.loads(entries[EXPLAINER])
        found = facts["format"]
        if found not in EXPLAINER_FORMATS:
            known = " and ".join(map(str, EXPLAINER_FORMATS))
            raise ModelError(f"{path} has format {found!r}; this ortcam reads formats {known}: pack it again")
        facts.setdefault("method", {"name": "score-cam"})  # an older ortcam packed no other method
        wrong = [name for name, kinds in _FACTS.items() if not isinstance(facts[name], kinds)]
        if wrong or not {"file", "sha256"} <= facts["source"].keys() or "name" not in facts["method"]:
            raise ValueError(f"{EXPLAINER} lacks {(wrong or ['source'])[0]}")
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{path} has metadata that cannot be read: {one_line(error)}; pack it again") from error
    return Contract.from_metadata(entries, str(path)), facts
