"""Read a model from a file, the bytes of a file, or an onnx.ModelProto."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError, EncodeError

from ortcam.core.files import Fingerprint
from ortcam.errors import ModelError, one_line


class ModelSource:
    """A model that can be read again and again, here and in another process.

    Attributes:
        path: the file; None for bytes and for an onnx.ModelProto.
        name: the model's name in short messages.
        shown: the model's name in messages that state its path.
        fingerprint: the hash of the file or of the bytes.
    """

    def __init__(self, model: Any) -> None:
        """Store the source, without reading a file.

        Args:
            model: a path, the bytes of an ONNX file, or an onnx.ModelProto, which is copied.

        Raises:
            ModelError: the model has another type.
        """
        self.path: Path | None = None
        self._data: bytes | None = None
        if isinstance(model, str | PathLike):
            self.path = Path(model)
            self.name, self.shown = self.path.name, str(model)
            self.fingerprint = Fingerprint(self.path)  # before the file is read, so that a later change is noticed
            return
        if isinstance(model, bytes | bytearray | memoryview):
            self._data, kind = bytes(model), "bytes"
        elif isinstance(model, onnx.ModelProto):
            self._data, kind = _serialize(model), "ModelProto"
        else:
            raise ModelError(
                f"model is a {type(model).__name__}; expected the path of an ONNX file, its bytes or an onnx.ModelProto"
            )
        self.name = self.shown = f"the model ({kind})"
        self.fingerprint = Fingerprint.of_bytes(self._data)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state with an absolute path: another process may have another current directory."""
        return {**self.__dict__, "path": None if self.path is None else self.path.absolute()}

    @property
    def folder(self) -> Path:
        """The directory of external weights."""
        return Path() if self.path is None else self.path.resolve().parent

    @property
    def size(self) -> int:
        """The number of bytes, without external weights."""
        if self._data is not None:
            return len(self._data)
        assert self.path is not None
        return self.path.stat().st_size

    def read(self) -> onnx.ModelProto:
        """Parse the model; weights in external files stay there.

        Raises:
            ModelError: the file is missing or unreadable, is not an ONNX model, or has external weights and no folder.
        """
        if self.path is not None:
            return read_proto(self.path)
        try:
            proto = onnx.load_model_from_string(self._data or b"")
        except (DecodeError, ValueError) as error:
            raise ModelError(f"{self.name} is not an ONNX model, or is cut short: {one_line(error)}") from error
        _refuse_empty(proto, self.name)
        external = external_files(proto)
        if external:
            raise ModelError(
                f"{self.name} has weights in another file, {external[0]!r}, and bytes have no folder; "
                "give the path of the model file"
            )
        return proto

    def check_unchanged(self) -> None:
        """Raise a ModelError if the file has changed since it was first loaded."""
        if self.fingerprint.path is not None and not self.fingerprint.path.exists():
            raise ModelError(f"{self.shown} is missing, though it was there when the model was loaded; put it back")
        if not self.fingerprint.holds():
            raise ModelError(f"{self.shown} changed after it was loaded; load it again")


def _serialize(proto: onnx.ModelProto) -> bytes:
    try:
        return bytes(proto.SerializeToString())
    except (EncodeError, ValueError) as error:
        raise ModelError(
            f"the model (ModelProto) cannot be serialized: {one_line(error)}; save it with external weights, and give "
            "the path of the file"
        ) from error


def external_files(proto: onnx.ModelProto) -> list[str]:
    """Return the sorted names of the files with external weights, relative to the model's folder."""
    names = {
        entry.value
        for tensor in proto.graph.initializer
        if tensor.data_location == tensor.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return sorted(names)


def read_proto(path: Path) -> onnx.ModelProto:
    """Parse an ONNX file; weights in external files stay there.

    Raises:
        ModelError: the file is missing or unreadable, or is not an ONNX model.
    """
    if path.is_dir():
        raise ModelError(f"{path} is a directory; expected an ONNX file")
    try:
        proto = onnx.load(path, load_external_data=False)
    except FileNotFoundError as error:
        raise ModelError(f"cannot read {path}: no such file") from error
    except OSError as error:
        raise ModelError(f"cannot read {path}: {one_line(error)}") from error
    except (DecodeError, ValueError) as error:
        raise ModelError(f"{path} is not an ONNX model, or is cut short: {one_line(error)}") from error
    _refuse_empty(proto, str(path))
    return proto


def _refuse_empty(proto: onnx.ModelProto, name: str) -> None:
    if not proto.graph.node or not proto.graph.output:
        raise ModelError(f"{name} is not an ONNX model: it has no graph")
