"""Convert Flax NNX modules and functions of JAX arrays with jax2onnx."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax2onnx
import numpy as np
import onnx
import onnx_ir as ir
from flax import linen, nnx
from flax.errors import TraceContextError
from jax.core import eval_jaxpr
from jax.errors import ConcretizationTypeError, TracerArrayConversionError, TracerIntegerConversionError
from jax.export import symbolic_shape
from jax.extend.core import ClosedJaxpr, DropVar, jaxpr_as_fun
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ortcam.errors import ExportError, one_line
from ortcam.exporters.adopt import ForeignGraph, Run, adopt
from ortcam.exporters.interface import explain_inputs, required_arguments
from ortcam.exporters.outputs import EXPECTED_SCORES, Output, list_outputs
from ortcam.exporters.quiet import quiet
from ortcam.exporters.sources import DEFAULT_SIDE, Converted, SourceOptions, choose_preprocessing
from ortcam.exporters.verify import TOLERANCE, relative_error
from ortcam.runtime.session import CPU, create_session

_VALUE_ERRORS = (ConcretizationTypeError, TracerArrayConversionError, TracerIntegerConversionError)
_BATCH = 2  # while looking for the input's shape; a batch of 1 would broadcast

Function = Callable[[Any], Any]


def convert_function(model: Any, name: str, options: SourceOptions) -> Converted:
    """Turn a function of one JAX array [B,H,W,C] or [B,C,H,W] that returns scores [B,N] into an ONNX graph.

    Args:
        model: a Flax NNX module in eval mode, a bound Flax linen module, or another such function.
        name: its name in messages.
        options: the layout, size and preprocessing of the input; the function tries likely values for the missing ones.

    Raises:
        ExportError: the model is in training mode, lacks its parameters, runs on no likely input, does not return
            scores, or uses operations that jax2onnx cannot convert.
    """
    if isinstance(model, linen.Module) and model.scope is None:
        raise ExportError(
            f"{name} is a Flax linen module without its parameters; give a function instead: "
            "lambda x: module.apply(variables, x)"
        )
    if isinstance(model, nnx.Module):
        _refuse_training(model, name)
    shape, keys = _find_input_shape(model, name, options)
    proto, run = _convert(model, shape, options.opset, name), _runner(model)
    if len(keys) > 1:
        _name_outputs(proto, keys)
    packages = {package: metadata.version(package) for package in ("jax", "flax", "jax2onnx")}
    return adopt(
        ForeignGraph(
            name=name,
            proto=proto,
            source={"kind": "jax", "name": name, "versions": packages},
            run=run,
            layers=_find_tensors(proto, run, shape, name) if isinstance(model, nnx.Module) else {},
        ),
        options,
    )


def _refuse_training(model: nnx.Module, name: str) -> None:
    for path, module in nnx.iter_graph(model):
        if isinstance(module, nnx.Module) and (
            getattr(module, "use_running_average", None) is False or getattr(module, "deterministic", None) is False
        ):
            part = ".".join(map(str, path)) or "the model itself"
            raise ExportError(f"{name} is in training mode ({part}); call model.eval() before the export")


def _find_input_shape(function: Function, name: str, options: SourceOptions) -> tuple[tuple[int, int, int], list[str]]:
    """Return the first likely input shape, without the batch, on which the function runs, and the keys of its results.

    JAX only infers shapes here; it computes nothing.
    """
    tried: list[tuple[int, int, int]] = []
    for channels in (3, 1):  # a colour photo first, then a grey one
        preprocessing = choose_preprocessing(options.preprocess, None, options.input_size, channels)
        if preprocessing is not None:
            channels, size = preprocessing.channel_count, (preprocessing.height, preprocessing.width)
        else:
            size = options.input_size or (DEFAULT_SIDE, DEFAULT_SIDE)
        for layout in [options.input_layout] if options.input_layout else ["NHWC", "NCHW"]:
            shape = (*size, channels) if layout == "NHWC" else (channels, *size)
            result, failure = _infer(function, shape)
            if failure is None:
                return shape, _read_keys(result, shape, name, options.task.is_stated)
            if isinstance(failure, TraceContextError):
                raise ExportError(
                    f"{name} changes its own state when it runs, as modules do in training mode; call model.eval() "
                    f"before the export ({_first_sentence(failure)})"
                ) from failure
            if isinstance(failure, _VALUE_ERRORS):
                raise ExportError(_explain_value_error(name, failure)) from failure
            if isinstance(failure, TypeError) and len(needed := required_arguments(function)) > 1:
                raise ExportError(explain_inputs(name, needed)) from failure
            if not tried:
                first = failure
            tried.append(shape)
    shapes = " or ".join(str([_BATCH, *shape]) for shape in dict.fromkeys(tried))
    raise ExportError(
        f"{name} does not run on an input {shapes} (for another size: --input-size): {_first_sentence(first)}"
    ) from first


def _infer(function: Function, shape: tuple[int, int, int]) -> tuple[Any, Exception | None]:
    """Return the shapes of the function's results, or the error that it raises."""
    try:
        with quiet():
            return jax.eval_shape(lambda x: function(x), jax.ShapeDtypeStruct((_BATCH, *shape), jnp.float32)), None
    except Exception as error:  # noqa: BLE001 (whatever the user's own code raises, for the caller to report)
        return None, error


def _read_keys(result: Any, shape: tuple[int, int, int], name: str, any_task: bool) -> list[str]:
    """Return the keys of a function's resulting arrays (nested: ``outer.inner``); refuse results without scores.

    Of another task than classification, any result is returned.
    """
    outputs = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(result):
        key = ".".join(jax.tree_util.keystr((part,), simple=True) for part in path) or "output"
        dims = (None, *leaf.shape[1:]) if leaf.shape[:1] == (_BATCH,) else leaf.shape
        outputs.append(Output(key, str(leaf.dtype), dims))
    if not any_task and not any(output.may_be_scores and output.shape[:1] == (None,) for output in outputs):
        is_array = isinstance(result, jax.ShapeDtypeStruct)
        what = list(result.shape) if is_array else f"{type(result).__name__}: {list_outputs(outputs)}"
        raise ExportError(f"{name} returns {what} for an input {[_BATCH, *shape]}; {EXPECTED_SCORES}")
    return [output.name for output in outputs]


def _explain_value_error(name: str, error: Exception) -> str:
    if isinstance(error, TracerArrayConversionError):
        return f"{name} cannot be converted: it turns a JAX array into a NumPy array; use jax.numpy instead of numpy"
    return (
        f"{name} cannot be converted: its control flow depends on the values of arrays ({_first_sentence(error)}); "
        "use jax.numpy.where or jax.lax.cond"
    )


def _convert(function: Function, shape: tuple[int, int, int], opset: int, name: str) -> onnx.ModelProto:
    """Convert a function with a symbolic batch.

    jax2onnx converts Flax's layers directly, but not with all their arguments. If this fails, it converts the operators
    that JAX traced.
    """
    (batch,) = symbolic_shape("batch")
    image = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
    failures: list[Exception] = []
    try:
        with quiet():
            traced = jax.make_jaxpr(lambda x: function(x))(image)
        for candidate in (function, lambda x: tuple(jaxpr_as_fun(traced)(x))):
            try:
                with quiet():
                    return _with_flat_pools(jax2onnx.to_onnx(candidate, inputs=[image], opset=opset))
            except Exception as error:  # noqa: BLE001 (jax2onnx raises JAX's errors, its own and Python's)
                failures.append(error)
    except Exception as error:  # noqa: BLE001 (the user's code, which ran with a number for the batch)
        failures.append(error)
    raise ExportError(f"{name} cannot be converted: {_explain(failures)}") from failures[-1]


def _name_outputs(proto: onnx.ModelProto, keys: list[str]) -> None:
    """Name the graph's outputs by the keys of the function's results, in place."""
    graph = proto.graph
    names = {output.name: key for output, key in zip(graph.output, keys, strict=True)}
    taken = {name for node in graph.node for name in node.output} | {value.name for value in graph.input}
    if len(names) != len(keys) or not taken.isdisjoint(keys):
        return
    for node in graph.node:
        for values in (node.input, node.output):
            values[:] = [names.get(value, value) for value in values]
    for output in graph.output:
        output.name = names[output.name]


def _with_flat_pools(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Turn max pooling over all four dimensions, which ONNX Runtime lacks, into pooling over rows and columns.

    jax2onnx writes JAX's reduce_window_max as Unsqueeze, Unsqueeze, MaxPool, Squeeze.
    """
    model = ir.serde.deserialize_model(proto)
    for pool in [node for node in model.graph if node.op_type == "MaxPool"]:
        kernel = pool.attributes["kernel_shape"].as_ints()
        if len(kernel) == 4 and kernel[0] == 1 and 1 in (kernel[1], kernel[3]):
            _flatten_pool(model.graph, pool, channels=3 if kernel[3] == 1 else 1)
    RemoveUnusedNodesPass()(model)
    return ir.serde.serialize_model(model)


def _flatten_pool(graph: ir.Graph, pool: Any, channels: int) -> None:
    """Replace a max pooling and the nodes around it; its window is 1 along the axis `channels`."""
    image = pool.inputs[0].producer().inputs[0].producer().inputs[0]
    (use,) = pool.outputs[0].uses()
    result = use.node.outputs[0]
    places = [1, 2] if channels == 3 else [2, 3]
    attributes: dict[str, Any] = {}
    for name, attribute in pool.attributes.items():
        axes = [*places, *(axis + 4 for axis in places)] if name == "pads" else places
        listed = attribute.type == ir.AttributeType.INTS
        attributes[name] = [attribute.as_ints()[axis] for axis in axes] if listed else attribute.value
    tape = ir.tape.Tape()
    if channels == 3:
        image = tape.op("Transpose", [image], attributes={"perm": [0, 3, 1, 2]})
    pooled = tape.op("MaxPool", [image], attributes=attributes)
    if channels == 3:
        pooled = tape.op("Transpose", [pooled], attributes={"perm": [0, 2, 3, 1]})
    pooled.shape, pooled.type = result.shape, result.type
    graph.insert_before(pool, tape.nodes)
    ir.convenience.replace_all_uses_with(result, pooled)


def _explain(failures: list[Exception]) -> str:
    """Say why a function that runs could not be converted; `failures` are one of tracing, or two of jax2onnx."""
    if len(failures) == 1 or any(word in str(failures[-1]) for word in ("SymbolicScope", "_DimExpr", "symbolic")):
        return "its code needs the batch size as a number; use -1 or x.shape[0] in shapes, and no loops over the batch"
    return f"{_first_sentence(failures[-1])} (jax2onnx)"


def _runner(model: Any) -> Run:
    """Return a function that runs the model, in full float32 precision on any device, and shows its inner tensors."""

    def run(inputs: NDArray[Any], place: int) -> tuple[NDArray[Any], Mapping[str, NDArray[Any]]]:
        with jax.default_matmul_precision("highest"), quiet():
            traced, names = _trace(model, inputs.shape)
            count = len(traced.jaxpr.outvars) - len(names)
            jaxpr = traced.jaxpr
            inner = [variable for equation in jaxpr.eqns for variable in equation.outvars if _is_map(variable)]
            shown = jaxpr.replace(outvars=[*jaxpr.outvars, *inner], debug_info=None)
            arrays = list(map(_as_numpy, eval_jaxpr(shown, traced.consts, jnp.asarray(inputs))))
        names += [f":{number}" for number in range(len(inner))]  # of no module
        return arrays[place], dict(zip(names, arrays[count:], strict=True))

    return run


def _is_map(variable: Any) -> bool:
    """Return whether a variable of traced code is a feature map or a sequence of tokens."""
    aval = variable.aval
    return not isinstance(variable, DropVar) and aval.dtype == jnp.float32 and aval.ndim in (3, 4)


def _trace(model: Any, shape: tuple[int, ...]) -> tuple[ClosedJaxpr, list[str]]:
    """Trace a function that returns the results of the model and of its NNX modules; also return the modules' names."""
    names: list[str] = []

    def show(x: Any) -> tuple[Any, list[Any]]:
        with _recorded(model) as results:
            returned = model(x)
        names[:] = results
        return returned, list(results.values())

    image = jax.ShapeDtypeStruct(shape, jnp.float32)
    try:
        with jax.disable_jit():  # to see the operators of inner functions as well
            return jax.make_jaxpr(show)(image), names
    except Exception:  # noqa: BLE001 (code that runs only in JAX's own loops; convert_function has run it before)
        return jax.make_jaxpr(lambda x: model(x))(image), []


@contextlib.contextmanager
def _recorded(model: Any) -> Iterator[dict[str, Any]]:
    """Collect the results of the modules inside an NNX module by dotted name; the last call counts."""
    nodes = nnx.iter_graph(model) if isinstance(model, nnx.Module) else []
    parts = [(path, part) for path, part in nodes if path and isinstance(part, nnx.Module)]
    names = {id(part): ".".join(map(str, path)) for path, part in parts}
    classes = {base for _, part in parts for base in type(part).__mro__ if "__call__" in vars(base)}
    results: dict[str, Any] = {}

    def recording(call: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(self: Any, *args: Any, **options: Any) -> Any:
            result = call(self, *args, **options)
            if id(self) in names and isinstance(result, jax.Array):
                results[names[id(self)]] = result
            return result

        return recorded

    originals: dict[Any, Any] = {base: vars(base)["__call__"] for base in classes}
    try:
        for base, call in originals.items():
            base.__call__ = recording(call)
        yield results
    finally:
        for base, call in originals.items():
            base.__call__ = call


def _find_tensors(proto: onnx.ModelProto, run: Run, shape: tuple[int, int, int], name: str) -> dict[str, str]:
    """Return the tensor of the graph that equals each NNX module's result, by comparing values.

    jax2onnx keeps no names, and may have transposed a tensor to [batch,channels,h,w].
    """
    shown = onnx.ModelProto()
    shown.CopyFrom(proto)
    known = {value.name for value in proto.graph.output}
    inner = [tensor for node in proto.graph.node for tensor in node.output if tensor and tensor not in known]
    shown.graph.output.extend(onnx.ValueInfoProto(name=tensor) for tensor in inner)
    session = create_session(shown, CPU, name, Path())
    image = np.random.default_rng(0).standard_normal((1, *shape)).astype(np.float32)
    found = zip(inner, session.run(inner, {proto.graph.input[0].name: image}), strict=True)
    maps = [(tensor, array) for tensor, array in found if array.ndim in (3, 4) and array.dtype == np.float32]
    layers: dict[str, str] = {}
    for layer, result in run(image, 0)[1].items():
        if layer.startswith(":") or result.ndim not in (3, 4):
            continue
        orders = [result, result.transpose(0, 3, 1, 2)] if result.ndim == 4 else [result]
        distances = {
            tensor: relative_error(array, order)
            for order in reversed(orders)  # of equal tensors, the tensor in the module's own order
            for tensor, array in maps
            if array.shape == order.shape
        }
        nearest = min(reversed(distances), key=lambda tensor: distances[tensor], default=None)
        if nearest is not None and distances[nearest] < TOLERANCE:
            layers[layer] = nearest
    return layers


def _as_numpy(array: Any) -> NDArray[Any]:
    return np.asarray(array, dtype=np.float32)


def _first_sentence(error: Exception) -> str:
    """Return JAX's message without its long advice."""
    text = one_line(error, 10_000)
    for advice in (" The error occurred while tracing", " See https://", " This Tracer was created", " -----"):
        text = text.partition(advice)[0]
    return f"{type(error).__name__}: {text[:200].rstrip('. ')}"
