"""Load PyTorch modules from torchvision, timm or the caller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import nn

from ortcam.errors import ExportError, OptionError, nearest, one_line
from ortcam.exporters.checkpoints import load_weights
from ortcam.exporters.sources import SourceOptions
from ortcam.model.preprocessing import Preprocessing


@dataclass(frozen=True)
class LoadedModule:
    """An nn.Module with the preprocessing, labels and notices of its origin."""

    name: str
    module: nn.Module
    source: dict[str, Any]
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] | None = None
    notices: tuple[str, ...] = ()


def load_zoo_module(zoo: str, name: str, options: SourceOptions) -> LoadedModule:
    """Return a network of torchvision or timm, with the weights that the options give.

    Raises:
        ExportError: the network is unknown, or its weights cannot be loaded.
    """
    loaders = {"torchvision": _from_torchvision, "timm": _from_timm}
    try:
        loaded = loaders[zoo](name, options.weights is None)
    except ImportError as error:
        raise ExportError(f"{zoo}:{name} needs {zoo}: pip install 'ortcam[torch]'") from error
    return _with_weights(loaded, options)


def load_given_module(module: Any, name: str, options: SourceOptions) -> LoadedModule:
    """Wrap a module in memory, with the weights that the options give.

    Raises:
        ExportError: it is not an nn.Module, or the weights cannot be loaded.
    """
    if not isinstance(module, nn.Module):
        raise ExportError(f"{name} returned a {type(module).__name__}; expected an nn.Module")
    return _with_weights(LoadedModule(name, module, {"kind": "pytorch", "name": name}), options)


def _with_weights(loaded: LoadedModule, options: SourceOptions) -> LoadedModule:
    if options.weights is None or options.weights == "random":
        return loaded
    return replace(loaded, notices=load_weights(loaded.module, Path(options.weights)))


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
    try:
        preprocessing = Preprocessing.from_dict({"pretrained_cfg": config})
    except OptionError:  # such as a crop that pads; the export says that the preprocessing is unknown
        preprocessing = None
    labels = None
    if getattr(module, "num_classes", None) == 1000:
        names = timm.data.ImageNetInfo()
        labels = tuple(names.index_to_description(index) for index in range(1000))
    versions = {"torch": torch.__version__, "timm": timm.__version__}
    source = {"kind": "timm", "name": name, "pretrained": pretrained, "versions": versions}
    return LoadedModule(f"timm:{name}", module, source, preprocessing, labels)


def _build(source: str, create: Callable[[], Any]) -> nn.Module:
    """Build an untrained or trained network of a model zoo; random weights are always the same."""
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
