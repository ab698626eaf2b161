"""Convert TensorFlow SavedModels: the folders that model.export() and tf.saved_model.save() write."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ortcam.errors import ExportError, OptionError
from ortcam.exporters.adopt import ForeignGraph, adopt
from ortcam.exporters.interface import explain_inputs
from ortcam.exporters.sources import Converted, SourceOptions
from ortcam.exporters.tensorflow import VERSIONS, quiet, reason, show_maps, sized, tf, to_numpy, to_onnx

# TensorFlow operations that reach files, other programs and Python.
UNSAFE = ("WriteFile", "ReadFile", "PyFunc", "PyFuncStateless", "EagerPyFunc")
# The names of signatures to look for, the most usual first.
SIGNATURES = ("serving_default", "serve")


def convert_saved_model(path: Path, options: SourceOptions) -> Converted:
    """Turn a SavedModel into an ONNX graph.

    Args:
        path: its folder, or the saved_model.pb in the folder.
        options: the user's options.

    Raises:
        ExportError: it is not a SavedModel, lacks a signature from one image to class scores, or cannot be converted.
        OptionError: weights were given; the folder has its own.
    """
    if options.weights is not None:
        raise OptionError(f"got weights, but {path} has its own; leave them out: weights are for models built by code")
    name = str(path)
    loaded = _load(path, options.allow_unsafe)
    folder = path if path.is_dir() else path.parent
    signature = _choose_signature(loaded, name)
    inputs = signature.structured_input_signature[1]
    if len(inputs) != 1:
        shown = {key: f"{entry.dtype.name} {entry.shape}" for key, entry in sorted(inputs.items())}
        raise ExportError(explain_inputs(name, shown))
    ((key, entry),) = inputs.items()
    shape = None if entry.shape.rank is None else entry.shape.as_list()
    image = sized(shape, entry.dtype, options.input_size, name)
    traced = to_onnx(lambda values: signature(**{key: values}), image, name)
    names = [output.name for output in traced.proto.graph.output]
    run_maps = show_maps(traced, {})

    def run(values: NDArray[Any], place: int) -> tuple[NDArray[Any], Mapping[str, NDArray[Any]]]:
        with quiet():
            assert loaded is not None  # its variables live as long as it does
            result = to_numpy(signature(**{key: tf.constant(values)})[names[place]])
        return result, run_maps(values)

    foreign = ForeignGraph(
        name=name,
        proto=traced.proto,
        source={"kind": "saved_model", "name": folder.resolve().name, "versions": VERSIONS},
        run=run,
        runs_batch=image.shape[0],
    )
    return adopt(foreign, options)


def _load(path: Path, allow_unsafe: bool) -> Any:
    folder = path if path.is_dir() else path.parent
    if not path.exists():
        raise ExportError(f"cannot read {path}: no such file")
    if not any((folder / f"saved_model.{suffix}").is_file() for suffix in ("pb", "pbtxt")):
        raise ExportError(f"{folder} has no saved_model.pb; expected the folder of a SavedModel, or a file of a model")
    if not allow_unsafe:
        _refuse_code(folder)
    try:
        with quiet():
            return tf.saved_model.load(folder)
    except Exception as error:  # TensorFlow raises all kinds
        raise ExportError(f"{folder} cannot be loaded by TensorFlow {tf.__version__}: {reason(error)}") from error


def _refuse_code(folder: Path) -> None:
    """Refuse a graph with operations that read or write files or call Python: it could run its author's code."""
    content = b"".join(file.read_bytes() for file in folder.glob("saved_model.pb*"))
    found = [name for name in UNSAFE if re.search(rb"\b" + name.encode() + rb"\b", content)]
    if found:
        raise ExportError(
            f"{folder} has operations that read or write files or run Python ({', '.join(found)}) and is not loaded; "
            "use --allow-unsafe if you trust it"
        )


def _choose_signature(loaded: Any, name: str) -> Any:
    """Return the function that serves the model; `SIGNATURES` first, else the only one."""
    signatures = dict(getattr(loaded, "signatures", {}))
    usual = [key for key in SIGNATURES if key in signatures]
    if usual:
        return signatures[usual[0]]
    if len(signatures) == 1:
        return next(iter(signatures.values()))
    if signatures:
        raise ExportError(f"{name} has the signatures {sorted(signatures)}; expected one named {SIGNATURES[0]}")
    raise ExportError(
        f"{name} has no signature; save it with model.export(FOLDER), or tf.saved_model.save(..., signatures=...)"
    )
