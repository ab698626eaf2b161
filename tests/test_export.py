"""Exporting: what is written, that it is verified, and that nothing is left behind when it is not."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torchvision
from conftest import Tiny, correlation
from torch import nn

import ortcam
from ortcam.errors import ExportError, LayerError, ModelError, OptionError, OutputError
from ortcam.exporters import export
from ortcam.exporters.quiet import temporary_folder
from ortcam.model.cam_model import CamModel


def nothing_is_left(folder: Path) -> bool:
    return not any(folder.iterdir())


def test_the_file_keeps_the_contract(tiny: nn.Module, tmp_path: Path) -> None:
    labels = [f"name {index}" for index in range(10)]
    report = export(tiny, tmp_path / "tiny.onnx", preprocess="tf", labels=labels, input_size=32)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.onnx"]
    proto = onnx.load(report.path)
    onnx.checker.check_model(proto, full_check=True)
    assert [value.name for value in proto.graph.input] == ["image"]
    assert [value.name for value in proto.graph.output] == ["logits", "activations"]
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert not any("stack_trace" in entry.key for node in proto.graph.node for entry in node.metadata_props)
    entries = {entry.key: json.loads(entry.value) for entry in proto.metadata_props if entry.key.startswith("ortcam.")}
    assert entries["ortcam.format"] == 2
    (layer,) = entries["ortcam.layers"]
    assert layer.pop("verified").keys() == {"activations_relative_error", "places", "places_correlation"}
    assert layer == {"name": "features", "value": "relu_1", "layout": "NCHW", "output": "activations"}
    assert (entries["ortcam.task"], entries["ortcam.outputs"]) == ("classify", {"scores": "logits"})
    assert entries["ortcam.output"] == "logits"
    assert entries["ortcam.labels"] == labels
    assert entries["ortcam.preprocessing"]["height"] == 32
    assert entries["ortcam.source"]["versions"]["torch"] == torch.__version__
    assert entries["ortcam.verified"]["same_top1"] is True
    assert entries["ortcam.verified"]["batches"] == [1, 3]
    assert 0 <= entries["ortcam.verified"]["logits_relative_error"] < 1e-5
    assert report.agreement.activations is not None
    assert 0 <= report.agreement.activations < 1e-5


def test_any_runtime_can_run_the_file(tiny: nn.Module, tmp_path: Path) -> None:
    path = export(tiny, tmp_path / "tiny.onnx", input_size=32).path
    x = np.random.default_rng(1).standard_normal((4, 3, 32, 32)).astype(np.float32)
    logits, activations = ort.InferenceSession(path).run(None, {"image": x})
    with torch.no_grad():
        assert np.allclose(logits, tiny(torch.from_numpy(x)), atol=1e-5)
        assert np.allclose(activations, tiny.features(torch.from_numpy(x)), atol=1e-5)


def test_trained_lite0_agrees_with_its_source(lite0_file: Path) -> None:
    contract = CamModel(lite0_file).contract
    assert contract.verified["logits_relative_error"] <= 1e-4
    assert contract.layers[0].verified["activations_relative_error"] <= 1e-4
    assert contract.layer == "_swish"  # one ReLU6 module, called all over the network; its last call is the head's
    assert contract.labels is not None
    assert contract.labels[243] == "bull mastiff"


@pytest.mark.parametrize("opset", [18, 19, 20])
def test_every_opset_runs(tiny: nn.Module, tmp_path: Path, opset: int) -> None:
    path = export(tiny, tmp_path / "tiny.onnx", opset=opset, preprocess="raw", input_size=32).path
    assert onnx.load(path).opset_import[0].version == opset
    explanation = ortcam.ScoreCAM(path).explain(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))
    assert np.isfinite(explanation.maps).all()


def test_a_layer_that_is_a_value_or_a_module(tiny: nn.Module, tmp_path: Path) -> None:
    early = export(tiny, tmp_path / "a.onnx", layer="features.1", input_size=32)
    assert (early.layer, early.shape) == ("features.1", (8, 16, 16))
    same = export(tiny, tmp_path / "b.onnx", layer=early.contract.value, input_size=32)
    assert same.shape == (8, 16, 16)
    assert same.agreement.activations is not None  # no module was named: found among the operators' results
    before = export(tiny, tmp_path / "c.onnx", layer="features.2", input_size=32)
    assert before.agreement.activations is not None  # before its ReLU, as a hook sees it


@pytest.mark.parametrize(
    ("layer", "message"), [("feature", "nearest: features"), ("fc", "2 dimensions"), ("image", "is not in")]
)
def test_a_bad_layer(tiny: nn.Module, tmp_path: Path, layer: str, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        export(tiny, tmp_path / "tiny.onnx", layer=layer, input_size=32)
    assert nothing_is_left(tmp_path)


def test_training_mode_is_refused(tiny: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"training mode.*model\.eval\(\)"):
        export(tiny.train(), tmp_path / "tiny.onnx", input_size=32)
    tiny.eval()
    tiny.features[1].train()
    with pytest.raises(ExportError, match=r"training mode \(features\.1\)"):
        export(tiny, tmp_path / "tiny.onnx", input_size=32)
    assert nothing_is_left(tmp_path)


class DataDependent(Tiny):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.features(x)
        if features.mean() > 0:
            features = features * 2
        scores: torch.Tensor = self.fc(features.mean((2, 3)))
        return scores


class Unsupported(Tiny):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.features(x).mean((2, 3))
        scores: torch.Tensor = self.fc(torch.special.bessel_j0(features))
        return scores


@pytest.mark.parametrize(
    ("module", "message"),
    [(DataDependent, "depends on the values"), (Unsupported, "cannot be exported")],
)
def test_what_cannot_be_exported_is_one_clear_line(module: type[nn.Module], tmp_path: Path, message: str) -> None:
    with pytest.raises(ExportError, match=message) as caught:
        export(module().eval(), tmp_path / "net.onnx", input_size=32)
    assert "\n" not in str(caught.value)
    assert nothing_is_left(tmp_path)


class Detector(Tiny):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
        return {"boxes": self.features(x)}


class Segmenter(Tiny):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps: torch.Tensor = self.features(x)
        return maps


class Broken(Tiny):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise KeyError("something of the user's own")


@pytest.mark.parametrize(
    ("module", "message"),
    [(Detector, "returns dict"), (Segmenter, "expected class scores"), (Broken, "does not run on an input")],
)
def test_what_is_no_classifier(module: type[nn.Module], tmp_path: Path, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        export(module().eval(), tmp_path / "net.onnx", input_size=32)
    assert nothing_is_left(tmp_path)


def test_half_precision_weights_are_refused(tiny: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"torch\.float16 weights; expected float32"):
        export(tiny.half(), tmp_path / "tiny.onnx", input_size=32)


class RandomAtInference(Tiny):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = super().forward(x + torch.rand_like(x))
        return scores


def test_an_export_that_disagrees_is_thrown_away(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="does not agree with its source"):
        export(RandomAtInference().eval(), tmp_path / "net.onnx", input_size=32)
    assert nothing_is_left(tmp_path)


def test_an_older_file_stays_when_the_export_fails(tiny: nn.Module, tmp_path: Path) -> None:
    export(tiny, tmp_path / "net.onnx", input_size=32)
    before = (tmp_path / "net.onnx").read_bytes()
    with pytest.raises(ExportError):
        export(RandomAtInference().eval(), tmp_path / "net.onnx", input_size=32)
    assert (tmp_path / "net.onnx").read_bytes() == before


def test_large_weights_go_to_a_file_of_their_own(tiny: nn.Module, tmp_path: Path) -> None:
    path = export(tiny, tmp_path / "out" / "tiny.onnx", preprocess="raw", input_size=32, external_data_bytes=1000).path
    assert sorted(file.name for file in path.parent.iterdir()) == ["tiny.onnx", "tiny.onnx.data"]
    whole = export(tiny, tmp_path / "whole.onnx", preprocess="raw", input_size=32).path
    photo = np.random.default_rng(0).integers(0, 255, (50, 40, 3), dtype=np.uint8)
    a, b = (ortcam.ScoreCAM(file).explain(photo).maps for file in (path, whole))
    assert np.abs(a - b).max() < 1e-6
    (path.parent / "tiny.onnx.data").unlink()
    with pytest.raises(ModelError, match="cannot load"):
        ortcam.ScoreCAM(path)


class Huge(nn.Module):
    """560 million weights: 2.2 GB, more than one protobuf holds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 7, 3, 8, 1)
        self.wide = nn.Linear(7 * 16, 5_000_000, bias=False)
        self.fc = nn.Linear(20, 10)
        nn.init.normal_(self.wide.weight, std=0.01)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.conv(x)).flatten(1)
        scores: torch.Tensor = self.fc(self.wide(features).reshape(x.shape[0], 20, -1).mean(2))
        return scores


@pytest.mark.slow
def test_a_model_over_two_gigabytes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = export(Huge().eval(), tmp_path / "huge.onnx", preprocess="raw", input_size=32).path
    assert (tmp_path / "huge.onnx.data").stat().st_size > 2**31
    assert path.stat().st_size < 1_000_000
    explanation = ortcam.ScoreCAM(path).explain(np.random.default_rng(0).integers(0, 255, (50, 40, 3), dtype=np.uint8))
    assert explanation.channels == 7
    assert np.isfinite(explanation.maps).all()
    again = export(path, tmp_path / "again.onnx")  # as a file of somebody's, whose weights lie beside it
    assert (tmp_path / "again.onnx.data").stat().st_size > 2**31
    assert again.agreement.logits < 1e-5


def test_a_torchvision_source_brings_preprocessing_and_labels(tmp_path: Path) -> None:
    report = export("torchvision:squeezenet1_1", tmp_path / "s.onnx", weights="random")
    weights = torchvision.models.SqueezeNet1_1_Weights.DEFAULT
    assert report.layer == "features"
    assert report.contract.labels == tuple(weights.meta["categories"])
    preprocessing = report.contract.preprocessing
    assert preprocessing is not None
    assert (preprocessing.height, preprocessing.resize, preprocessing.interpolation) == (224, 256, "bilinear")
    assert preprocessing.mean == tuple(weights.transforms().mean)


@pytest.mark.slow
def test_a_timm_source_brings_preprocessing_and_labels(tmp_path: Path) -> None:
    report = export("timm:mobilenetv3_small_050", tmp_path / "t.onnx", weights="random", input_size=64)
    preprocessing = report.contract.preprocessing
    assert preprocessing is not None
    assert (preprocessing.height, preprocessing.resize, preprocessing.interpolation) == (64, 73, "bicubic")
    assert report.contract.labels is not None
    assert report.contract.labels[243] == "bull mastiff"


@pytest.mark.slow
def test_default_weights_that_cannot_be_downloaded_say_so(tmp_path: Path) -> None:
    """In a process of its own that can reach no network: torch would take weights that lie in its cache."""
    code = (
        "import os; os.environ['TORCH_HOME'] = os.environ['HTTPS_PROXY'] = 'http://127.0.0.1:9'\n"
        "os.environ['TORCH_HOME'] = 'empty'\n"
        "from ortcam.exporters import export\n"
        "from ortcam.errors import ExportError\n"
        "try:\n    export('torchvision:resnet18', 'r.onnx')\n"
        "except ExportError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "cannot download the weights of torchvision:resnet18" in done.stdout, done.stderr
    assert "--weights FILE" in done.stdout
    assert not (tmp_path / "r.onnx").exists()


BUILDER = """
import torch
from torch import nn
import helper_beside_it

class Net(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.conv = nn.Conv2d(3, helper_beside_it.WIDTH, 3, 2, 1)
        self.fc = nn.Linear(helper_beside_it.WIDTH, classes)
    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))

def build():
    torch.manual_seed(1)
    return Net().eval()

def training():
    return Net()

def number():
    return 5

def fails():
    raise ValueError("no such data set")
"""


@pytest.fixture
def builder(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "helper_beside_it.py").write_text("WIDTH = 6\n")
    (tmp_path / "source" / "my_model.py").write_text(BUILDER)
    return tmp_path / "source" / "my_model.py"


def test_a_callable_of_a_file_with_weights(builder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = export(f"{builder}:build", out / "a.onnx", input_size=32)
    assert first.shape == (6, 16, 16)
    state = {"state_dict": {"module.conv.weight": torch.ones(6, 3, 3, 3), "module.conv.bias": torch.zeros(6)}}
    state["state_dict"] |= {"module.fc.weight": torch.ones(10, 6), "module.fc.bias": torch.arange(10.0)}
    torch.save(state, tmp_path / "weights.pt")
    path = export(f"{builder}:build", out / "b.onnx", weights=tmp_path / "weights.pt", input_size=32).path
    logits = ort.InferenceSession(path).run(["logits"], {"image": np.zeros((1, 3, 32, 32), np.float32)})[0]
    assert np.allclose(logits, np.arange(10.0))


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("code in a weights file was run",))


@pytest.mark.parametrize(
    ("callable_name", "weights", "message"),
    [
        ("biuld", None, "nearest: build"),
        ("training", None, "training mode"),
        ("number", None, r"unknown kind \(int\); expected an nn.Module"),
        ("fails", None, "failed with ValueError: no such data set"),
        ("build", "nothing.pt", "no such file"),
        ("build", "text.pt", "expected a state dict"),
        ("build", "other.pt", "do not fit Net"),
        ("build", "malicious.pt", "cannot read the weights"),
    ],
)
def test_a_bad_callable_or_weights(
    builder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    callable_name: str,
    weights: str | None,
    message: str,
) -> None:
    (tmp_path / "text.pt").write_text("no weights")
    torch.save({"other": torch.zeros(3)}, tmp_path / "other.pt")
    torch.save(Malicious(), tmp_path / "malicious.pt")
    with pytest.raises(ExportError, match=message) as caught:
        export(
            f"{builder}:{callable_name}",
            tmp_path / "out" / "net.onnx",
            weights=None if weights is None else tmp_path / weights,
            input_size=32,
        )
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert "was run" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("torchvision:resnet19", "nearest: resnet"),
        ("torchvision:fasterrcnn_resnet50_fpn", "no classifier"),
        ("timm:resnet19", "nearest: resnet"),
        ("nothing.py:build", "no such file"),
        ("no.such.package:build", "cannot import"),
        ("resnet18", "unknown kind"),
        ("model.pkl", "it is a pickle"),
        (42, "unknown kind"),
        (None, "unknown kind"),
    ],
)
def test_a_source_that_does_not_exist(source: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message):
        export(source, tmp_path / "net.onnx")
    assert nothing_is_left(tmp_path)


def test_bad_options(tiny: nn.Module, tmp_path: Path) -> None:
    for options, message in (
        ({"opset": 17}, "expected 18, 19, 20"),
        ({"input_size": 0}, "input_size"),
        ({"input_size": (1, 2, 3)}, "input_size"),
        ({"preprocess": "imagnet"}, "nearest: imagenet"),
        ({"labels": tmp_path / "nothing.txt"}, "cannot read the labels"),
        ({"labels": 5}, "not a list of names"),
        ({"labels": {1: "a", 2: "b"}}, "no index 0"),
        ({"layer": None}, "expected a name"),
        ({"preprocess": {"height": 32}}, "no width"),
        ({"opset": "20"}, "expected 18, 19, 20"),
    ):
        with pytest.raises(OptionError, match=message):
            export(tiny, tmp_path / "net.onnx", **{"input_size": 32, **options})
    with pytest.raises(OptionError, match=r"ends in \.onnx"):
        export(tiny, tmp_path / "net.pb", input_size=32)
    with pytest.raises(ExportError, match="3 labels were given, but the model has 10 classes"):
        export(tiny, tmp_path / "net.onnx", labels=["a", "b", "c"], input_size=32)
    assert nothing_is_left(tmp_path)


NAMES = [f"l{i}" for i in range(10)]


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(NAMES),
        "\ufeff" + "\n\n".join(NAMES) + "\n\n",
        json.dumps(NAMES),
        json.dumps(dict(reversed(list(enumerate(NAMES))))),
    ],
)
def test_label_files(tiny: nn.Module, tmp_path: Path, text: str) -> None:
    (tmp_path / "labels.txt").write_text(text)
    report = export(tiny, tmp_path / "net.onnx", labels=tmp_path / "labels.txt", input_size=32)
    assert report.contract.labels == tuple(NAMES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"1": "a", "2": "b"}', "no index 0"),
        ('["a", "b",]', "not valid JSON"),
        ("[1, 2]", "not a list of names"),
        ("", "not a list of names"),
    ],
)
def test_bad_label_files(tiny: nn.Module, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(OptionError, match=message):
        export(tiny, tmp_path / "net.onnx", labels=tmp_path / "labels.json", input_size=32)


class SameName(Tiny):
    """Functions whose values the exporter names as modules that do something else."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(3, 16, 3)
        self.first = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = torch.relu(self.conv(x)).mean((2, 3))
        scores: torch.Tensor = self.fc(self.relu(self.first(pooled)))
        return scores


class ListBackbone(Tiny):
    def __init__(self) -> None:
        super().__init__()

        class Backbone(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(3, 16, 3)

            def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
                return [x, torch.relu(self.conv(x))]

        self.backbone = Backbone()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.fc(self.backbone(x)[1].mean((2, 3)))
        return scores


class DoubleScores(Tiny):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).double()


class AttentionFirst(Tiny):
    """A convolution of two channels that is registered before the one that sees the photo."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.attention = nn.Conv2d(2, 1, 7, padding=3)
        self.conv = nn.Conv2d(3, 16, 3)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv(x))
        gate = self.attention(torch.cat([x.amax(1, True), x.mean(1, True)], 1)).sigmoid()
        scores: torch.Tensor = self.fc((x * gate).mean((2, 3)))
        return scores


class GreyInside(Tiny):
    """Takes RGB and makes it grey itself."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.mean(1, keepdim=True))


@pytest.mark.parametrize(
    ("module", "layer", "channels"),
    [
        (SameName, "auto", 16),
        (ListBackbone, "backbone", 16),
        (DoubleScores, "auto", 16),
        (AttentionFirst, "auto", 16),
        (GreyInside, "auto", 16),
    ],
)
def test_odd_modules_are_exported_and_explained(
    module: type[nn.Module], layer: str, channels: int, tmp_path: Path
) -> None:
    report = export(module().eval(), tmp_path / "net.onnx", layer=layer, preprocess="imagenet", input_size=32)
    assert report.shape[0] == channels
    assert report.contract.preprocessing is not None
    assert report.contract.preprocessing.channel_count == 3
    assert report.agreement.activations is not None
    assert report.agreement.activations < 1e-5
    photo = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    assert np.isfinite(ortcam.ScoreCAM(report.path).explain(photo).maps).all()


def test_a_grey_network_gets_grey_photos(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    report = export(module, tmp_path / "grey.onnx", preprocess="tf", input_size=32)
    assert report.contract.preprocessing is not None
    assert report.contract.preprocessing.channels == "GRAY"
    assert ortcam.ScoreCAM(report.path).model.prepare(np.zeros((40, 40, 3), np.uint8))[1].shape == (1, 1, 32, 32)


def test_the_random_numbers_of_the_caller_stay(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    export("torchvision:squeezenet1_1", tmp_path / "s.onnx", weights="random", input_size=64)
    assert torch.equal(torch.rand(3), expected)


def test_an_output_that_cannot_be_written(tiny: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        export(tiny, tmp_path / "file" / "net.onnx", input_size=32)
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(OutputError, match="is a directory"):
        export(tiny, tmp_path / "folder.onnx", input_size=32)


@pytest.mark.slow
def test_float16_halves_the_file_and_keeps_the_map(
    lite0: nn.Module, lite0_file: Path, photos: dict[str, Path], tmp_path: Path
) -> None:
    """A trained network: r >= 0.999 against float32, the same class, and the agreement is in the report.

    All masks are scored: under a budget, float16's rounding may flip which masks are chosen, and then
    two maps differ by the error of the budget, not by that of float16.
    """
    report = export(lite0, tmp_path / "half.onnx", preprocess="lite", labels="imagenet", precision="fp16")
    assert report.path.stat().st_size < 0.6 * lite0_file.stat().st_size
    assert 1e-5 < report.agreement.logits < 2e-2
    assert report.contract.source["precision"] == "fp16"
    whole, half = (ortcam.ScoreCAM(path).explain(photos["chelsea"]) for path in (lite0_file, report.path))
    assert half.targets[0].index == whole.targets[0].index
    assert correlation(half.input_maps, whole.input_maps) >= 0.999


def test_float16_refuses_what_it_cannot_do(tiny: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="expected fp32 or fp16"):
        export(tiny, tmp_path / "a.onnx", input_size=32, precision="int8")
    with pytest.raises(ExportError, match="external weights"):
        export(tiny, tmp_path / "a.onnx", input_size=32, precision="fp16", external_data_bytes=10)
    assert not list(tmp_path.iterdir())


def test_no_folder_for_temporary_files(tiny: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch, TensorFlow and JAX write temporary files; where they cannot, torch speaks of artifacts."""
    missing = str(tmp_path / "missing")
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [missing])
    for source in (tiny, "net.keras", "net.tflite", "frozen.pb"):
        with pytest.raises(ExportError, match=r"temporary files: No usable .*/missing.*; set TMPDIR to a folder"):
            export(source, tmp_path / "net.onnx")
    monkeypatch.setattr(tempfile, "tempdir", missing)  # found when the process began, gone since
    with pytest.raises(ExportError, match=r"needs a folder for temporary files: .*; set TMPDIR"), temporary_folder():
        pass
