"""The gradient-free methods beside Score-CAM, each against its original.

tests/judges/make_family_values.py made the values, and says how; each file states its origin. The judges' maps are raw:
without the judge's normalisation and at the size of the layer.
"""

from __future__ import annotations

import importlib.util
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import correlation
from numpy.typing import NDArray
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

import ortcam
from ortcam.core.budget import HostPredictors, Limits
from ortcam.core.convention import upsample
from ortcam.core.forward import Forward
from ortcam.core.targets import Class
from ortcam.errors import LayerError, OrtcamWarning
from ortcam.exporters import export
from ortcam.methods import make_method

JUDGES = Path(__file__).parent / "judges"
Array = NDArray[np.float32]
Files = Callable[[str], Path]


def load(name: str) -> dict[str, Any]:
    with np.load(JUDGES / f"{name}.npz") as stored:
        return {key: stored[key] for key in stored.files}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(JUDGES)
        spec = importlib.util.spec_from_file_location("make_family_values", JUDGES / "make_family_values.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules.pop("make_reference_values", None)
    return module


@pytest.fixture(scope="module")
def file_of(request: pytest.FixtureRequest, script: ModuleType, models: Path) -> Files:
    """Return the model file of a name in the judges' script; it is exported at the first call."""
    made: dict[str, Path] = {}

    def find(name: str) -> Path:
        if name in ("resnet18", "lite0"):
            return request.getfixturevalue(f"{name}_file")
        if name not in made:
            module = script.make_stages() if name == "stages" else script.make_vit(name == "vit_biased")
            path = models / f"family-{name}.onnx"
            export(module, path, preprocess="imagenet", input_size=script.SIZES[name], output_kind="logits")
            made[name] = path
        return made[name]

    return find


def explain(file: Path, method: Any, photo: Path, known: dict[str, Any], name: str, **options: Any) -> Any:
    """Return the explanation of the judges' classes."""
    with ortcam.load_explainer(file, method, provider="cpu", **options) as explainer:
        return explainer.explain(photo, targets=known[f"{name}_classes"].tolist())


def assert_close(ours: Array, theirs: Array, share: float = 1e-4) -> None:
    """Maps [T,h,w] are equal within a share of the range of each: their sums are of float32, in another order."""
    assert ours.shape == theirs.shape
    for one, other in zip(ours, theirs, strict=True):
        assert np.ptp(other) > 0.01 * np.abs(other).max(), "a map this flat would prove nothing"
        assert correlation(one, other) >= 0.9999
        assert np.abs(one - other).max() <= share * np.ptp(other)


# --- CAM --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", pytest.param("lite0", marks=pytest.mark.slow)])
def test_cam_is_torchcams(file_of: Files, photos: dict[str, Path], name: str) -> None:
    """Ours is the share of each place in the logit: torchcam's over the number of places."""
    known = load("family_torchcam")
    ours = explain(file_of(name), "cam", photos["chelsea"], known, name)
    theirs = known[f"cam_{name}"]
    # A place's share is a difference of two logits, and keeps fewer digits than a sum of products.
    assert_close(ours.raw_maps * theirs[0].size, theirs, 1e-3)
    large = upsample(theirs, ours.input_size)
    low, high = (getattr(large, end)((1, 2), keepdims=True) for end in ("min", "max"))
    assert np.abs(ours.input_maps - (large - low) / (high - low)).max() < 2e-3


class Headed(nn.Module):
    """A small layer, pooled, and a head of any kind."""

    def __init__(self, *head: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.ReLU(), nn.Conv2d(12, 16, 3, 2, 1), nn.ReLU())
        self.head = nn.Sequential(*head)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.features(x).mean((2, 3)))
        return scores


@pytest.mark.slow
def test_a_normalisation_behind_the_pooling_is_part_of_the_weights(photos: dict[str, Path], models: Path) -> None:
    """f = W BatchNorm(mean A) + b, so w_kc = W_ck gamma_k / sqrt(var_k + eps)."""
    model = Headed(nn.BatchNorm1d(16), nn.Linear(16, 10))
    norm, linear = model.head
    with torch.no_grad():
        norm.weight.uniform_(0.2, 2).mul_(torch.tensor([1.0, -1.0]).repeat(8))
        norm.bias.normal_()
        norm.running_mean.uniform_(0, 0.1)
        norm.running_var.uniform_(0.01, 1)
    path = export(model, models / "norm.onnx", preprocess="imagenet", input_size=32, output_kind="logits").path
    with ortcam.load_explainer(path, "cam", provider="cpu") as explainer:
        ours = explainer.explain(photos["chelsea"], targets=[2, 7]).raw_maps
        x = torch.from_numpy(explainer.model.prepare(photos["chelsea"])[1])
    with torch.no_grad():
        weights = linear.weight * norm.weight / (norm.running_var + norm.eps).sqrt()
        theirs = torch.einsum("ck,kij->cij", weights[[2, 7]], model.features(x)[0]).numpy()
    assert_close(ours * 64, theirs, 1e-3)


NONLINEAR = {
    "perceptron": lambda: Headed(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 10)),
    "convnext": lambda: ConvNeXt([CNBlockConfig(12, 16, 1), CNBlockConfig(16, None, 1)], num_classes=10).eval(),
}


@pytest.mark.parametrize("kind", ["perceptron", pytest.param("convnext", marks=pytest.mark.slow)])
def test_a_head_that_is_not_linear_is_refused(photos: dict[str, Path], models: Path, kind: str) -> None:
    """ConvNeXt has a LayerNorm behind the pooling."""
    torch.manual_seed(0)
    model = NONLINEAR[kind]()
    if kind == "convnext":
        nn.init.normal_(model.classifier[2].weight)
    path = export(model, models / f"{kind}.onnx", preprocess="imagenet", input_size=64, output_kind="logits").path
    with ortcam.load_explainer(path, "cam", provider="cpu") as explainer, pytest.raises(LayerError) as raised:
        explainer.explain(photos["chelsea"])
    message = str(raised.value)
    assert "not a pooling and a linear head, which cam needs; use recipro-cam" in message
    assert "\n" not in message


# --- Ablation-CAM, Eigen-CAM ------------------------------------------------------------------------------------------

AFTER_RELU = [
    ("stages", "layer3"), ("stages", "layer2"), ("resnet18", "layer4"),
    pytest.param("resnet18", "layer3", marks=pytest.mark.slow),
]  # fmt: skip


@pytest.mark.parametrize(("name", "layer"), AFTER_RELU)
def test_ablation_cam_is_pytorch_grad_cams(file_of: Files, photos: dict[str, Path], name: str, layer: str) -> None:
    """The tails of layer2 and of ResNet's layer3 have convolutions."""
    known = load("family_grad_cam")
    ours = explain(file_of(name), "ablation-cam", photos["chelsea"], known, name, layer=layer)
    # A weight is the difference of two logits over a logit: both keep 6 digits, a difference of small share fewer.
    assert_close(ours.raw_maps, known[f"ablation_{name}_{layer}"], 1e-3)


@pytest.mark.parametrize(("name", "layer"), AFTER_RELU)
def test_eigen_cam_is_pytorch_grad_cams(file_of: Files, photos: dict[str, Path], name: str, layer: str) -> None:
    """The judge's sign is arbitrary. Its stored map, and ours, are large where the layer is active."""
    known = load("family_grad_cam")
    ours = explain(file_of(name), "eigen-cam", photos["chelsea"], known, name, layer=layer)
    for one in ours.raw_maps:  # the same for every class
        assert_close(one[None], known[f"eigen_{name}_{layer}"])


def test_eigen_cam_of_an_early_layer_takes_little_memory() -> None:
    """Judge: NumPy's singular value decomposition. A matrix [hw,hw] would take 127 MB here."""
    lanes = np.random.default_rng(0).normal(size=(4, 60, 66)).astype(np.float32) ** 2
    forward = Forward(np.zeros(3, np.float32), np.zeros(3, np.float32), lanes, (240, 264))
    run = ortcam.EigenCAM().begin(forward, [Class(0)], Limits(), HostPredictors())
    tracemalloc.start()
    (ours,) = run.finish().sums
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2e6
    centred = lanes.reshape(4, -1).T.astype(np.float64)
    centred -= centred.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    judge = (left[:, 0] * sizes[0]).reshape(60, 66)
    judge *= np.sign(np.vdot(judge, lanes.sum(axis=0)))
    assert np.abs(ours - judge).max() < 1e-5 * np.abs(judge).max()


# --- IS-CAM, SS-CAM ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stages", pytest.param("resnet18", marks=pytest.mark.slow)])
def test_is_cam_is_torchcams(file_of: Files, photos: dict[str, Path], name: str) -> None:
    """Its ramp accumulates: .1, .3, .6, ..., 5.5. Weights are a softmax of logits, which doubles their errors."""
    known = load("family_torchcam")
    ours = explain(file_of(name), "is-cam", photos["chelsea"], known, name)
    assert_close(ours.raw_maps, known[f"is_cam_{name}"], 1e-3)


def test_ss_cam_nears_torchcams(file_of: Files, photos: dict[str, Path], script: ModuleType) -> None:
    """Judge: 4000 samples of torchcam, and other noise than ours.

    w = softmax over k of mean_i f(x * (M_k + e_i)), with M_k the channel, min-max normalised at the layer's size and
    then enlarged bilinearly; e_i ~ N(0, sigma^2) for every pixel of the input, one value for all colours, not clipped;
    f the logit, so that f(x) cancels in the softmax. The map is the sum of w_k A_k.
    """
    known = load("family_torchcam")
    method = make_method("ss-cam", {"samples": 400, "sigma": script.SS_SIGMA})
    ours = explain(file_of("stages"), method, photos["chelsea"], known, "stages")
    for one, other in zip(ours.raw_maps, known["ss_cam_stages"], strict=True):
        assert correlation(one, other) >= 0.9999
    # The weights tell more: they differ by a few percent. Seen: r .991 to .998 (Score-CAM's: .63 to .985), and .008.
    for one, other in zip(np.log(ours.weights), np.log(known["ss_cam_weights"]), strict=True):
        assert correlation(one, other) >= 0.988
        assert np.abs(one - other).max() < 0.02


# --- Poly-CAM ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("name", ["stages", pytest.param("resnet18", marks=pytest.mark.slow)])
def test_poly_cam_is_the_authors_formula(
    file_of: Files, photos: dict[str, Path], script: ModuleType, name: str, layers: int
) -> None:
    """No package has it: `run_poly_cam` of the script is their code's formula, in PyTorch."""
    known = load("family_poly_cam")
    named = list(script.LAYERS[name][:layers])
    for variant, key in (("+", "plus"), ("-", "minus"), ("+-", "both")):
        method = make_method("poly-cam", {"variant": variant, "layers": layers})
        with ortcam.ModelExplainer(file_of(name), method, provider="cpu", layer=named) as explainer:
            ours = explainer.explain(photos["chelsea"], targets=known[f"{name}_classes"][:2].tolist())
        # Local normalisation divides small sums by small sums.
        assert_close(ours.raw_maps, known[f"{name}_{key}_{layers}"][:2], 1e-3)


def test_a_class_that_loses_nothing_has_an_empty_poly_cam(
    file_of: Files, photos: dict[str, Path], script: ModuleType
) -> None:
    """The maps of both layers nowhere overlap for the third class of the judges: their product is zero, not NaN."""
    known = load("family_poly_cam")
    target = int(known["stages_classes"][2])
    layers = list(script.LAYERS["stages"][:2])
    method = make_method("poly-cam", {"variant": "-", "layers": 2})
    explainer = ortcam.ModelExplainer(file_of("stages"), method, provider="cpu", layer=layers)
    with explainer, pytest.warns(OrtcamWarning, match="is flat"):
        ours = explainer.explain(photos["chelsea"], targets=[target])
    assert not known["stages_minus_2"][2].any()
    assert not ours.raw_maps.any()
    assert not ours.input_maps.any()


# --- Recipro-CAM ------------------------------------------------------------------------------------------------------


def test_recipro_cams_gaussian_copies_a_place_to_its_neighbours(file_of: Files, photos: dict[str, Path]) -> None:
    """Formula of the authors' code (sybyun/ReciproCAM) in PyTorch; ResNet's layer3 has convolutions in its tail.

    OpenVINO XAI multiplies the features by the kernel instead, which is another map.
    """
    known, name = load("recipro_cam_kernels"), "resnet18_layer3"
    for score, judge in (("logit", "logits"), ("probability", "softmax")):
        method = make_method("recipro-cam", {"score": score, "kernel": "gaussian"})
        ours = explain(file_of("resnet18"), method, photos["chelsea"], known, name, layer="layer3")
        assert_close(ours.raw_maps, known[f"{name}_gaussian_copy_{judge}"])
        assert correlation(ours.raw_maps, known[f"{name}_gaussian_mask_{judge}"]) < 0.99


@pytest.mark.parametrize("name", ["vit_biased", pytest.param("vit", marks=pytest.mark.slow)])
def test_recipro_cam_changes_the_tokens_of_a_transformer(file_of: Files, photos: dict[str, Path], name: str) -> None:
    """Formula in PyTorch: the class token stays, all patches but one are zero, or copies of it are weighted."""
    known = load("family_vit")
    for kernel in ("single", "gaussian"):
        for score, judge in (("logit", "logits"), ("probability", "softmax")):
            method = make_method("recipro-cam", {"score": score, "kernel": kernel})
            ours = explain(file_of(name), method, photos["chelsea"], known, name)
            assert_close(ours.raw_maps, known[f"{name}_{kernel}_{judge}"])


@pytest.mark.slow
def test_recipro_cam_of_a_transformer_is_openvino_xais(file_of: Files, photos: dict[str, Path]) -> None:
    """Judge: ViTReciproCAM of openvino_xai 1.1.0, with a single token.

    It changes the tokens behind the normalisation of the last block, where a missing token is a vector of zeros. Ours
    are changed in front of it, so a missing token becomes the bias. Without a bias, both are the same. With biases as
    large as in `vit_biased`, r is .94 to .96.
    """
    known = load("family_openvino")
    ours = explain(file_of("vit"), ortcam.ReciproCAM("logit"), photos["chelsea"], known, "vit")
    assert_close(ours.raw_maps, known["vit_single_logits"])
