"""PyTorch modules, through torch's dynamo exporter."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ortcam.convention import Floats
from ortcam.errors import ExportError, one_line
from ortcam.exporters.pytorch_sources import LoadedModule
from ortcam.exporters.quiet import quiet
from ortcam.exporters.sources import DEFAULT_SIDE, Converted, SourceOptions, choose_preprocessing
from ortcam.exporters.verify import LayerMatch, Reference
from ortcam.graph.layers import SCOPES


def convert_module(loaded: LoadedModule, options: SourceOptions) -> Converted:
    """Turn a module in eval mode into an ONNX graph with a symbolic batch.

    Raises:
        ExportError: the module is in training mode, does not run, or cannot be exported.
    """
    module = loaded.module
    _refuse_training(module, loaded.name)
    parameter = next(module.parameters(), torch.zeros(1))
    if parameter.dtype != torch.float32:
        raise ExportError(f"{loaded.name} has {parameter.dtype} weights; expected float32: call module.float() first")
    for channels in (3, 1):  # a colour photo if the module takes one, else a grey one
        preprocessing = choose_preprocessing(options.preprocess, loaded.preprocessing, options.input_size, channels)
        if preprocessing is not None:
            channels, size = preprocessing.channel_count, (preprocessing.height, preprocessing.width)
        else:
            size = options.input_size or (DEFAULT_SIDE, DEFAULT_SIDE)
        example = torch.zeros((2, channels, *size), device=parameter.device)
        result, failure = _try(module, example)
        if failure is None:
            break
    if failure is not None:
        shape = [2, "3 or 1" if preprocessing is None else channels, *size]
        raise ExportError(f"{loaded.name} does not run on an input {shape}: {one_line(failure)}") from failure
    _refuse_odd_results(result, example, loaded.name)
    model = _export(module, example, options.opset, loaded.name)
    versions = {"torch": torch.__version__, **loaded.source.get("versions", {})}
    return Converted(
        name=loaded.name,
        model=model,
        input_shape=(channels, *size),
        reference=lambda layer: _reference(module, layer),
        source={**loaded.source, "versions": versions},
        preprocessing=preprocessing,
        labels=loaded.labels,
    )


def _refuse_training(module: nn.Module, name: str) -> None:
    training = [path or "the model itself" for path, part in module.named_modules() if part.training]
    if training:
        raise ExportError(f"{name} is in training mode ({training[0]}); call model.eval() before the export")


def _try(module: nn.Module, example: torch.Tensor) -> tuple[Any, Exception | None]:
    """Run the module; return what it returns, or the error that it raises."""
    try:
        with torch.inference_mode(), contextlib.redirect_stdout(io.StringIO()):
            return module(example), None
    except Exception as error:  # noqa: BLE001 (whatever the user's own code raises, for the caller to report)
        return None, error


def _refuse_odd_results(result: Any, example: torch.Tensor, name: str) -> None:
    if not isinstance(result, torch.Tensor) or result.ndim != 2 or len(result) != len(example):
        what = list(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
        raise ExportError(
            f"{name} returns {what} for an input {list(example.shape)}; expected class scores [batch,classes]: "
            "ortcam explains image classifiers"
        )


def _export(module: nn.Module, example: torch.Tensor, opset: int, name: str) -> ir.Model:
    try:
        with quiet():
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(f"{name} cannot be exported: {explain_export_error(error)}") from error
    if program is None:
        raise ExportError(f"{name} cannot be exported: torch returned nothing")
    model = program.model
    batch = model.graph.inputs[0].shape
    if batch is None or isinstance(batch[0], int):
        raise ExportError(
            f"{name} cannot be exported: its batch size is baked in as {batch}; use x.shape[0] or -1 in its code"
        )
    keep_module_names(model)
    return model


def keep_module_names(model: ir.Model) -> None:
    """Drop what torch notes on nodes, such as stack traces of this machine, but for the modules' names; in place."""
    for node in model.graph.all_nodes():
        scopes = node.metadata_props.get(SCOPES)
        node.metadata_props.clear()
        if scopes is not None:
            node.metadata_props[SCOPES] = scopes


def explain_export_error(error: BaseException) -> str:
    """Say in a line why torch could not export; the innermost cause knows it best."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    text = str(cause)
    if "Constraints violated" in text or "specialized" in text:
        return "its code fixes the batch size; use x.shape[0] or -1 in it instead of numbers"
    if "data-dependent" in text.lower() or "GuardOnDataDependent" in type(cause).__name__:
        return f"its control flow depends on the values of tensors; {one_line(cause, 160)}"
    return one_line(cause)


def _reference(module: nn.Module, layer: str | None) -> Reference:
    """Run the module itself, eagerly, and show the target layer's tensor in that run.

    A module that the layer is gets hooked, and its last output counts. A tensor that no module returns is looked for
    among the results of every operator.
    """
    hooked = None if layer is None else dict(module.named_modules()).get(layer)
    device = next(module.parameters(), torch.zeros(1)).device

    def run(inputs: Floats, match: LayerMatch) -> Any:
        returned: list[Any] = []
        with contextlib.ExitStack() as stack:
            if hooked is not None:
                hook = hooked.register_forward_hook(lambda _module, _inputs, result: returned.append(_as_numpy(result)))
                stack.callback(hook.remove)
            stack.enter_context(torch.no_grad())
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            watched = LayerMatch(match.activations, match.tokens)
            stack.enter_context(_OperatorResults(watched))
            scores = module(torch.from_numpy(inputs).to(device))
        if returned and isinstance(returned[-1], np.ndarray):
            match.see(returned[-1], layer)
        if match.distance is None:
            match.distance = watched.distance
        return scores.cpu().numpy()

    return run


def _as_numpy(result: Any) -> Any:
    """Copy what a module returns, before an operator that works in place changes it."""
    return result.detach().cpu().numpy().copy() if isinstance(result, torch.Tensor) else None


class _OperatorResults(TorchDispatchMode):
    """Shows the result of every operator to a match."""

    def __init__(self, match: LayerMatch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._match = match

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32 and tensor.ndim in (3, 4):
                self._match.see(tensor.detach().cpu().numpy())
        return result
