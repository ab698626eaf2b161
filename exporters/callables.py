"""Build models with a function of a Python file or package: FILE.py:CALLABLE and package.module:CALLABLE."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from ortcam.errors import ExportError, nearest, one_line


def call(origin: str, name: str) -> Any:
    """Call a callable of a Python file or package and return its result; if the name is a model, return the model.

    Args:
        origin: ``FILE.py`` or ``package.module``.
        name: the callable in it, dotted if need be; called without arguments.

    Raises:
        ExportError: the callable is missing, or it failed.
    """
    path = Path(origin) if origin.endswith(".py") else None
    if path is not None and not path.is_file():
        raise ExportError(f"cannot read {path}: no such file")
    with _importable_from(Path.cwd() if path is None else path.resolve().parent):
        where = _import(origin, path)
        target: Any = where
        for part in name.split("."):
            target = getattr(target, part, None)
        if not callable(target):
            defined = [key for key, value in vars(where).items() if callable(value) and not key.startswith("_")]
            raise ExportError(
                f"{origin} has no callable {name!r}{nearest(name, defined)}; expected a function that returns the model"
            )
        try:
            return target() if isinstance(target, type) or not _is_model(target) else target
        except (Exception, SystemExit) as error:  # the user's own code
            raise ExportError(f"{origin}:{name}() failed with {type(error).__name__}: {one_line(error)}") from error


def _is_model(target: Any) -> bool:
    """Return whether an object is a model, not a function that makes a model."""
    roots = {base.__module__.partition(".")[0] for base in type(target).__mro__}
    return bool(roots & {"torch", "keras", "tf_keras", "flax"})


@contextlib.contextmanager
def _importable_from(folder: Path) -> Iterator[None]:
    """Let imports find the modules in `folder`, as they do when Python runs a file there."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _import_tensorflow_quietly(path: Path) -> None:
    """Import TensorFlow quietly before the user's file imports it and writes its log lines to the screen."""
    uses = re.search(rb"^\s*(?:import|from)\s+(?:tensorflow|keras)\b", path.read_bytes(), re.MULTILINE)
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    if uses and backend == "tensorflow" and importlib.util.find_spec("tf2onnx") is not None:
        importlib.import_module("ortcam.exporters.tensorflow")


def _import(origin: str, path: Path | None) -> ModuleType:
    try:
        if path is None:
            return importlib.import_module(origin)
        _import_tensorflow_quietly(path)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise ExportError(f"cannot read {path} as Python")
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(path.stem, module)  # where dataclasses and pickle look for it
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        if path is None and error.name is not None and origin.startswith(error.name):
            raise ExportError(
                f"cannot import {origin}: {one_line(error)}; expected FILE.py:CALLABLE or package.module:CALLABLE"
            ) from error
        raise ExportError(f"{origin} failed with {type(error).__name__}: {one_line(error)}") from error
    except (Exception, SystemExit) as error:  # the user's own code
        raise ExportError(f"{origin} failed with {type(error).__name__}: {one_line(error)}") from error
    return module
