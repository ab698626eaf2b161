"""Choose the output of a classifier that holds the class scores: one rule for all kinds of sources."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from ortcam.errors import ExportError, OptionError, nearest
from ortcam.graph.ends import read_scores
from ortcam.graph.layers import WEIGHTED
from ortcam.graph.maps import variable_inputs

ONLY_CLASSIFIERS = "ortcam explains image classifiers"
FLOATS = ("float32", "float16", "float64")
_SCORE_TYPES = (*FLOATS, "uint8", "int8")  # the integers of quantized graphs
# Names that say that an output holds class scores, the clearest first.
_NAMES = (
    ("logits",),
    ("scores", "score", "classscores", "probabilities", "probability", "probs", "prob"),
    ("predictions", "prediction", "preds", "pred", "classes", "output", "outputs", "out"),
)


@dataclass(frozen=True)
class Output:
    """An output of a classifier.

    Attributes:
        name: its name, or its key in what a module returns (nested: ``outer.inner``).
        dtype: the type of its numbers; another word if it is not a tensor of numbers.
        shape: its dimensions; None for a free dimension, () if the shape is unknown.
        value: its tensor in the graph; None if it is not in the graph.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    value: ir.Value | None = None

    @property
    def count(self) -> int | None:
        """The number of scores for a picture, if this output holds scores; None if it is unknown."""
        if len(self.shape) == 1:  # [batch]: one score; but [N], where N is a number, has lost its batch
            return self.shape[0] or 1
        dims = [dim for dim in self.shape[1:] if dim != 1]
        return 1 if not dims and self.shape else dims[0] if len(dims) == 1 else None

    @property
    def may_be_scores(self) -> bool:
        """Whether it can hold scores: [batch,N], [batch], or [batch,N] with more dimensions of 1."""
        return self.dtype in _SCORE_TYPES and sum(dim != 1 for dim in self.shape[1:]) <= 1

    def __str__(self) -> str:
        if self.dtype not in (*_SCORE_TYPES, "int32", "int64", "bool", "string"):
            return f"{self.name} ({self.dtype})"
        shown = ",".join("?" if dim is None else str(dim) for dim in self.shape)
        return f"{self.name} {'' if self.dtype == 'float32' else self.dtype + ' '}[{shown}]"


def choose_scores(
    outputs: Sequence[Output],
    name: str,
    wanted: str | None = None,
    classes: int | None = None,
    prefer_logits: bool = False,
    is_classifier: bool = True,
) -> tuple[Output, str | None]:
    """Return the output that holds the class scores, and a notice for the user.

    A softmax or sigmoid of another output replaces that output, because it shows the kind of the scores. If several
    outputs remain, these rules choose, in this order:

    - the output with a score for each label;
    - the output called ``logits``;
    - the output that the network computes from the others, as scores from an embedding;
    - the output whose name says so;
    - the only output that ends in a softmax or a sigmoid.

    The last rule, and one that drops single numbers beside several scores, guess that the model is a classifier at all.

    Args:
        outputs: all outputs, with their tensors, in one graph.
        name: the model's name in messages.
        wanted: the name or the index of the output that the user chose.
        classes: the number of labels that the user gave.
        prefer_logits: take an output called ``logits`` even if its softmax is an output as well.
        is_classifier: whether the user says that the model is a classifier, so that the rules may guess.

    Raises:
        OptionError: no output has the wanted name.
        ExportError: no output can hold class scores, or several can and no rule decides.
    """
    if wanted is not None:
        return _find(outputs, wanted, name), None
    fitting = [output for output in outputs if output.may_be_scores]
    if not fitting:
        raise ExportError(_explain_none(outputs, name))
    left = [output for output in fitting if output.count == classes] or fitting
    if prefer_logits and len(left) > 1 and not any(_kind(output) == "sigmoid" for output in left):
        left = _named_logits(left)
    guesses = (_drop_single, _ended)
    for narrow in (_drop_other_forms, _named_logits, _drop_embeddings, _drop_single, _best_named, _ended):
        if len(left) > 1 and (is_classifier or narrow not in guesses):
            left = narrow(left)
    if len(left) > 1 and not is_classifier and len({output.count for output in left}) > 1:
        raise ExportError(
            f"{name} returns {list_outputs(outputs)}; ortcam cannot tell which to explain ({_guesses(outputs)}): give "
            "--task classify, value, embed, detect or segment, and --output-name NAME"
        )
    if len(left) > 1:
        raise ExportError(
            f"{name} returns {list_outputs(outputs)}; ortcam cannot tell which holds the class scores: "
            "give its name or its index with --output-name"
        )
    (chosen,) = left
    others = [output.name for output in fitting if output is not chosen]
    if not others:
        return chosen, None
    shown = ", ".join(others[:4])
    return chosen, f"{chosen.name!r} is taken for the class scores, not {shown}; --output-name chooses another"


def _guesses(outputs: Sequence[Output]) -> str:
    """Return what the outputs could be, for a message."""
    named: dict[str, list[str]] = {}
    for output in outputs[:6]:
        could = {3: "boxes or their scores", 4: "a mask or a feature map"}.get(len(output.shape), "something else")
        if output.may_be_scores:
            could = "class scores" if _is_ended(output) else "class scores, values or an embedding"
            could = "a value or a score" if output.count == 1 else could
        named.setdefault(could, []).append(output.name)
    return "; ".join(f"{', '.join(names)}: {could}" for could, names in named.items())


def refuse_largest(scores: ir.Value, name: str) -> None:
    """Refuse an output that holds only the largest of the scores, as torch.max returns it.

    Raises:
        ExportError: the output is of this kind.
    """
    value: ir.Value | None = scores
    while value is not None and (node := value.producer()) is not None:
        given = node.inputs[0]
        rank = None if given is None or given.shape is None else len(given.shape)
        if node.op_type in ("ReduceMax", "TopK") and rank == 2:
            raise ExportError(
                f"{name} returns only the largest of its scores; expected the scores of all classes, in order"
            )
        if node.op_type not in ("Squeeze", "Unsqueeze", "Reshape", "Flatten", "Identity", "Cast"):
            return
        value = given


def flatten(scores: NDArray[Any], batch: int) -> NDArray[Any]:
    """Return scores as [batch,N] if they have the batch in front and at most one other dimension above 1.

    Other arrays, such as maps, are returned unchanged.
    """
    if scores.ndim == 1 and batch == 1:  # [1], or [N] without its batch
        return scores[None]
    if scores.ndim and len(scores) == batch and sum(dim != 1 for dim in scores.shape[1:]) <= 1:
        return scores.reshape(batch, -1)
    return scores


def list_outputs(outputs: Sequence[Output]) -> str:
    """Return the first few outputs with their shapes, for a message."""
    more = f" and {len(outputs) - 6} more" if len(outputs) > 6 else ""
    return "; ".join(map(str, outputs[:6])) + more


def _find(outputs: Sequence[Output], wanted: str, name: str) -> Output:
    """Return the output with this name, else with this index."""
    names = [output.name for output in outputs]
    if wanted in names:
        found = outputs[names.index(wanted)]
    elif re.fullmatch(r"-?\d{1,9}", wanted) and -len(outputs) <= int(wanted) < len(outputs):
        found = outputs[int(wanted)]
    else:
        raise OptionError(f"{name} has no output {wanted!r}; expected {', '.join(names[:20])}{nearest(wanted, names)}")
    if not found.may_be_scores:
        raise ExportError(_explain_none([found], name))
    return found


def _explain_none(outputs: Sequence[Output], name: str) -> str:
    return (
        f"{name} returns {list_outputs(outputs)}; expected class scores [batch,classes], or another task: give --task "
        "detect, segment, embed or value"
    )


def _drop_other_forms(outputs: list[Output]) -> list[Output]:
    """Drop outputs that repeat or summarise another output: keep the softmax of scores, and drop their largest."""
    dropped = set()
    for later in outputs:
        without_weights = _ancestors(later, through_weights=False)
        for earlier in outputs:
            if earlier is later or earlier.value not in without_weights:
                continue
            if None in (earlier.count, later.count) or earlier.count == later.count:
                dropped.add(earlier.name if _is_ended(later) and not _is_ended(earlier) else later.name)
            elif later.count < earlier.count:  # type: ignore[operator]
                dropped.add(later.name)
    return [output for output in outputs if output.name not in dropped] or outputs


def _named_logits(outputs: list[Output]) -> list[Output]:
    found = [output for output in outputs if _rank(output) == 0]
    return found if len(found) == 1 else outputs


def _drop_embeddings(outputs: list[Output]) -> list[Output]:
    """Drop outputs from which the network computes other outputs."""
    needed: set[ir.Value | None] = set()
    for output in outputs:
        needed |= _ancestors(output) - {output.value}
    return [output for output in outputs if output.value not in needed] or outputs


def _drop_single(outputs: list[Output]) -> list[Output]:
    """Drop single numbers, such as a quality or an age, beside several scores."""
    return [output for output in outputs if output.count != 1] or outputs


def _best_named(outputs: list[Output]) -> list[Output]:
    best = min(map(_rank, outputs))
    found = [output for output in outputs if _rank(output) == best]
    return found if best < len(_NAMES) and len(found) == 1 else outputs


def _rank(output: Output) -> int:
    """Return how clearly the name says that an output holds scores: 0 is the clearest, the last rank not at all."""
    last = re.split(r"[./]", output.name.removesuffix(":0"))[-1]
    plain = re.sub(r"[\W_]", "", last).lower()
    return next((rank for rank, names in enumerate(_NAMES) if plain in names), len(_NAMES))


def _ended(outputs: list[Output]) -> list[Output]:
    found = [output for output in outputs if _is_ended(output)]
    return found if len(found) == 1 else outputs


def _is_ended(output: Output) -> bool:
    return _kind(output) != "logits"


def _kind(output: Output) -> str:
    return "logits" if output.value is None else read_scores(output.value).kind


def _ancestors(output: Output, through_weights: bool = True) -> set[ir.Value | None]:
    """Return an output and the tensors from which it is computed; those before weights only if `through_weights`."""
    seen: set[ir.Value | None] = set()
    waiting = [output.value]
    while waiting:
        value = waiting.pop()
        if value is None or value in seen:
            continue
        seen.add(value)
        node = value.producer()
        if node is not None and (through_weights or not _has_weights(node)):
            waiting.extend(_inputs(node))
    return seen


def _inputs(node: ir.Node) -> Iterator[ir.Value | None]:
    """Yield the inputs of a node and of the nodes in its subgraphs."""
    yield from node.inputs
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            for inner in attribute.as_graph():
                yield from _inputs(inner)


def _has_weights(node: ir.Node) -> bool:
    """Return whether a node can compute features: it has weights or a vector of constants, or is a custom operator."""
    if node.domain not in ("", "ai.onnx"):
        return True
    if node.op_type in WEIGHTED:
        return len(variable_inputs(node)) < len(node.inputs)
    tensors = [ir.convenience.get_const_tensor(value) for value in node.inputs if value is not None]
    return any(tensor is not None and tensor.dtype.is_floating_point() and tensor.size > 1 for tensor in tensors)
