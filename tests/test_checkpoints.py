"""Weights as training loops leave them: every file that loads must give the very weights that were saved."""

from __future__ import annotations

import argparse
import collections
import datetime
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ortcam.errors import ExportError
from ortcam.exporters import export
from ortcam.exporters.checkpoints import load_weights

State = dict[str, Any]


class Net(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.fc(self.bn(self.conv(x)).relu().mean((2, 3)))
        return scores


class Wrapper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = Net()


def weights(seed: int = 1, classes: int = 5) -> State:
    torch.manual_seed(seed)
    return {
        name: torch.randn_like(value) if value.is_floating_point() else value + seed
        for name, value in Net(classes).state_dict().items()
    }


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def load(content: Any, folder: Path, module: nn.Module | None = None) -> tuple[State, tuple[str, ...]]:
    """Save, load, and return the module's weights and what the user is told."""
    torch.save(content, folder / "weights.pth")
    module = Net() if module is None else module
    notices = load_weights(module, folder / "weights.pth")
    return module.state_dict(), notices


def assert_same_weights(loaded: State, saved: State) -> None:
    assert list(loaded) == list(saved)
    for name, value in saved.items():
        assert torch.equal(loaded[name], value), name


KEYS = ["state_dict", "model", "net", "network", "ema", "model_state_dict", "state_dict_ema", "model_ema", "params",
        "generator", "my_own_name"]  # fmt: skip
PREFIXES = ["module.", "model.", "net.", "_orig_mod.", "backbone.", "module._orig_mod.", "model.net.module.", "mine."]


@pytest.mark.parametrize(
    "wrap",
    [
        *(lambda state, key=key: {"epoch": 3, key: state, "best": 0.5} for key in KEYS),
        *(lambda state, prefix=prefix: {"state_dict": prefixed(prefix, state)} for prefix in PREFIXES),
        lambda state: {name.replace("conv.", "conv._orig_mod."): value for name, value in state.items()},
        lambda state: prefixed("module.", state) | {"n_averaged": torch.tensor(7)},
        lambda state: {"a": {"b": [1, {"state_dict": state}]}},
        lambda state: state | {"epoch": 3},
        lambda state: {"teacher": state, "student": dict(state)},
        lambda state: {name: value.numpy() for name, value in state.items()},
        lambda state: {"model": state, "optimizer": {"state": {0: {"exp_avg": torch.ones(4)}}, "param_groups": []}},
    ],
    ids=[*KEYS, *PREFIXES, "compiled-part", "averaged", "deep", "flat", "twice-the-same", "numpy", "optimizer"],
)
def test_where_weights_lie(wrap: Callable[[State], Any], tmp_path: Path) -> None:
    loaded, notices = load(wrap(weights()), tmp_path)
    assert_same_weights(loaded, weights())
    assert notices == ()


@pytest.mark.parametrize("wrap", [lambda net: Wrapper(), nn.DataParallel, torch.compile])
def test_a_module_that_wraps_what_was_saved(wrap: Callable[[nn.Module], Any], tmp_path: Path) -> None:
    loaded, _ = load(weights(), tmp_path, wrap(Net()))
    assert_same_weights({name.split(".", 1)[1]: value for name, value in loaded.items()}, weights())


def test_files_of_older_torch(tmp_path: Path) -> None:
    """Before 1.6 files were no zip, and before 0.4.1 BatchNorm did not count batches."""
    state = {name: value for name, value in weights().items() if "num_batches_tracked" not in name}
    torch.save({"state_dict": state}, tmp_path / "old.pth.tar", _use_new_zipfile_serialization=False)
    net = Net()
    load_weights(net, tmp_path / "old.pth.tar")
    assert_same_weights({name: net.state_dict()[name] for name in state}, state)


def test_safetensors(tmp_path: Path) -> None:
    save_file(prefixed("model.", weights()), tmp_path / "model.safetensors")
    net = Net()
    load_weights(net, tmp_path / "model.safetensors")
    assert_same_weights(net.state_dict(), weights())
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:99])
    with pytest.raises(ExportError, match=r"cannot read the weights .*cut\.safetensors: .*safetensors wrote"):
        load_weights(net, tmp_path / "cut.safetensors")


def test_settings_beside_the_weights(tmp_path: Path) -> None:
    settings = argparse.Namespace(
        rate=np.float64(0.1),
        steps=np.int64(3),
        classes=np.array([1, 2]),
        folder=Path("runs"),
        when=datetime.datetime.now(datetime.UTC),
        took=datetime.timedelta(1),
        seen=collections.defaultdict(list, {"a": [1]}),
        last=collections.deque([1, 2]),
        inner=types.SimpleNamespace(version=torch.__version__, kept=frozenset([1]), range=range(3)),
    )
    loaded, notices = load({"args": settings, "model": prefixed("module.", weights())}, tmp_path)
    assert_same_weights(loaded, weights())
    assert notices == ()


class Stranger(dict[str, Any]):
    """Takes the place of a package's configuration, which need not be installed where the weights are loaded."""


@pytest.mark.parametrize(
    "name", ["omegaconf.dictconfig.DictConfig", "lightning.fabric.utilities.data.AttributeDict", "easydict.EasyDict"]
)
def test_configurations_of_packages(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _, kind = name.rpartition(".")
    package = types.ModuleType(module)
    stranger = type(kind, (Stranger,), {"__module__": module})
    setattr(package, kind, stranger)
    config = stranger(rate=0.1, inner=stranger(a=[1]))
    config.note = "an attribute"
    with monkeypatch.context() as patch:
        for place in range(1, module.count(".") + 2):
            patch.setitem(sys.modules, ".".join(module.split(".")[:place]), package)
        torch.save({"state_dict": weights(), "hyper_parameters": config}, tmp_path / "last.ckpt")
    net = Net()
    load_weights(net, tmp_path / "last.ckpt")
    assert_same_weights(net.state_dict(), weights())


def test_plain_weights_come_before_averaged_ones(tmp_path: Path) -> None:
    for content in (
        {"ema": weights(2), "model": weights()},
        {"state_dict": prefixed("model_ema.", weights(2)) | prefixed("model.", weights())},
        prefixed("ema.", weights(2)) | weights(),
    ):
        loaded, notices = load(content, tmp_path)
        assert_same_weights(loaded, weights())
        assert "are used; the file has others in" in notices[0]
        assert "ema" in notices[0]


def test_what_belongs_to_the_training_is_left_out(tiny: nn.Module, tmp_path: Path) -> None:
    """A LightningModule keeps its loss's weights beside the network."""
    trained = {name: torch.ones_like(value) for name, value in tiny.state_dict().items()}
    torch.save({"state_dict": prefixed("model.", trained) | {"loss.weight": torch.ones(10)}}, tmp_path / "last.ckpt")
    report = export(tiny, tmp_path / "tiny.onnx", weights=tmp_path / "last.ckpt", input_size=32)
    assert any("1 name (loss.weight) left out" in notice for notice in report.notices)
    assert_same_weights(dict(tiny.state_dict()), trained)


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("code in a weights file was run",))


def without(state: State, part: str) -> State:
    return {name: value for name, value in state.items() if part not in name}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"state_dict": prefixed("module.", without(weights(), "fc") | {"head.w": torch.ones(5)})},
            r"do not fit Net \(9 names\); missing: 2 names \(fc\.weight, fc\.bias\); unexpected: 1 name \(head\.w\);",
        ),
        (
            {"a": torch.zeros(3)},
            r"missing: 8 names \(conv\.weight, conv\.bias, bn\.weight, \.\.\.\); unexpected: 1 name",
        ),
        (weights() | {"aux.weight": torch.ones(2)}, r"\(9 names\); unexpected: 1 name \(aux\.weight\); build"),
        (
            prefixed("model.", weights(classes=7)),
            r"of another shape: 2 names \(fc\.weight \[7, 4\] for \[5, 4\], fc\.bias \[7\] for \[5\]\)",
        ),
        ({"teacher": weights(), "student": weights(2)}, "fit twice, in teacher and in student"),
        (prefixed("query.", weights()) | prefixed("key.", weights(2)), "fit twice, in query and in key"),
        ({"epoch": 3, "loss": 0.1}, r"hold no tensors by name \(epoch, loss\); expected a state dict"),
        ({}, "hold nothing; expected a state dict"),
        (torch.ones(3), "hold an object of type Tensor"),
        (nn.Linear(2, 2), r"holds a pickled torch\.nn\.modules\.linear\.Linear, .*; save them where .*state_dict\(\)"),
        ({"model": Net(), "epoch": 3}, r"holds a pickled test_checkpoints\.Net, and loading that can run code"),
        ({"model": weights(), "hook": Malicious()}, "holds a pickled print, and loading that can run code"),
    ],
)
def test_weights_that_do_not_fit(content: Any, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ExportError, match=message) as caught:
        load_weights(Net(), tmp_path / "weights.pth")
    assert str(caught.value).isprintable()  # in one line, without colours
    assert capfd.readouterr() == ("", "")


def cut(path: Path) -> None:
    torch.save(weights(), path)
    path.write_bytes(path.read_bytes()[:1500])


def new_pickle(path: Path) -> None:
    torch.save(weights(), path, pickle_protocol=4)


def torchscript(path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), path)


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "no such file"),
        (Path.mkdir, "are a folder"),
        (cut, r"is cut short \(1500 bytes\)"),
        (new_pickle, "pickle protocol is not 2"),
        (torchscript, r"is a TorchScript archive; .*torch\.jit\.load"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
        (lambda path: path.write_text("<!DOCTYPE html>"), "not a file that torch.save wrote"),
        (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), "not a file that torch.save wrote"),
    ],
)
def test_files_that_hold_no_weights(write: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    write(tmp_path / "weights.pth")
    with pytest.raises(ExportError, match=message) as caught:
        load_weights(Net(), tmp_path / "weights.pth")
    assert str(caught.value).isprintable()
