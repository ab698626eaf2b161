"""Find the class scores in the results of PyTorch modules: dicts, tuples, dataclasses and the like."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from ortcam.errors import ExportError
from ortcam.exporters.outputs import EXPECTED_SCORES, Output, choose_scores, list_outputs
from ortcam.exporters.sources import SourceOptions

_DEEPEST = 4  # containers inside one another that are searched


def find_leaves(returned: Any, key: str = "", depth: int = 0) -> dict[str, Any]:
    """Return the entries of a module's result by key (nested: ``outer.inner``); a single tensor has the key ``output``.

    The function opens mappings, sequences, named tuples, dataclasses and plain objects with attributes.
    """
    inner = None if depth == _DEEPEST else _open(returned)
    if inner is None:
        return {key or "output": returned}
    leaves: dict[str, Any] = {}
    for name, entry in inner.items():
        leaves |= find_leaves(entry, f"{key}.{name}" if key else str(name), depth + 1)
    return leaves


def find_tensors(returned: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of a module's result by key."""
    return {key: leaf for key, leaf in find_leaves(returned).items() if isinstance(leaf, torch.Tensor)}


def _open(returned: Any) -> Mapping[Any, Any] | None:
    """Return the entries of a container; None for anything else."""
    if isinstance(returned, Mapping):
        return returned
    if isinstance(returned, tuple) and hasattr(returned, "_fields"):
        return dict(zip(returned._fields, returned, strict=True))
    if isinstance(returned, list | tuple):
        return dict(enumerate(returned))
    if is_dataclass(returned) and not isinstance(returned, type):
        return {field.name: getattr(returned, field.name) for field in fields(returned)}
    if isinstance(returned, torch.Tensor | nn.Module | type) or not isinstance(
        getattr(returned, "__dict__", None), dict
    ):
        return None
    return vars(returned) or None


def describe(returned: Any, batch: int) -> list[Output]:
    """Describe a module's result for a batch as outputs; scores have None as their batch dimension."""
    outputs = []
    for key, leaf in find_leaves(returned).items():
        if not isinstance(leaf, torch.Tensor):
            outputs.append(Output(key, type(leaf).__name__, ()))
            continue
        shape, dtype = tuple(leaf.shape), str(leaf.dtype).removeprefix("torch.")
        outputs.append(Output(key, dtype, (None, *shape[1:]) if shape[:1] == (batch,) else shape))
    return outputs


def may_be_scores(output: Output) -> bool:
    """Return whether an entry of a module's result can be scores: floats, with the batch in front."""
    return output.dtype.startswith("float") and output.shape[:1] == (None,) and output.may_be_scores


def narrow(returned: Any, batch: int, name: str, options: SourceOptions) -> list[str]:
    """Return the keys of the entries that can be the class scores; only the user's choice if given.

    Raises:
        OptionError: no entry has the user's key or index.
        ExportError: no entry can be class scores.
    """
    outputs = describe(returned, batch)
    fitting = [output for output in outputs if may_be_scores(output)]
    if options.output is not None:
        chosen, _ = choose_scores(outputs, name, options.output)
        fitting = [output for output in fitting if output is chosen]
        outputs = [chosen]
    if not fitting:
        is_tensor = isinstance(returned, torch.Tensor)
        what = list(returned.shape) if is_tensor else f"{type(returned).__name__}: {list_outputs(outputs)}"
        raise ExportError(f"{name} returns {what}; {EXPECTED_SCORES}")
    return [output.name for output in fitting]


@contextlib.contextmanager
def returning(module: nn.Module, keys: Sequence[str]) -> Iterator[None]:
    """Make a module return only the tensors of these keys. A hook does so, and keeps its parts and their names."""

    def pick(_module: nn.Module, _inputs: Any, returned: Any) -> Any:
        if isinstance(returned, torch.Tensor):
            return returned
        leaves = find_leaves(returned)
        return tuple(leaves[key] for key in keys)

    hook = module.register_forward_hook(pick)
    try:
        yield
    finally:
        hook.remove()


def keep_scores(model: ir.Model, keys: Sequence[str], name: str, options: SourceOptions) -> tuple[str, str | None]:
    """Make the class scores the graph's only output, in place; return their key and a notice for the user.

    Args:
        model: a graph that returns the tensors of `keys`.
        keys: of the entries that can be the class scores.
        name: the module's name in messages.
        options: the user's options, for the number of labels.

    Raises:
        ExportError: several entries can be the scores, and no rule decides.
    """
    outputs = []
    for key, value in zip(keys, model.graph.outputs, strict=True):
        dims = tuple(dim if isinstance(dim, int) else None for dim in value.shape or ())
        outputs.append(Output(key, "float32", (None, *dims[1:]), value))
    chosen, notice = choose_scores(
        outputs, name, None, options.classes, prefer_logits=True, is_classifier=options.task.task == "classify"
    )
    assert chosen.value is not None
    producer = chosen.value.producer()
    if producer is not None and producer.op_type == "TopK":
        raise ExportError(
            f"{name} returns its largest scores, sorted ({chosen.name}); expected the scores of all classes, in order"
        )
    model.graph.outputs[:] = [chosen.value]
    return chosen.name, notice
