"""Convert PyTorch modules with torch's dynamo exporter."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ortcam.core.convention import Floats
from ortcam.errors import ExportError, one_line
from ortcam.exporters.batches import ROWS, Trial, free_batch, set_batch
from ortcam.exporters.interface import explain_inputs, required_arguments
from ortcam.exporters.outputs import flatten
from ortcam.exporters.pytorch_outputs import describe, find_tensors, keep_scores, may_be_scores, narrow, returning
from ortcam.exporters.pytorch_sources import LoadedModule
from ortcam.exporters.quiet import quiet
from ortcam.exporters.sources import DEFAULT_SIDE, Converted, SourceOptions, choose_preprocessing
from ortcam.exporters.verify import BATCHES, TOLERANCE, LayerMatch, Reference
from ortcam.graph.layers import SCOPES


def convert_module(loaded: LoadedModule, options: SourceOptions) -> Converted:
    """Turn a module in eval mode into an ONNX graph with a symbolic batch.

    A module whose code fixes the batch is exported for one picture. The batch of that graph is made free if its scores
    stay the same.

    Raises:
        ExportError: the module is in training mode, does not run, returns no class scores, or cannot be exported.
        OptionError: its result has no entry with the user's key.
    """
    if options.task.is_stated:
        from ortcam.exporters.tasks.module import convert_task_module

        return convert_task_module(loaded, options)
    module, name = loaded.module, loaded.name
    refuse_training(module, name)
    parameter = next(module.parameters(), torch.zeros(1))
    for channels in (3, 1):  # a colour photo first, then a grey one
        preprocessing = choose_preprocessing(options.preprocess, loaded.preprocessing, options.input_size, channels)
        if preprocessing is not None:
            channels, size = preprocessing.channel_count, (preprocessing.height, preprocessing.width)
        else:
            size = options.input_size or (DEFAULT_SIDE, DEFAULT_SIDE)
        example = torch.zeros((2, channels, *size), device=parameter.device)
        returned, failure = try_module(module, example)
        if failure is not None or not any(map(may_be_scores, describe(returned, 2))):
            alone, worse = try_module(module, example[:1])  # its code may fix a batch of 1
            if worse is None and (failure is not None or any(map(may_be_scores, describe(alone, 1)))):
                example, returned, failure = example[:1], alone, None
        if failure is None:
            break
    if failure is not None:
        channels_tried = "3 or 1" if preprocessing is None else channels
        raise ExportError(explain_failure(module, name, [2, channels_tried, *size], failure)) from failure
    keys = narrow(returned, len(example), name, options)
    model, is_free = export_module(module, example, keys, options.opset, name)
    key, notice = keep_scores(model, keys, name, options)
    notices = [notice] if notice else []
    reference = _Reference(module, name, key, one_by_one=len(example) == 1)
    batches: tuple[int, ...] = BATCHES
    if not is_free and _free_batch(model, reference, (channels, *size)):
        notices.append(f"{name} fixes a batch of 1 in its code; the batch was made free in the graph")
    elif not is_free:
        model, batches = _convert(module, example[:1], keys, options.opset, name), (1,)
        keep_scores(model, keys, name, options)
        notices.append(f"{name} fixes a batch of 1 in its code: masked images are run one at a time")
    keep_module_names(model)
    versions = {"torch": torch.__version__, **loaded.source.get("versions", {})}
    return Converted(
        name=name,
        model=model,
        input_shape=(channels, *size),
        reference=reference.named,
        source={**loaded.source, "versions": versions},
        preprocessing=preprocessing,
        labels=loaded.labels,
        batches=batches,
        notices=(*loaded.notices, *notices),
    )


def refuse_training(module: nn.Module, name: str) -> None:
    """Refuse a module in training mode, or of half precision."""
    training = [path or "the model itself" for path, part in module.named_modules() if part.training]
    if training:
        raise ExportError(f"{name} is in training mode ({training[0]}); call model.eval() before the export")
    dtype = next(module.parameters(), torch.zeros(1)).dtype
    if dtype != torch.float32:
        raise ExportError(f"{name} has {dtype} weights; expected float32: call module.float() first")


def try_module(module: nn.Module, example: torch.Tensor) -> tuple[Any, Exception | None]:
    """Run the module; return its result, or the error that it raises."""
    try:
        with torch.inference_mode(), contextlib.redirect_stdout(io.StringIO()):
            return module(example), None
    except Exception as error:  # noqa: BLE001 (whatever the user's own code raises, for the caller to report)
        return None, error


def explain_failure(module: nn.Module, name: str, shape: list[Any], failure: Exception) -> str:
    """Say why a module does not run on an image, for example because it needs other inputs."""
    if isinstance(failure, TypeError) and len(needed := required_arguments(module.forward)) > 1:
        return explain_inputs(name, needed)
    return f"{name} does not run on an input {shape}: {one_line(failure)}"


def export_module(
    module: nn.Module, example: torch.Tensor, keys: list[str], opset: int, name: str
) -> tuple[ir.Model, bool]:
    """Return the graph, and whether its batch is free; export a module that fixes its batch for one picture."""
    if len(example) > 1:
        with contextlib.suppress(_FixedBatchError):
            model = _convert(module, example, keys, opset, name, ({0: torch.export.Dim("batch", min=1)},))
            batch = model.graph.inputs[0].shape
            if batch is not None and not isinstance(batch[0], int):
                return model, True
    return _convert(module, example[:1], keys, opset, name), False


class _FixedBatchError(ExportError):
    """The code of a module fixes the batch size."""


def _convert(
    module: nn.Module, example: torch.Tensor, keys: list[str], opset: int, name: str, dynamic_shapes: Any = None
) -> ir.Model:
    """Return the graph of a module; it returns the tensors of `keys`."""
    options: dict[str, Any] = {"opset_version": opset, "dynamic_shapes": dynamic_shapes, "verbose": False}
    try:
        with quiet(), returning(module, keys):
            program = torch.onnx.export(module, (example,), dynamo=True, **options)
    except torch.onnx.OnnxExporterError as error:
        reason = explain_export_error(error)
        kind = _FixedBatchError if reason.startswith("its code fixes the batch") else ExportError
        raise kind(f"{name} cannot be exported: {reason}") from error
    if program is None:
        raise ExportError(f"{name} cannot be exported: torch returned nothing")
    return program.model


def _free_batch(model: ir.Model, reference: _Reference, shape: tuple[int, ...]) -> bool:
    """Free the batch of a graph that was exported for one picture, in place; return whether this works."""
    pictures = np.random.default_rng(1).standard_normal((ROWS, *shape)).astype(np.float32)
    set_batch(model, model.graph.inputs[0], shape, "batch")
    return free_batch(model, Trial(pictures, lambda: reference.scores(pictures), np.asarray, TOLERANCE, Path()))


def keep_module_names(model: ir.Model) -> None:
    """Drop torch's notes on nodes, such as stack traces, but keep the modules' names; in place."""
    for node in model.graph.all_nodes():
        scopes = node.metadata_props.get(SCOPES)
        node.metadata_props.clear()
        if scopes is not None:
            node.metadata_props[SCOPES] = scopes


def explain_export_error(error: BaseException) -> str:
    """Say in a line why torch could not export, from the innermost cause of the error."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    text = str(cause)
    if "Constraints violated" in text or "specialized" in text:
        return "its code fixes the batch size; use x.shape[0] or -1 in it instead of numbers"
    if "data-dependent" in text.lower() or "GuardOnDataDependent" in type(cause).__name__:
        return f"its control flow depends on the values of tensors; {one_line(cause, 160)}"
    return one_line(cause)


class _Reference:
    """Runs the module itself, eagerly, and shows the tensor of the target layer."""

    def __init__(self, module: nn.Module, name: str, key: str, one_by_one: bool) -> None:
        """Take the class scores from the entry `key` of the module's result; `one_by_one` runs each picture alone."""
        self._module, self._name, self._key, self._one_by_one = module, name, key, one_by_one
        self._device = next(module.parameters(), torch.zeros(1)).device

    def scores(self, inputs: Floats) -> Any:
        """Return the scores [B,N] of inputs [B,C,H,W]."""
        step = 1 if self._one_by_one else len(inputs)
        rows = [inputs[row : row + step] for row in range(0, len(inputs), step)]
        with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
            return np.concatenate([self._run(batch) for batch in rows])

    def _run(self, inputs: Floats) -> Any:
        try:
            returned = self._module(torch.from_numpy(inputs).to(self._device))
        except Exception as error:  # whatever the user's own code raises
            hint = "; expected a model that scores each picture by itself" if len(inputs) == 1 else ""
            shape = list(inputs.shape)
            raise ExportError(f"{self._name} does not run on an input {shape}: {one_line(error)}{hint}") from error
        return flatten(find_tensors(returned)[self._key].cpu().numpy(), len(inputs))

    def named(self, layer: str | None) -> Reference:
        """Return a function that runs the module and shows the layer.

        If the layer is a module, a hook reads its last output. If no module returns the tensor, the function looks for
        it among the results of all operators.
        """
        hooked = None if layer is None else dict(self._module.named_modules()).get(layer)

        def run(inputs: Floats, match: LayerMatch) -> Any:
            returned: list[Any] = []
            with contextlib.ExitStack() as stack:
                if hooked is not None:
                    seen = hooked.register_forward_hook(
                        lambda _module, _inputs, result: returned.append(_as_numpy(result))
                    )
                    stack.callback(seen.remove)
                watched = LayerMatch(match.activations, match.tokens)
                stack.enter_context(_OperatorResults(watched))
                scores = self.scores(inputs)
            if returned and isinstance(returned[-1], np.ndarray):
                match.see(returned[-1], layer)
            if match.distance is None:
                match.distance = watched.distance
            return scores

        return run


def _as_numpy(result: Any) -> Any:
    """Copy the result of a module, before an in-place operator changes it."""
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
