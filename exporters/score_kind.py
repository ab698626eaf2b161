"""Decide the kind of an output's scores from the graph, the user's statement and a run."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import onnx

from ortcam.core.convention import Floats
from ortcam.core.scores import guess
from ortcam.errors import ExportError, OptionError
from ortcam.graph.ends import Scores
from ortcam.model.contract import Contract

StatedKind = Literal["logits", "probabilities", "sigmoid"]

_SUM_TOLERANCE = 1e-2  # rounding of probabilities in half precision or 8 bits changes their sum
_ENDS = {"probabilities": "a softmax", "sigmoid": "a sigmoid", "log_probabilities": "the logarithms of probabilities"}


def check_stated_kind(stated: str | None) -> None:
    """Refuse an unknown kind.

    Raises:
        OptionError: the kind is not one of the three.
    """
    if stated is not None and stated not in get_args(StatedKind):
        raise OptionError(f"output_kind is {stated!r}; expected {', '.join(get_args(StatedKind))}")


def kind_of(contract: Contract) -> StatedKind | None:
    """Return the kind to state when a model file is exported again, so that an earlier statement is kept.

    None if the graph shows the kind, or the kind is unknown.
    """
    if contract.output == "logits":
        kinds: dict[str | None, StatedKind] = {"softmax": "logits", "sigmoid": "sigmoid"}
        return kinds.get(contract.activation)
    shown = contract.logits is not None or contract.output_scale is not None or contract.output == "log_probabilities"
    return None if shown else "probabilities"


def settle_kind(
    read: Scores, stated: StatedKind | None, classes: int | None, name: str
) -> tuple[Scores, tuple[str, ...]]:
    """Return the kind of an output's scores, and notices for the user.

    Args:
        read: the kind that the graph shows.
        stated: the kind that the user states, which counts more.
        classes: the number of scores; a single score is a sigmoid's.
        name: the model's name in messages.

    Raises:
        OptionError: graph and user contradict each other.
        ExportError: the output is 1 for every photo.
    """
    found, single = read.kind != "logits", classes == 1
    if single and read.activation == "softmax":
        raise ExportError(
            f"{name} ends in a softmax over one class, which is 1 for every photo, so a map would have no meaning; "
            "expected a sigmoid, or the score without the softmax"
        )
    if stated == "logits":
        kind = Scores(activation="sigmoid" if single else "softmax")
        if not found or (read.kind == "log_probabilities" and read.activation == "softmax"):
            return (read if found else kind), ()
        note = (
            f"{name} ends in {_ENDS[read.kind]}, but its output is used as logits, as stated: the probabilities shown "
            f"are a {kind.activation} of it; omit --output {stated} for the model's own probabilities"
        )
        return kind, (note,)
    if stated == "probabilities":
        if read.kind == "log_probabilities":
            raise OptionError(
                f"output_kind is {stated!r}, but {name} ends in logarithms of probabilities, which ortcam recognises; "
                "omit output_kind"
            )
        return (
            read if found else Scores("sigmoid" if single else "probabilities", "sigmoid" if single else "softmax")
        ), ()
    if stated == "sigmoid" and read.activation == "softmax":
        raise OptionError(
            f"output_kind is {stated!r}, but {name} ends in a softmax, whose classes exclude each other; omit it"
        )
    if found:
        return read, ()
    return Scores(activation="sigmoid" if single or stated == "sigmoid" else None), ()


def check_kind(contract: Contract, stated: StatedKind | None, scores: Floats) -> tuple[Contract, tuple[str, ...]]:
    """Check the kind of the scores against a run, if the graph does not show the kind.

    Args:
        contract: the contract so far.
        stated: the kind that the user states.
        scores: float32 [R,N], the file's output for random inputs.

    Returns:
        The contract with the kind that the run decided, and notices for the user.

    Raises:
        OptionError: probabilities were stated, and a score is below 0 or above 1.
    """
    if contract.logits is not None or contract.output_scale is not None or contract.output == "log_probabilities":
        return contract, ()
    name, count = contract.source.get("name", "the model"), scores.shape[1]
    lowest, highest = float(scores.min()), float(scores.max())
    within = lowest >= 0 and highest <= 1
    sums = scores.sum(axis=1)
    whole = within and count > 1 and bool(np.abs(sums - 1).max() < _SUM_TOLERANCE)
    if contract.output == "probabilities" and stated == "probabilities":
        if not within:
            raise _no_probabilities(lowest, highest)
        if not whole:
            note = (
                f"the probabilities sum to {sums.min():.3g} to {sums.max():.3g}, not to 1, so they are taken for "
                "those of independent classes"
            )
            return replace(contract, output="sigmoid", activation="sigmoid"), (note,)
    if contract.output == "sigmoid" and stated == "probabilities" and not within:
        raise _no_probabilities(lowest, highest)
    if contract.output != "logits" or stated == "logits":
        return contract, ()
    if whole and stated is None:
        note = (
            "the scores are from 0 to 1 and sum to 1, so they are taken for probabilities; if they are logits, export "
            "with --output logits"
        )
        return replace(contract, output="probabilities", activation="softmax"), (note,)
    if within:
        taken = "sigmoid" if contract.activation == "sigmoid" else "softmax"
        note = (
            f"all scores of {len(scores)} random inputs are from 0 to 1, and ortcam applies a {taken} to them; if they "
            "are probabilities already, export with --output probabilities"
        )
        return contract, (note,)
    return contract, (guess(str(name)),) if contract.is_in_doubt(count) else ()


def _no_probabilities(lowest: float, highest: float) -> OptionError:
    return OptionError(
        f"output_kind is 'probabilities', but the model returns {lowest:.3g} to {highest:.3g}; expected numbers from 0 "
        "to 1: state logits (one class a photo) or sigmoid (independent classes)"
    )


def rename_output(proto: onnx.ModelProto, name: str) -> None:
    """Give the first output of a model file another name, in place."""
    old = proto.graph.output[0].name
    if old == name:
        return
    proto.graph.output[0].name = name
    for node in proto.graph.node:
        for names in (node.input, node.output):
            for at, one in enumerate(names):
                if one == old:
                    names[at] = name


def state_count(proto: onnx.ModelProto, count: int) -> None:
    """Write the number of scores into the shape of a model file's first output, in place."""
    dims = proto.graph.output[0].type.tensor_type.shape.dim
    if not dims:
        dims.add(dim_param="batch")
        dims.add()
    dims[-1].dim_value = count
