"""Programs that torch.export saved (.pt2), and PyTorch's other files, which are refused with a word on what to do."""

from __future__ import annotations

import json
import os
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from conftest import assert_same_map
from torch import nn

import ortcam
from ortcam.errors import ExportError, LayerError
from ortcam.exporters import export
from ortcam.model.cam_model import CamModel

ANY_BATCH = ({0: torch.export.Dim("batch", min=1)},)


class Tiny(nn.Module):
    """A classifier whose last ReLU is no module."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1))
        self.dropout = nn.Dropout()
        self.fc = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.fc(self.dropout(torch.relu(self.features(x)).mean((2, 3))))
        return scores


def save(module: nn.Module, path: Path, size: int, batch: int = 2, dynamic: Any = ANY_BATCH) -> Path:
    program = torch.export.export(module, (torch.zeros(batch, 3, size, size),), dynamic_shapes=dynamic)
    torch.export.save(program, path)
    return path


@pytest.fixture(scope="module")
def tiny_program(models: Path) -> Path:
    return save(Tiny().eval(), models / "tiny.pt2", 32)


@pytest.fixture(scope="module")
def resnet18_program(resnet18: nn.Module, models: Path) -> Path:
    return save(resnet18, models / "resnet18.pt2", 96)


def nothing_is_left(folder: Path) -> bool:
    return not any(path.suffix == ".onnx" for path in folder.iterdir())


@pytest.mark.slow
def test_resnet18_keeps_its_modules(resnet18_program: Path, resnet18: nn.Module, tmp_path: Path) -> None:
    report = export(resnet18_program, tmp_path / "r.onnx", preprocess="imagenet")
    assert (report.layer, report.shape) == ("layer4", (512, 3, 3))
    assert report.agreement.batches == (1, 3)
    assert report.agreement.logits <= 1e-4
    assert report.agreement.activations is not None
    assert report.agreement.activations <= 1e-4
    contract = CamModel(report.path).contract
    assert contract.source == {
        "kind": "pytorch program",
        "name": "resnet18.pt2",
        "versions": {"torch": torch.__version__},
    }
    assert contract.preprocessing is not None
    assert contract.preprocessing.height == 96
    assert str(Path(torchvision.__file__).parent).encode() not in report.path.read_bytes()  # no stack traces


@pytest.mark.slow
def test_a_layer_by_its_module(resnet18_program: Path, tmp_path: Path) -> None:
    report = export(resnet18_program, tmp_path / "r.onnx", ["layer3.0.bn1", "layer4"])
    assert [(layer.name, layer.shape) for layer in report.layers] == [
        ("layer3.0.bn1", (256, 6, 6)),
        ("layer4", (512, 3, 3)),
    ]
    assert all(layer.error is not None and layer.error <= 1e-4 for layer in report.layers)
    with pytest.raises(LayerError, match="nearest: layer4"):
        export(resnet18_program, tmp_path / "s.onnx", "layer5")


def test_a_layer_that_no_module_returns(tiny_program: Path, tmp_path: Path) -> None:
    report = export(tiny_program, tmp_path / "t.onnx")
    assert report.shape == (16, 8, 8)
    assert report.agreement.activations is not None
    assert report.agreement.activations <= 1e-4


@pytest.mark.slow
def test_a_fixed_batch_of_one(resnet18: nn.Module, tmp_path: Path) -> None:
    program = save(resnet18, tmp_path / "fixed.pt2", 96, batch=1, dynamic=None)
    report = export(program, tmp_path / "r.onnx", "layer4", preprocess="imagenet")
    assert report.shape == (512, 3, 3)
    assert report.agreement.batches[0] == 1
    assert any("batch of 1" in notice for notice in report.notices)
    photo = np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)
    assert np.isfinite(ortcam.ScoreCAM(report.path).explain(photo).maps).all()


def test_a_fixed_batch_of_more(tmp_path: Path) -> None:
    program = save(Tiny().eval(), tmp_path / "fixed.pt2", 32, batch=2, dynamic=None)
    with pytest.raises(ExportError, match="batch") as caught:
        export(program, tmp_path / "r.onnx")
    assert "\n" not in str(caught.value)
    assert nothing_is_left(tmp_path)


def test_a_dynamic_size_is_given_by_the_user(tmp_path: Path) -> None:
    free = torch.export.Dim.AUTO
    program = save(Tiny().eval(), tmp_path / "free.pt2", 32, dynamic=({0: free, 2: free, 3: free},))
    assert export(program, tmp_path / "r.onnx", input_size=64).shape == (16, 16, 16)


@pytest.mark.slow
def test_the_trained_network_sees_what_its_module_sees(
    lite0: nn.Module, lite0_file: Path, photos: dict[str, Path], models: Path, in_table: Any
) -> None:
    program = save(lite0, models / "lite0.pt2", 224)
    path = export(program, models / "lite0-program.onnx", preprocess="lite", labels="imagenet").path
    ours, theirs = (ortcam.ScoreCAM(file).explain(photos["imagenet_00"]) for file in (path, lite0_file))
    assert ours.targets[0].index == 243
    assert ours.targets[0].name == "bull mastiff"
    assert_same_map(ours.maps[0], theirs.maps[0])
    in_table("EfficientNet-Lite0", "PyTorch .pt2", path)


def test_training_mode_is_refused(tmp_path: Path) -> None:
    program = save(Tiny().train(), tmp_path / "train.pt2", 32)
    with pytest.raises(ExportError, match=r"training mode \(aten::batch_norm\); call model\.eval\(\)"):
        export(program, tmp_path / "t.onnx")
    module = Tiny().eval()
    module.dropout.train()
    with pytest.raises(ExportError, match=r"training mode \(aten::dropout\)"):
        export(save(module, tmp_path / "dropout.pt2", 32), tmp_path / "t.onnx")
    assert nothing_is_left(tmp_path)


class Segmenter(Tiny):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps: torch.Tensor = self.features(x)
        return maps


def test_what_is_no_classifier(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="expected class scores"):
        export(save(Segmenter().eval(), tmp_path / "s.pt2", 32), tmp_path / "s.onnx")
    assert nothing_is_left(tmp_path)


class Planted:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


def rewrite(source: Path, target: Path, change: Callable[[str, bytes], bytes], extra: str | None = None) -> Path:
    """Copy a program file with some of its parts changed, or one more."""
    with torch.no_grad(), zipfile.ZipFile(source) as archive:
        writer = torch._C.PyTorchFileWriter(str(target))
        writer.set_min_version(6)
        for name in archive.namelist():
            part = name.partition("/")[2]
            if not part.startswith(".data/") and part != "byteorder":
                data = change(part, archive.read(name))
                writer.write_record(part, data, len(data))
        if extra is not None:
            writer.write_record(extra, b"x", 1)
        writer.write_end_of_file()
    return target


def plant_pickle(folder: Path) -> Callable[[str, bytes], bytes]:
    torch.save((Planted(folder / "planted"),), folder / "pickle")
    return lambda part, data: (folder / "pickle").read_bytes() if part.startswith("data/sample_inputs/") else data


def plant_expression(folder: Path) -> Callable[[str, bytes], bytes]:
    code = f"__import__('os').mkdir('{folder / 'planted'}')"

    def change(part: str, data: bytes) -> bytes:
        if part != "models/model.json":
            return data
        program = json.loads(data)
        for value in program["graph_module"]["graph"]["tensor_values"].values():
            for size in value["sizes"]:
                if "as_expr" in size:
                    size["as_expr"]["expr_str"] = code
        return json.dumps(program).encode()

    return change


def plant_guard(folder: Path) -> Callable[[str, bytes], bytes]:
    def change(part: str, data: bytes) -> bytes:
        if part != "models/model.json":
            return data
        return json.dumps(json.loads(data) | {"guards_code": [f"open('{folder / 'planted'}', 'w')"]}).encode()

    return change


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (plant_pickle, "pickled objects in data/sample_inputs/model.pt"),
        (plant_expression, "the expr_str"),
        (plant_guard, "the guards_code"),
    ],
)
def test_a_file_that_would_run_code_is_not_loaded(
    plant: Callable[[Path], Callable[[str, bytes], bytes]], message: str, tiny_program: Path, tmp_path: Path
) -> None:
    program = rewrite(tiny_program, tmp_path / "evil.pt2", plant(tmp_path))
    with pytest.raises(ExportError, match=f"{message}.*could run code.*--allow-unsafe") as caught:
        export(program, tmp_path / "t.onnx")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "planted").exists()
    assert nothing_is_left(tmp_path)


def test_unsafe_files_can_be_allowed(tiny_program: Path, tmp_path: Path) -> None:
    program = rewrite(tiny_program, tmp_path / "odd.pt2", lambda _, data: data, extra="data/odd/part")
    with pytest.raises(ExportError, match="the unknown part data/odd/part"):
        export(program, tmp_path / "t.onnx")
    assert export(program, tmp_path / "t.onnx", allow_unsafe=True).shape == (16, 8, 8)


def cut_off(tiny_program: Path, path: Path) -> None:
    path.write_bytes(tiny_program.read_bytes()[:5000])


def random_bytes(_: Path, path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(5000))


def empty(_: Path, path: Path) -> None:
    path.touch()


def state_dict(_: Path, path: Path) -> None:
    torch.save(Tiny().state_dict(), path)


def other_zip(_: Path, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("folder/file", "text")


def beheaded(tiny_program: Path, path: Path) -> None:
    path.write_bytes(tiny_program.read_bytes()[1000:])


@pytest.mark.parametrize("write", [cut_off, random_bytes, empty, state_dict, other_zip, beheaded])
@pytest.mark.parametrize("allow_unsafe", [False, True])
def test_what_is_no_program_is_one_line(
    write: Callable[[Path, Path], None],
    allow_unsafe: bool,
    tiny_program: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    write(tiny_program, tmp_path / "p.pt2")
    with pytest.raises(ExportError, match=r"(cannot read|cannot load) .*p\.pt2") as caught:
        export(tmp_path / "p.pt2", tmp_path / "t.onnx", allow_unsafe=allow_unsafe)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert nothing_is_left(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_no_file(tmp_path: Path) -> None:
    for name in ("no.pt2", "no.pt"):
        with pytest.raises(ExportError, match="no such file"):
            export(tmp_path / name, tmp_path / "t.onnx")


def torchscript(_: Path, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(Tiny().eval(), torch.zeros(1, 3, 32, 32)).save(str(path))


def pickled_module(_: Path, path: Path) -> None:
    torch.save(Planted(path.parent / "planted"), path)


def old_state_dict(_: Path, path: Path) -> None:
    torch.save(Tiny().state_dict(), path, _use_new_zipfile_serialization=False)


def program(tiny_program: Path, path: Path) -> None:
    shutil.copy(tiny_program, path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (torchscript, r"TorchScript archive.*torch\.jit is deprecated.*FILE\.py:CALLABLE.*\.pt2"),
        (state_dict, r"FILE\.py:CALLABLE --weights"),
        (pickled_module, r"FILE\.py:CALLABLE --weights"),
        (old_state_dict, r"FILE\.py:CALLABLE --weights"),
        (program, r"rename it to p\.pt2"),
        (random_bytes, "not a file that torch.save wrote"),
        (empty, "not a file that torch.save wrote"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".torchscript"])
def test_other_files_of_torch_say_what_to_do(
    write: Callable[[Path, Path], None], message: str, suffix: str, tiny_program: Path, tmp_path: Path, in_table: Any
) -> None:
    write(tiny_program, tmp_path / f"p{suffix}")
    with pytest.raises(ExportError, match=message) as caught:
        export(tmp_path / f"p{suffix}", tmp_path / "t.onnx", allow_unsafe=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "planted").exists()
    assert nothing_is_left(tmp_path)
    if write in (torchscript, state_dict) and suffix == ".pt":
        what = "TorchScript" if write is torchscript else "a state dict alone"
        in_table(what, f"PyTorch {suffix}", refused=str(caught.value).replace(f"{tmp_path}/", ""))
