"""Convert PyTorch modules that are no classifiers: all their tensors become outputs, and a task reads them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import nn

from ortcam.errors import ExportError, one_line
from ortcam.exporters.adopt import ForeignGraph
from ortcam.exporters.outputs import Output, list_outputs
from ortcam.exporters.pytorch import (
    explain_failure,
    export_module,
    keep_module_names,
    refuse_training,
    try_module,
)
from ortcam.exporters.pytorch_outputs import describe, find_tensors
from ortcam.exporters.pytorch_sources import LoadedModule
from ortcam.exporters.sources import DEFAULT_SIDE, SourceOptions, choose_preprocessing
from ortcam.exporters.tasks.adopt import ConvertedTask, adopt_task


def convert_task_module(loaded: LoadedModule, options: SourceOptions) -> ConvertedTask:
    """Turn a module in eval mode into an ONNX graph with the outputs of a task.

    Raises:
        ExportError: the module does not run or cannot be exported, or it returns no tensors of the task.
        OptionError: an option does not fit the module.
    """
    module, name = loaded.module, loaded.name
    refuse_training(module, name)
    preprocessing = choose_preprocessing(options.preprocess, loaded.preprocessing, options.input_size, 3)
    size, channels = options.input_size or (DEFAULT_SIDE, DEFAULT_SIDE), 3
    if preprocessing is not None:
        size, channels = (preprocessing.height, preprocessing.width), preprocessing.channel_count
    device = next(module.parameters(), torch.zeros(1)).device
    keys: list[str] = []
    for batch in (2, 1):  # its code may fix a batch of 1
        example = torch.zeros((batch, channels, *size), device=device)
        returned, failure = try_module(module, example)
        if failure is None:
            outputs = describe(returned, batch)
            keys = [output.name for output in outputs if _has_batch(output)]
            if keys:
                break
    if failure is not None:
        raise ExportError(explain_failure(module, name, list(example.shape), failure)) from failure
    if not keys:
        raise ExportError(
            f"{name} returns {list_outputs(outputs)}; expected tensors with the batch in front: for a detector that "
            "suppresses its detections, export the network before that, as a module that returns boxes and scores"
        )
    model, is_free = export_module(module, example, keys, options.opset, name)
    keep_module_names(model)
    for key, value in zip(keys, model.graph.outputs, strict=True):
        value.name = key
    runner = _Runner(module, name, keys)
    foreign = ForeignGraph(
        name=name,
        proto=_to_proto(model),
        source={**loaded.source, "versions": {"torch": torch.__version__, **loaded.source.get("versions", {})}},
        run=runner,
        runs_batch=None if is_free else 1,
        preprocessing=preprocessing,
        labels=loaded.labels,
    )
    converted = adopt_task(foreign, options)
    assert converted is not None, "the task is stated"
    return replace(converted, watch=runner.watch)


def _has_batch(output: Output) -> bool:
    return output.dtype.startswith("float") and output.shape[:1] == (None,) and len(output.shape) > 1


def _to_proto(model: ir.Model) -> onnx.ModelProto:
    ir.external_data.load_to_model(model)
    return ir.to_proto(model)


class _Runner:
    """Runs the module itself, eagerly, and shows the layers that are watched."""

    def __init__(self, module: nn.Module, name: str, keys: list[str]) -> None:
        self._module, self._name, self._keys = module, name, keys
        self._device = next(module.parameters(), torch.zeros(1)).device
        self._watched: list[str] = []

    def watch(self, names: Sequence[str]) -> None:
        """Show the last outputs of these modules from now on."""
        known = dict(self._module.named_modules())
        self._watched = [name for name in names if name in known]

    def __call__(self, inputs: NDArray[Any], place: int) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
        shown: dict[str, NDArray[Any]] = {}
        known = dict(self._module.named_modules())
        try:
            with contextlib.ExitStack() as stack:
                for name in self._watched:
                    hook = known[name].register_forward_hook(partial(_show, shown, name))
                    stack.callback(hook.remove)
                stack.enter_context(torch.no_grad())
                stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
                returned = self._module(torch.from_numpy(inputs).to(self._device))
        except Exception as error:
            raise ExportError(
                f"{self._name} does not run on an input {list(inputs.shape)}: {one_line(error)}"
            ) from error
        return find_tensors(returned)[self._keys[place]].cpu().numpy(), shown


def _show(shown: dict[str, NDArray[Any]], name: str, _module: nn.Module, _inputs: Any, result: Any) -> None:
    """Copy the result of a module, before an in-place operator changes it."""
    if isinstance(result, torch.Tensor):
        shown[name] = result.cpu().numpy().copy()
