"""Convert programs that torch.export saved (.pt2), and say what to do with PyTorch's other files.

Loading an unknown .pt2 file can run code: `torch.export.load` unpickles sample inputs, constants and tensor subclasses
with ``weights_only=False`` if the safe way fails, evaluates expressions for shapes and guards as Python, and loads
compiled libraries. The file of an ordinary classifier needs none of this. Every part of a file is therefore compared
with the parts that an ordinary classifier needs, before torch loads the file; other parts are refused unless the user
allows them.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind, TensorArgument
from torch.export.passes import move_to_device_pass
from torch.export.pt2_archive import PT2ArchiveReader
from torch.utils import _pytree as pytree

from ortcam.errors import ExportError, one_line
from ortcam.exporters.adopt import ForeignGraph, Run, adopt
from ortcam.exporters.pytorch import explain_export_error, keep_module_names
from ortcam.exporters.pytorch_outputs import find_tensors
from ortcam.exporters.quiet import quiet
from ortcam.exporters.sources import Converted, SourceOptions
from ortcam.graph.layers import all_values

# The files of an archive, under its root folder: JSON, raw tensors, and tensors that torch.save wrote (.pt).
_JSON = re.compile(r"(models/model|data/(weights|constants)/model_\w+_config)\.json")
_INERT = re.compile(
    r"archive_(format|version)|byteorder|\.data/\w+|\.format_version|\.storage_alignment|extra/.*"
    r"|data/(weights/weight|constants/tensor)_\d+"
)
# Strings in the program's JSON, by key: operators, shapes as expressions of symbols, and names. Only calls of these
# names are allowed, because torch passes expressions to Python's eval.
_OPERATOR = re.compile(r"torch\.ops\.aten\.(?!__)\w+\.(?!__)\w+|_operator\.[a-z]+|torch\.sym_\w+|torch\._check\w*")
_EXPRESSION = re.compile(
    r"(?:\b(?:Symbol\('[a-z]+\d+'|(?:positive|nonnegative|integer)=True|[a-z]\d+|\d+|Integer|Add|Mul|Pow|Rational|not"
    r"|and|or|(?:Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv|Max|Min|Eq|Ne|Le|Lt|Ge|Gt|Equality|Unequality"
    r"|StrictGreaterThan|StrictLessThan|GreaterThan|LessThan)\b)"
    r"|torch\.sym_(?:max|min|not|ite)\b|L\['\w+'\](?:\.size\(\)\[\d+\])?|[-+*/%(),<>=! ])*"
)
_NAME = re.compile(r"[\w.:]*")
_TREES = {None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}


def convert_program(path: Path, options: SourceOptions) -> Converted:
    """Turn an exported program into an ONNX graph; its modules keep their names.

    Args:
        path: a ``.pt2`` file that torch.export.save wrote.
        options: `allow_unsafe` lets torch load a file that can run code.

    Raises:
        ExportError: it is not such a file, or has an incompatible version; it needs code or pickles to run; it was
            exported in training mode; or it cannot be converted.
    """
    _refuse_other_files(path)
    if not options.allow_unsafe:
        _refuse_code(path)
    program = _load(path)
    _refuse_training(program, path)
    proto = _convert(program, options.opset, path.name)
    return adopt(
        ForeignGraph(
            name=path.name,
            proto=proto,
            source={"kind": "pytorch program", "name": path.name, "versions": {"torch": torch.__version__}},
            run=_runner(program),
            runs_batch=_fixed_batch(proto),
        ),
        options,
    )


def refuse_torch_file(path: Path, options: SourceOptions) -> NoReturn:
    """Say what a .pt, .pth, .ts or .torchscript file is, and what to export instead, without unpickling it.

    Raises:
        ExportError: always.
    """
    names = _zip_names(path)
    inner = {name.partition("/")[2] for name in names}
    if "archive_format" in inner and any(name.startswith("models/") for name in inner):
        raise ExportError(f"{path} is a program that torch.export saved; rename it to {path.stem}.pt2")
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        raise ExportError(
            f"{path} is a TorchScript archive, which ortcam cannot convert (torch.jit is deprecated); export the "
            "original module with FILE.py:CALLABLE, or save it with torch.export to a .pt2 file"
        )
    if "data.pkl" in inner or _is_old_pickle(path):
        raise ExportError(
            f"{path} holds weights or a pickled module, not the network's code; give a function that builds the "
            f"network: FILE.py:CALLABLE --weights {path}"
        )
    raise ExportError(f"{path} is not a file that torch.save wrote; expected a FILE.py:CALLABLE, or a .pt2 file")


def _zip_names(path: Path) -> list[str]:
    if not path.is_file():
        raise ExportError(f"cannot read {path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return []


def _is_old_pickle(path: Path) -> bool:
    """Return whether a file begins like a pickle, the format of torch.save before 1.6."""
    with path.open("rb") as file:
        start = file.read(2)
    return len(start) == 2 and start[0] == 0x80 and 2 <= start[1] <= 5


def _refuse_other_files(path: Path) -> None:
    names = _zip_names(path)
    parts = {name.partition("/")[2] for name in names}
    if not (("archive_format" in parts and any(part.startswith("models/") for part in parts)) or "version" in names):
        what = "is not a program that torch.export.save wrote" if names else "is cut off, or not an archive"
        raise ExportError(f"cannot read {path}: it {what}; expected a .pt2 file of torch.export.save")


def _refuse_code(path: Path) -> None:
    """Refuse a program file whose loading could run code; read the file without loading it."""
    if "version" in _zip_names(path):
        found: str | None = "the pickles of torch before 2.8"
    else:
        try:
            found = next(_find_code(PT2ArchiveReader(str(path))), None)
        except Exception as error:  # a damaged file can raise anything
            raise ExportError(f"cannot read {path}: {_first_sentence(error)}") from error
    if found is not None:
        raise ExportError(f"{path} holds {found}: loading it could run code; if you trust the file, use --allow-unsafe")


def _find_code(reader: PT2ArchiveReader) -> Iterator[str]:
    """Yield the parts of a file that an ordinary classifier's file does not have."""
    for name in reader.get_file_names():
        if name.endswith(".pt"):
            record = reader.read_bytes(name)
            if record and not _holds_tensors_only(record):
                yield f"pickled objects in {name}"
        elif _JSON.fullmatch(name):
            yield from (f"{what} in {name}" for what in _find_odd_fields(json.loads(reader.read_bytes(name))))
        elif not _INERT.fullmatch(name):
            yield f"the unknown part {name}"


def _holds_tensors_only(record: bytes) -> bool:
    try:
        torch.load(io.BytesIO(record), map_location="cpu", weights_only=True)
    except Exception:  # noqa: BLE001 (what cannot be read safely, for whatever reason)
        return False
    return True


def _find_odd_fields(tree: Any, key: str = "") -> Iterator[str]:
    """Yield the fields of a program's or a payload's JSON that torch might run and that no classifier needs."""
    if isinstance(tree, list):
        for entry in tree:
            yield from _find_odd_fields(entry, key)
    elif isinstance(tree, dict):
        for name, entry in tree.items():
            if name == "metadata" and key in ("nodes", "inputs", "graph_module"):
                continue  # the origin of an operator: shown, never run
            if not _NAME.fullmatch(name):
                yield f"the name {name[:40]!r}"
            yield from _find_odd_fields(entry, name)
    elif key == "use_pickle" and tree:
        yield "pickled objects"
    elif isinstance(tree, str) and not _is_ordinary(tree, key):
        yield f"the {key} {tree[:60]!r}"


def _is_ordinary(text: str, key: str) -> bool:
    if key in ("in_spec", "out_spec"):
        return _has_plain_containers(json.loads(text)[1])
    if key == "target":
        return bool(_OPERATOR.fullmatch(text))
    if key in ("expr_str", "guards_code"):
        return bool(_EXPRESSION.fullmatch(text))
    if key == "path_name":
        return bool(re.fullmatch(r"(weight|tensor)_\d+", text))
    if key == "torch_version":
        return True
    return bool(_NAME.fullmatch(text))


def _has_plain_containers(tree: dict[str, Any]) -> bool:
    return tree["type"] in _TREES and all(_has_plain_containers(child) for child in tree["children_spec"])


def _load(path: Path) -> ExportedProgram:
    try:
        with quiet():
            program = torch.export.load(str(path))
            if any(tensor.device.type != "cpu" for tensor in program.state_dict.values()):
                program = move_to_device_pass(program, "cpu")
    except Exception as error:  # a damaged file, or one of another version, can raise anything
        raise ExportError(
            f"torch {torch.__version__} cannot load {path}: {_first_sentence(error)}; it may be damaged, or of "
            "another version of torch"
        ) from error
    return program


def _first_sentence(error: Exception) -> str:
    """Return torch's message without its advice and its C++ stack trace."""
    return one_line(error).partition(". ")[0].rstrip(".")


def _refuse_training(program: ExportedProgram, path: Path) -> None:
    """Refuse a program in which dropout or batch normalisation behave as in training."""
    for node in program.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None:
            continue
        position = {argument.name: place for place, argument in enumerate(schema.arguments)}
        for name in ("train", "training", "use_input_stats"):
            place = position.get(name, len(node.args))
            if node.kwargs.get(name) is True or (place < len(node.args) and node.args[place] is True):
                raise ExportError(
                    f"{path.name} was exported in training mode ({schema.name}); call model.eval() before torch.export"
                )


def _convert(program: ExportedProgram, opset: int, name: str) -> onnx.ModelProto:
    try:
        with quiet():
            converted = torch.onnx.export(program, dynamo=True, opset_version=opset, verbose=False)
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(f"{name} cannot be converted: {explain_export_error(error)}") from error
    if converted is None:
        raise ExportError(f"{name} cannot be converted: torch returned nothing")
    keep_module_names(converted.model)
    _name_outputs(converted.model, program)
    return ir.serde.serialize_model(converted.model)


def _name_outputs(model: ir.Model, program: ExportedProgram) -> None:
    """Name the graph's outputs by the keys of the program's results, in place."""
    spec = program.call_spec.out_spec
    if spec is None or len(model.graph.outputs) < 2:
        return
    results = [output.arg for output in program.graph_signature.output_specs if output.kind == OutputKind.USER_OUTPUT]
    leaves = [torch.zeros(0) if isinstance(result, TensorArgument) else None for result in results]
    keys = list(find_tensors(pytree.tree_unflatten(leaves, spec)))
    if len(keys) != len(model.graph.outputs):
        return
    for value in all_values(model.graph):
        if value.name in keys:
            value.name = f"{value.name}.value"
    for key, output in zip(keys, model.graph.outputs, strict=True):
        output.name = key


def _fixed_batch(proto: onnx.ModelProto) -> int | None:
    dimensions = proto.graph.input[0].type.tensor_type.shape.dim if proto.graph.input else []
    return dimensions[0].dim_value or None if dimensions else None


def _runner(program: ExportedProgram) -> Run:
    """Return a function that runs the program itself and shows its inner tensors."""
    module = program.module(check_guards=False)

    def run(inputs: NDArray[Any], place: int) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
        recorder = _Recorder(module)
        with torch.no_grad(), quiet():
            returned = find_tensors(recorder.run(torch.from_numpy(inputs)))
        results = list(returned.values())
        return _as_numpy(results[place]), recorder.layers | recorder.others

    return run


class _Recorder(torch.fx.Interpreter):
    """Runs a program operator by operator.

    Attributes:
        layers: for every module, the result of its last call. As in the ONNX graph, this is the last tensor that is
            made inside the module and read outside it.
        others: the result of every operator, under names that begin with a colon.
    """

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module)
        self.layers: dict[str, NDArray[Any]] = {}
        self.others: dict[str, NDArray[Any]] = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        result = super().run_node(n)
        if n.op == "call_function" and isinstance(result, torch.Tensor) and result.ndim in (3, 4):
            array = _as_numpy(result)  # a copy: an operator behind it may work in place
            self.others[f":{n.name}"] = array
            readers = [_scopes(user) for user in n.users]
            self.layers |= {scope: array for scope in _scopes(n) if any(scope not in reader for reader in readers)}
        return result


def _scopes(node: torch.fx.Node) -> set[str]:
    """Return the dotted names of the modules that a node came from."""
    return {str(path).split("@")[0] for path, _ in node.meta.get("nn_module_stack", {}).values() if path}


def _as_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    return np.array(tensor.detach().float().numpy())
