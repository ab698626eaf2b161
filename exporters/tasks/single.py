"""Plan how the one output of a segmenter, an embedding or plain values is read."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ortcam.errors import ExportError, OptionError
from ortcam.exporters.outputs import FLOATS, Output
from ortcam.exporters.tasks.options import ScoreKind, TaskOptions, read_kind
from ortcam.exporters.tasks.plan import Plan
from ortcam.exporters.tasks.source import RawSource
from ortcam.graph.ends import read_scores
from ortcam.model.contract import Task

_NEEDED = {
    "segment": "a mask [batch,classes,height,width]",
    "embed": "an embedding [batch,D]",
    "value": "values [batch,N]",
}
_MASK_KINDS = ("probabilities", "logits", "softmax")
_FIRST = ("out", "output", "logits", "mask", "masks")  # names of a segmenter's result beside auxiliary outputs


def plan_single(source: RawSource, task: Task, options: TaskOptions, wanted: str | None) -> Plan:
    """Return the plan of a task with one output.

    Args:
        source: the source.
        task: ``segment``, ``embed`` or ``value``.
        options: the user's options.
        wanted: the name or index of an output, or the name of a tensor inside the graph; None to find it.

    Raises:
        ExportError: no output can be the task's, or several can.
        OptionError: the user's name or kind does not fit the source.
    """
    stated = None if options.scores is None else read_kind(options.scores)
    if stated is not None:
        if stated.form not in _MASK_KINDS or len(stated.names) != 1:
            raise OptionError(
                f"scores is {options.scores!r} for a mask; expected NAME:KIND, KIND one of {', '.join(_MASK_KINDS)}"
            )
        wanted = stated.names[0]
    name, notices = (_choose(source, task), []) if wanted is None else (_find(source, wanted), [])
    raw = source.measure([name])[name]
    _refuse_other_form(source, task, name, raw)
    if task != "segment":
        return Plan(task, name=name)
    others = [output.name for output in source.outputs if _may_be(output, task) and output.name != name]
    if others and wanted is None:
        notices.append(f"{name!r} is taken for the mask, not {', '.join(others[:4])}; --output-name chooses another")
    last = _is_channels_last(raw, source.size)
    kind: ScoreKind
    if stated is not None:
        kind = stated.form  # type: ignore[assignment]
    else:
        kind, notice = _kind(source, name, raw, last)
        notices += [notice] if notice else []
    if kind == "probabilities" and not (raw.min() >= -1e-6 and raw.max() <= 1 + 1e-6):
        raise OptionError(
            f"the mask {name!r}, stated as probabilities, reaches from {raw.min():.3g} to {raw.max():.3g}; expected "
            f"0 to 1: --scores {name}:softmax (one class a pixel) or {name}:logits (independent classes)"
        )
    return Plan(task, kind=kind, name=name, channels_last=last, notices=tuple(notices))


def _choose(source: RawSource, task: Task) -> str:
    """Return the only output that can be the task's; of several masks, the one of a usual name, or the first."""
    fitting = [output for output in source.outputs if _may_be(output, task)]
    if not fitting:
        raise ExportError(
            f"{source.name} returns {source.listed}; expected {_NEEDED[task]} for task {task}{_before_argmax(source)}"
        )
    if len(fitting) == 1:
        return fitting[0].name
    if task == "segment":
        return next((output.name for key in _FIRST for output in fitting if output.name == key), fitting[0].name)
    raise ExportError(
        f"{source.name} returns {source.listed}; several can be {_NEEDED[task]}: choose with --output-name"
    )


def _may_be(output: Output, task: Task) -> bool:
    if output.dtype not in FLOATS:
        return False
    if task == "segment":
        return len(output.shape) == 4 and sum(dim == 1 for dim in output.shape[1:]) < 2
    return output.may_be_scores


def _find(source: RawSource, wanted: str) -> str:
    """Return the tensor of a name, else the output of an index."""
    own = [output.name for output in source.outputs]
    if wanted not in own and wanted.lstrip("-").isdecimal() and -len(own) <= int(wanted) < len(own):
        return own[int(wanted)]
    source.check_name(wanted, "output_name")
    return wanted


def _refuse_other_form(source: RawSource, task: Task, name: str, raw: NDArray[Any]) -> None:
    """Refuse a tensor of another form than the task's.

    Raises:
        ExportError: it has another rank or type, or no batch in front.
    """
    shown = f"{name} {raw.dtype} [{','.join(map(str, raw.shape))}]"
    wide = sum(dim != 1 for dim in raw.shape[1:])
    fits = raw.ndim == 4 if task == "segment" else raw.ndim >= 2 and wide <= 1
    if not np.issubdtype(raw.dtype, np.floating):
        raise ExportError(f"{source.name} returns {shown}; expected {_NEEDED[task]} of floats{_before_argmax(source)}")
    if raw.ndim and len(raw) != 1:
        raise ExportError(f"{source.name} returns {shown} for one image; expected the batch in front: {_NEEDED[task]}")
    if not fits:
        hint = "; of a feature map or tokens, give the pooled vector" if task == "embed" else ""
        raise ExportError(f"{source.name} returns {shown}; expected {_NEEDED[task]} for task {task}{hint}")


def _before_argmax(source: RawSource) -> str:
    """Return the advice for a graph that ends in an ArgMax: the tensor before it."""
    makers = {output: node for node in source.proto.graph.node for output in node.output}
    for output in source.outputs:
        node = makers.get(output.name)
        while node is not None and node.op_type in ("Cast", "Squeeze", "Unsqueeze", "Reshape", "Identity"):
            node = makers.get(node.input[0])
        if node is not None and node.op_type == "ArgMax":
            before = node.input[0]
            return f": {output.name!r} holds the largest class only; give the tensor before it, --output-name {before}"
    return ""


def _is_channels_last(raw: NDArray[Any], size: tuple[int, int]) -> bool:
    """Return whether a mask is [1,H,W,C]: its rows and columns have the proportion of the input."""
    height, width = size
    ratios = [abs(rows * width / (columns * height) - 1) for rows, columns in (raw.shape[2:], raw.shape[1:3])]
    return bool(ratios[1] < ratios[0]) or (ratios[1] == ratios[0] and raw.shape[3] < min(raw.shape[1:3]))


def _kind(source: RawSource, name: str, raw: NDArray[Any], last: bool) -> tuple[ScoreKind, str | None]:
    """Return how a mask becomes probabilities, as the graph or a run shows it, and a notice if neither does."""
    graph = ir.from_proto(source.proto).graph
    value = next((value for node in graph for value in node.outputs if value.name == name), None)
    read = None if value is None else read_scores(value)
    within = bool(raw.min() >= 0 and raw.max() <= 1)
    if within and read is not None and read.kind in ("probabilities", "sigmoid"):
        return "probabilities", None
    classes = raw.shape[3 if last else 1]
    if within:
        sums = raw.sum(axis=3 if last else 1)
        if classes > 1 and np.abs(sums - 1).max() < 1e-3:
            return "probabilities", None
        return "probabilities", (
            f"the mask {name!r} is from 0 to 1 for a random input, and is taken for probabilities; if it holds logits, "
            f"export with --scores {name}:{'softmax' if classes > 1 else 'logits'}"
        )
    if classes == 1:
        return "logits", None
    return "softmax", (
        f"a softmax over the {classes} classes makes probabilities of the mask {name!r}; if its classes are "
        f"independent, export with --scores {name}:logits"
    )
