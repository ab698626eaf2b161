"""What PyTorch modules return: dicts, tuples, dataclasses and the like, with the class scores somewhere in them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from ortcam.errors import ExportError
from ortcam.exporters.outputs import ONLY_CLASSIFIERS, Output, choose_scores, list_outputs
from ortcam.exporters.sources import SourceOptions

_DEEPEST = 4  # how many containers inside one another are looked into


def find_leaves(returned: Any, key: str = "", depth: int = 0) -> dict[str, Any]:
    """Return what a module's result holds, by key (nested: ``outer.inner``); a tensor alone has the key ``output``.

    Looked into are mappings, sequences, named tuples, dataclasses and plain objects with attributes.
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
    """Return what a module returned for a batch, as outputs; scores have a dimension None for the batch."""
    outputs = []
    for key, leaf in find_leaves(returned).items():
        if not isinstance(leaf, torch.Tensor):
            outputs.append(Output(key, type(leaf).__name__, ()))
            continue
        shape, dtype = tuple(leaf.shape), str(leaf.dtype).removeprefix("torch.")
        outputs.append(Output(key, dtype, (None, *shape[1:]) if shape[:1] == (batch,) else shape))
    return outputs


def may_be_scores(output: Output) -> bool:
    """Whether an entry of what a module returns can be scores: floats, with the batch in front."""
    return output.dtype.startswith("float") and output.shape[:1] == (None,) and output.may_be_scores


def narrow(returned: Any, batch: int, name: str, options: SourceOptions) -> list[str]:
    """Return the keys of the entries that can be the class scores: one, where the user says which.

    Raises:
        OptionError: no entry has the key or the index that the user wants.
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
        raise ExportError(f"{name} returns {what}; expected class scores [batch,classes]: {ONLY_CLASSIFIERS}")
    return [output.name for output in fitting]


@contextlib.contextmanager
def returning(module: nn.Module, keys: Sequence[str]) -> Iterator[None]:
    """Let a module return the tensors of these keys alone; a hook leaves its parts, and their names, as they are."""

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
    """Make the class scores the graph's only output, in place; return their key and what the user should know.

    Args:
        model: a graph that returns the tensors of `keys`.
        keys: of the entries that can be the class scores.
        name: what messages call the module.
        options: how many labels there are.

    Raises:
        ExportError: several can be, and nothing decides.
    """
    outputs = []
    for key, value in zip(keys, model.graph.outputs, strict=True):
        dims = tuple(dim if isinstance(dim, int) else None for dim in value.shape or ())
        outputs.append(Output(key, "float32", (None, *dims[1:]), value))
    chosen, notice = choose_scores(outputs, name, None, options.classes, prefer_logits=True)
    assert chosen.value is not None
    producer = chosen.value.producer()
    if producer is not None and producer.op_type == "TopK":
        raise ExportError(
            f"{name} returns its largest scores, sorted ({chosen.name}); expected the scores of all classes, in order"
        )
    model.graph.outputs[:] = [chosen.value]
    return chosen.name, notice
