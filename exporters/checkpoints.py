"""Load weights into a PyTorch module, from the files that training loops write.

No code in a file is run: torch reads the file with ``weights_only=True``. A list names the types of objects that people
keep beside their weights (an argparse namespace, paths, dates, a configuration); torch gets an empty stand-in for each.
"""

from __future__ import annotations

import re
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ortcam.errors import ExportError, one_line
from ortcam.exporters.quiet import quiet

State = dict[str, torch.Tensor]

# Keys under which training loops keep the weights, and prefixes that wrappers give to their names.
_PLAIN = (
    "state_dict", "model_state_dict", "model", "net", "network", "weights", "params", "generator", "model_state",
    "net_state_dict", "module", "backbone", "encoder", "classifier",
)  # fmt: skip
# Parts of names that DataParallel, torch.compile, FSDP and activation checkpointing put anywhere.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_AVERAGES = {"ema", "swa", "averaged"}
_COUNTER = "n_averaged"  # of torch.optim.swa_utils.AveragedModel, beside the weights
_SHOWN = 3  # names in a message
_DEPTH = 4  # of dictionaries in dictionaries


class _Settings:
    """Stand-in for an object with attributes or items; torch can fill an OrderedDict with both."""

    def __new__(cls, *_: Any) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


class _Value:
    """Stand-in for an object that is made from arguments."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _Items(list[Any]):
    """Stand-in for a list of another type."""

    def __init__(self, *_: Any) -> None:
        super().__init__()


_SETTINGS = (
    "argparse.Namespace", "types.SimpleNamespace", "collections.defaultdict",
    "omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig", "omegaconf.base.Metadata",
    "omegaconf.base.ContainerMetadata", "yacs.config.CfgNode", "fvcore.common.config.CfgNode", "easydict.EasyDict",
    "addict.addict.Dict", "munch.Munch", "munch.munch.Munch", "box.box.Box", "mmcv.utils.config.ConfigDict",
    "mmengine.config.config.ConfigDict", "ml_collections.config_dict.config_dict.ConfigDict",
    "pytorch_lightning.utilities.parsing.AttributeDict", "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict", "lightning.fabric.utilities.data.AttributeDict",
)  # fmt: skip
_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
_VALUES = (
    *(f"pathlib.{name}" for name in _PATHS), *(f"pathlib._local.{name}" for name in _PATHS),
    *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
    *(f"omegaconf.nodes.{name}Node" for name in ("Any", "Integer", "Float", "Boolean", "String", "Bytes", "Path")),
    "typing.Any", "uuid.UUID", "decimal.Decimal", "fractions.Fraction", "torch.torch_version.TorchVersion",
    *(f"builtins.{name}" for name in ("slice", "range", "frozenset", "bytes", "object")),
)  # fmt: skip
# Types that may be arguments of the stand-ins, as in defaultdict(list).
_BUILTINS = (bool, dict, float, int, list, str, tuple)


def _allowed() -> list[Any]:
    """Return the types that torch may make beyond its own list: stand-ins by name, and NumPy's arrays and numbers."""
    makers = {"_reconstruct": np.zeros(1).__reduce__()[0], "scalar": np.float64(0).__reduce__()[0]}
    numpy = [np.ndarray, np.dtype, *(getattr(np.dtypes, name) for name in np.dtypes.__all__)]
    named = [(make, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core") for name, make in makers.items()]
    return [
        *numpy,
        *named,
        *_BUILTINS,
        *((_Settings, name) for name in _SETTINGS),
        *((_Value, name) for name in _VALUES),
        (_Items, "collections.deque"),
    ]


@dataclass(frozen=True)
class _Candidate:
    """Weights in a file, under the module's names.

    Attributes:
        place: the keys that lead to them, and the prefix of their names.
        state: the weights.
        others: names in the same dictionary that do not begin with the prefix.
        missing, unexpected: names.
        misshapen: names, with both shapes.
    """

    place: tuple[str, ...]
    state: State
    others: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[str, ...]

    @property
    def problems(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.misshapen)

    @property
    def rank(self) -> int:
        """0 if the place has a usual name, 1 for averaged weights, 2 for others."""
        if all(part in _PLAIN or part in _WRAPPERS for part in self.place):
            return 0
        return 1 if any(_AVERAGES & set(part.split("_")) for part in self.place) else 2

    @property
    def shown(self) -> str:
        return "/".join(self.place) or "the file's first level"


def load_weights(module: nn.Module, path: Path) -> tuple[str, ...]:
    """Load a state dict into a module, in place, even if a training loop wrapped it.

    The state dict may lie under a key (``state_dict``, ``model``, ``net``, ...), and its names may have a prefix that
    the module's own names lack (``module.``, ``model.``, ``_orig_mod.``, several). Plain weights come before averaged
    ones (``ema``).

    Args:
        module: the network.
        path: a file that torch.save wrote, of any suffix, or a ``.safetensors`` file.

    Returns:
        Notices for the user: which of several weights were used, and which names were left out.

    Raises:
        ExportError: the file cannot be read without running code, holds no weights, or does not fit the module.
    """
    content = _read(path)
    own = module.state_dict()
    candidates = [candidate for place, state in _find_states(content) for candidate in _fit(place, state, own)]
    if not candidates:
        raise ExportError(f"the weights {path} hold {_describe(content)}; expected a state dict: {_SAVE}")
    best = min(candidates, key=lambda candidate: (candidate.problems, candidate.rank))
    notices = []
    if not best.problems:
        rivals = [each for each in candidates if not each.problems and each is not best and not _same(each, best)]
        _refuse_choice(path, best, rivals)
        if rivals:
            notices.append(f"{path}: the weights in {best.shown} are used; the file has others in {rivals[0].shown}")
        if best.others:
            notices.append(f"{path}: {_few('name', best.others)} left out; the model has no such names")
    _load(module, best, path)
    return tuple(notices)


_SAVE = "torch.save(model.state_dict(), FILE)"


def _read(path: Path) -> Any:
    """Return the content of a file, with an empty stand-in for every object that is not a weight."""
    if path.is_dir():
        raise ExportError(f"the weights {path} are a folder; expected a file: {_SAVE}")
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise ExportError(f"cannot read the weights {path}: {_why(error)}") from error
    if start.startswith(b"version https://git-lfs"):
        raise ExportError(f"the weights {path} are a pointer of Git LFS, not the file; run: git lfs pull")
    if path.suffix.lower() == ".safetensors":
        return _read_safetensors(path)
    try:
        with quiet(), torch.serialization.safe_globals(_allowed()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises pickle's, zipfile's and its own errors
        raise ExportError(f"cannot read the weights {path}: {_explain(path, str(error), start)}") from error


def _why(error: OSError) -> str:
    return "no such file" if isinstance(error, FileNotFoundError) else error.strerror or str(error)


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ExportError(
            f"reading {path} needs safetensors, which is not installed: pip install safetensors"
        ) from error
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises its own error and Python's
        raise ExportError(
            f"cannot read the weights {path}: {one_line(error)}; expected a file that safetensors wrote"
        ) from error


def _explain(path: Path, text: str, start: bytes) -> str:
    """Say in a line why torch does not read a file. torch's own advice would be to run the code in the file."""
    found = re.search(r"GLOBAL (\S+)", text) or re.search(r"got <class '(\S+)'>", text)
    if found:
        return (
            f"it holds a pickled {found[1]}, and loading that can run code; expected weights alone; save them where "
            f"the model was trained: {_SAVE}"
        )
    if "TorchScript" in text:
        load = f"torch.jit.load({path.name!r})"
        return f"it is a TorchScript archive; expected a state dict: torch.save({load}.state_dict(), FILE)"
    if ".tar format" in text:
        return "it is of the tar format of torch 0.1; load it with torch.load and save its state dict again"
    if "Unsupported operand" in text and start[:1] in (b"P", b"\x80"):
        return "its pickle protocol is not 2, which torch's safe loader needs; save it with torch's default protocol"
    if start[:2] == b"PK" and not zipfile.is_zipfile(path):
        return f"it is cut short ({path.stat().st_size} bytes); expected a state dict that torch.save wrote"
    if start[:2] == b"PK" or start[:1] == b"\x80":
        plain = re.sub(r"\x1b\[[0-9;]*m", "", text).rpartition("WeightsUnpickler error: ")[2]
        return f"{one_line(RuntimeError(plain), 160)}; it may be damaged; expected a state dict that torch.save wrote"
    return "it is not a file that torch.save wrote; expected a state dict of torch.save, or a .safetensors file"


def _find_states(tree: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], State]]:
    """Yield the dictionaries that hold tensors by name, and the keys that lead to them; usual keys first."""
    if len(place) > _DEPTH:
        return
    if isinstance(tree, Mapping):
        state = {
            key: torch.as_tensor(value)
            for key, value in tree.items()
            if isinstance(key, str) and (isinstance(value, torch.Tensor) or _is_array(value)) and key != _COUNTER
        }
        if state:
            yield place, state
        inner: Sequence[Any] = sorted(
            tree.items(), key=lambda item: _PLAIN.index(item[0]) if item[0] in _PLAIN else len(_PLAIN)
        )
    else:
        inner = list(enumerate(tree)) if isinstance(tree, list | tuple) else []
    for key, value in inner:
        yield from _find_states(value, (*place, str(key)))


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiub"


def _fit(place: tuple[str, ...], state: State, own: Mapping[str, Any]) -> Iterator[_Candidate]:
    """Yield the weights of a dictionary under the module's names, for every prefix that matches most of them."""
    names, file_names = _plain_names(own), _plain_names(state)
    shared = _common_part(names)
    if shared and not any(name.startswith(shared) for name in file_names):  # the module wraps the saved network
        unwrapped = {name.removeprefix(shared): whole for name, whole in names.items()}
        names = unwrapped if file_names.keys() & unwrapped.keys() else names
    prefixes = _find_prefixes(file_names, names)
    for prefix in prefixes:
        longer = tuple(other for other in prefixes if len(other) > len(prefix) and other.startswith(prefix))
        renamed, others = {}, []
        for name, whole in file_names.items():
            if name.startswith(prefix) and not (longer and name.startswith(longer)):
                inner = name.removeprefix(prefix)
                renamed[names.get(inner, inner)] = state[whole]
            else:
                others.append(whole)
        parts = tuple(prefix.split(".")[:-1])
        yield _compare((*place, *parts), renamed, tuple(others), own)


def _compare(place: tuple[str, ...], renamed: State, others: tuple[str, ...], own: Mapping[str, Any]) -> _Candidate:
    """Compare weights with the module's names and shapes."""
    tied = {tensor.data_ptr() for name, tensor in own.items() if name in renamed and _has_shape(tensor)}
    missing = tuple(
        name
        for name, tensor in own.items()
        if name not in renamed
        and not name.endswith("num_batches_tracked")  # not in files before torch 0.4.1; read in training only
        and not (_has_shape(tensor) and tensor.data_ptr() in tied)  # safetensors keeps tied weights once
    )
    unexpected = tuple(name for name in renamed if name not in own)
    misshapen = tuple(
        f"{name} {list(renamed[name].shape)} for {list(tensor.shape)}"
        for name, tensor in own.items()
        if name in renamed and _has_shape(tensor) and renamed[name].shape != tensor.shape
    )
    if missing or misshapen:  # then the unexpected names may be the missing ones
        unexpected, others = (*unexpected, *others), ()
    return _Candidate(place, renamed, others, missing, unexpected, misshapen)


def _has_shape(tensor: Any) -> bool:
    return isinstance(tensor, torch.Tensor) and not nn.parameter.is_lazy(tensor)


def _plain_names(names: Iterable[str]) -> dict[str, str]:
    """Return names by their plain form, without the parts that wrappers add; as they are if plain forms collide."""
    plain = {".".join(part for part in name.split(".") if part not in _WRAPPERS): name for name in names}
    return plain if len(plain) == len(list(names)) else {name: name for name in names}


def _common_part(names: Iterable[str]) -> str:
    """Return the first part of dotted names with its dot, if they all share it."""
    first = {name.partition(".")[0] + "." if "." in name else "" for name in names}
    return first.pop() if len(first) == 1 else ""


def _find_prefixes(file_names: Iterable[str], names: Iterable[str]) -> tuple[str, ...]:
    """Return the prefix of most of the module's names in a file; several prefixes if they tie."""
    found: Counter[str] = Counter()
    for name in file_names:
        parts = name.split(".")
        for count in range(len(parts)):
            if ".".join(parts[count:]) in names:
                found["".join(f"{part}." for part in parts[:count])] += 1
    most = max(found.values(), default=0)
    return tuple(prefix for prefix, count in found.items() if count == most) or ("",)


def _same(one: _Candidate, other: _Candidate) -> bool:
    return all(torch.equal(value, other.state[name]) for name, value in one.state.items() if name in other.state)


def _refuse_choice(path: Path, best: _Candidate, rivals: Sequence[_Candidate]) -> None:
    """Refuse weights that fit equally well and whose names do not decide."""
    unknown = [each for each in rivals if each.rank == best.rank == 2]
    if unknown:
        raise ExportError(
            f"the weights {path} fit twice, in {best.shown} and in {unknown[0].shown}; save the weights to use in a "
            "file of their own"
        )


def _few(what: str, names: Sequence[str]) -> str:
    """Return ``2 names (a, b)``, or the first few of many."""
    more = ", ..." if len(names) > _SHOWN else ""
    return f"{len(names)} {what}{'' if len(names) == 1 else 's'} ({', '.join(names[:_SHOWN])}{more})"


def _describe(content: Any) -> str:
    if isinstance(content, Mapping):
        keys = ", ".join(map(str, list(content)[:_SHOWN]))
        return f"no tensors by name ({keys})" if keys else "nothing"
    return f"an object of type {type(content).__name__}"


def _load(module: nn.Module, best: _Candidate, path: Path) -> None:
    """Copy the weights into the module. torch reports missing names itself, because it translates its older names."""
    missing, unexpected = list(best.missing), list(best.unexpected)
    if not best.misshapen:
        try:
            with quiet():
                result = module.load_state_dict(best.state, strict=False)
        except (RuntimeError, TypeError, AttributeError) as error:
            raise ExportError(f"the weights {path} do not fit {type(module).__name__}: {one_line(error)}") from error
        missing = [name for name in result.missing_keys if name in best.missing]
        unexpected = [*result.unexpected_keys, *(name for name in unexpected if name not in best.state)]
    faults = [
        f"{kind}: {_few('name', names)}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", best.misshapen))
        if names
    ]
    if faults:
        raise ExportError(
            f"the weights {path} do not fit {type(module).__name__} ({len(module.state_dict())} names); "
            f"{'; '.join(faults)}; build the network as it was trained"
        )
