"""Where PyTorch modules come from: torchvision, timm, a Python file, a package, or the caller's own hands."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import URLError

import torch
from torch import nn

from ortcam.errors import ExportError, nearest, one_line
from ortcam.exporters.sources import SourceOptions
from ortcam.preprocessing import Preprocessing

# What loading code of others can raise that the user can mend.
_LOADING_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    OSError,
    URLError,
    ImportError,
    AttributeError,
)


@dataclass(frozen=True)
class LoadedModule:
    """An nn.Module and what its origin knows of it."""

    name: str
    module: nn.Module
    source: dict[str, Any]
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] | None = None


def load_module(source: Any, options: SourceOptions) -> LoadedModule:
    """Return the module that `source` names, with the weights that the options give.

    Raises:
        ExportError: there is no such source, or it cannot be loaded.
    """
    if isinstance(source, nn.Module):
        loaded = LoadedModule(type(source).__name__, source, {"kind": "pytorch", "name": type(source).__name__})
    elif not isinstance(source, str) or ":" not in source:
        raise ExportError(
            f"source {source!r} is of no known kind; expected an nn.Module, torchvision:NAME, timm:NAME, "
            "FILE.py:CALLABLE, package.module:CALLABLE, or FILE.onnx"
        )
    else:
        origin, _, name = source.rpartition(":")
        loaders: dict[str, Callable[[str, bool], LoadedModule]] = {
            "torchvision": _from_torchvision,
            "timm": _from_timm,
        }
        if origin in loaders:
            try:
                loaded = loaders[origin](name, options.weights is None)
            except ImportError as error:
                raise ExportError(f"{source} needs {origin}: pip install 'ortcam[torch]'") from error
        else:
            loaded = LoadedModule(source, _call(origin, name), {"kind": "pytorch", "name": source})
    if options.weights is not None and options.weights != "random":
        _load_weights(loaded.module, Path(options.weights))
    return loaded


def _from_torchvision(name: str, pretrained: bool) -> LoadedModule:
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ExportError(f"torchvision has no classifier {name!r}{nearest(name, known)}")
    weights = torchvision.models.get_model_weights(name).DEFAULT
    module = _build(
        f"torchvision:{name}",
        lambda: torchvision.models.get_model(name, weights=weights if pretrained else None),
    )
    transforms = weights.transforms()
    (crop,), (resize,) = transforms.crop_size, transforms.resize_size
    preprocessing = Preprocessing(
        crop,
        crop,
        "RGB",
        resize,
        transforms.interpolation.value,
        1 / 255,
        tuple(transforms.mean),
        tuple(transforms.std),
    )
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    source = {
        "kind": "torchvision",
        "name": name,
        "weights": str(weights) if pretrained else None,
        "versions": versions,
    }
    return LoadedModule(f"torchvision:{name}", module, source, preprocessing, tuple(weights.meta["categories"]))


def _from_timm(name: str, pretrained: bool) -> LoadedModule:
    import timm

    if not timm.is_model(name):
        raise ExportError(f"timm has no model {name!r}{nearest(name, timm.list_models())}")
    module = _build(f"timm:{name}", lambda: timm.create_model(name, pretrained=pretrained))
    config = timm.data.resolve_model_data_config(module)
    _, height, width = config["input_size"]
    crops = config["crop_mode"] == "center"
    preprocessing = Preprocessing(
        height,
        width,
        "RGB",
        math.floor(max(height, width) / config["crop_pct"]) if crops else None,
        "bicubic" if config["interpolation"] == "bicubic" else "bilinear",
        1 / 255,
        tuple(config["mean"]),
        tuple(config["std"]),
    )
    labels = None
    if getattr(module, "num_classes", None) == 1000:
        names = timm.data.ImageNetInfo()
        labels = tuple(names.index_to_description(index) for index in range(1000))
    versions = {"torch": torch.__version__, "timm": timm.__version__}
    source = {"kind": "timm", "name": name, "pretrained": pretrained, "versions": versions}
    return LoadedModule(f"timm:{name}", module, source, preprocessing, labels)


def _build(source: str, create: Callable[[], Any]) -> nn.Module:
    """Make an untrained or trained network of a model zoo; random weights are always the same."""
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module: nn.Module = create()
    except (OSError, URLError) as error:
        raise ExportError(
            f"cannot download the weights of {source}: {one_line(error)}; give a state dict with --weights FILE, "
            "or --weights random for an untrained network"
        ) from error
    return module.eval()


def _call(origin: str, name: str) -> nn.Module:
    """Call `name` of a Python file or package, which returns the module."""
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
                f"{origin} has no callable {name!r}{nearest(name, defined)}; "
                "expected a function that returns an nn.Module"
            )
        try:
            module = target if isinstance(target, nn.Module) else target()
        except (Exception, SystemExit) as error:  # the user's own code
            raise ExportError(f"{origin}:{name}() failed with {type(error).__name__}: {one_line(error)}") from error
    if not isinstance(module, nn.Module):
        raise ExportError(f"{origin}:{name}() returned a {type(module).__name__}; expected an nn.Module")
    return module


@contextlib.contextmanager
def _importable_from(folder: Path) -> Iterator[None]:
    """Let imports find what lies in `folder`, as they do when Python runs a file there."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _import(origin: str, path: Path | None) -> ModuleType:
    try:
        if path is None:
            return importlib.import_module(origin)
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


def _load_weights(module: nn.Module, path: Path) -> None:
    """Load a state dict, also one that a training loop wrapped in a dictionary."""
    if not path.is_file():
        raise ExportError(f"cannot read the weights {path}: no such file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises pickle's, zipfile's and its own errors
        raise ExportError(
            f"cannot read the weights {path}: {one_line(error)}; expected a state dict that torch.save wrote"
        ) from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        raise ExportError(f"the weights {path} hold a {type(state).__name__}; expected a state dict")
    if state and all(key.startswith("module.") for key in state):  # saved from DataParallel
        state = {key.removeprefix("module."): value for key, value in state.items()}
    try:
        module.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        raise ExportError(f"the weights {path} do not fit {type(module).__name__}: {one_line(error)}") from error
