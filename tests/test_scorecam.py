"""The engine: what it sees in real photos, and what must not change its maps."""

from __future__ import annotations

import io
import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torchvision
from conftest import FlatLayer, sharpened
from PIL import Image
from torch import nn

import ortcam
from ortcam.core.device import Device
from ortcam.core.query import Rows
from ortcam.core.targets import Class
from ortcam.errors import ImageError, ModelError, OptionError, OrtcamWarning, ProviderError, TargetError
from ortcam.exporters import export
from ortcam.graph.scoring import build_scoring_graph
from ortcam.model.cam_model import CamModel
from ortcam.model.image import read_photo
from ortcam.runtime.batches import batch_sizes
from ortcam.runtime.surrogate import DeviceSurrogates


@pytest.fixture(scope="module")
def small(resnet18_file: Path) -> ortcam.ScoreCAM:
    return ortcam.ScoreCAM(resnet18_file)


# The 20 photos of foolbox carry their ImageNet class in the file name. EfficientNet-Lite0 is right on 18 when Pillow
# resizes them, and on 17 here: one lies on the edge, and Pillow rounds to 8 bits between its two passes.
@pytest.mark.slow
def test_lite0_sees_what_is_in_the_photos(lite0_file: Path, photos: dict[str, Path]) -> None:
    cam = ortcam.ScoreCAM(lite0_file)
    labelled = [path for name, path in photos.items() if name.startswith("imagenet")]
    right = 0
    for explanation, path in zip(cam.explain_batch(labelled), labelled, strict=True):
        right += explanation.targets[0].index == int(path.stem.rsplit("_", 1)[1])
        assert explanation.maps.max() > 0.95
        assert explanation.input_maps.std() > 0.1
    assert right >= 17


def test_the_map_lies_on_the_object(lite0_file: Path, photos: dict[str, Path]) -> None:
    """imagenet_00 shows a bull mastiff (243), its head left of the middle: rows 170-340, columns 120-310 of 512."""
    explanation = ortcam.ScoreCAM(lite0_file).explain(photos["imagenet_00"])
    assert explanation.targets[0].index == 243
    assert explanation.targets[0].label == "bull mastiff"
    assert explanation.targets[0].probability > 0.5
    assert explanation.live < explanation.channels == 1280
    assert explanation.scored < explanation.live  # channels active in the same single place share a mask
    saliency = explanation.maps[0]
    assert saliency.shape == (512, 512)
    inside = saliency[170:340, 120:310].mean()
    assert inside > 0.7
    assert inside > 3 * saliency[380:, 330:].mean()


@pytest.mark.slow
def test_the_batch_size_changes_nothing(resnet18_file: Path, photos: dict[str, Path]) -> None:
    maps = [
        ortcam.ScoreCAM(resnet18_file, batch_size=size).explain(photos["chelsea"]).input_maps
        for size in (1, 7, 16, 600)
    ]
    for other in maps[1:]:
        assert np.abs(other - maps[0]).max() < 1e-4  # float32 convolutions of another batch round differently


def test_batches_are_even_and_nothing_is_run_twice() -> None:
    assert batch_sizes(40, 16, "none") == [14, 13, 13]
    assert batch_sizes(40, 16, "full") == [16, 16, 16]
    assert batch_sizes(40, 16, "few") == [16, 16, 16]
    assert [batch_sizes(count, 24, "few") for count in (1, 3, 4, 17, 24, 25)] == [[1], [4], [4], [24], [24], [24, 24]]
    assert batch_sizes(40, 16, "powers") == [16, 16, 8]
    assert batch_sizes(90, 64, "powers") == [64, 16, 8, 2]
    assert batch_sizes(1926, 512, "powers") == [512, 512, 512, 256, 128, 8]
    for count in range(1, 300):
        assert count <= sum(batch_sizes(count, 48, "powers")) <= count + 6
    for count in range(70):
        sizes = batch_sizes(count, 16, "none")
        assert sum(sizes) == count
        assert len(sizes) == -(-count // 16)
        assert not sizes or max(sizes) - min(sizes) <= 1


@pytest.mark.slow
def test_a_padded_last_batch_changes_nothing(
    small: ortcam.ScoreCAM, resnet18_file: Path, photos: dict[str, Path]
) -> None:
    """Providers that want one shape get the last batch filled up."""
    padded = ortcam.ScoreCAM(resnet18_file, batch_size=100)
    scorer = padded._running.get()._whole
    for scorer._padding in ("full", "few", "powers"):
        assert np.abs(padded.explain(photos["chelsea"]).maps - small.explain(photos["chelsea"]).maps).max() < 1e-4


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory that Linux keeps")
def test_peak_memory_does_not_grow_with_the_photos(lite0_file: Path, photos: dict[str, Path]) -> None:
    """In a process of its own: the peak after six photos, with other numbers of live channels, over that after one."""
    code = (
        "import sys, ortcam\n"
        "cam, peaks = ortcam.ScoreCAM(sys.argv[1]), []\n"
        "for photo in sys.argv[2:]:\n"
        "    cam.explain(photo)\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    peaks.append(int(next(line for line in lines if line.startswith('VmHWM')).split()[1]))\n"
        "print(peaks[-1] / peaks[0])"
    )
    names = ["imagenet_00", "imagenet_03", "chelsea", "coffee", "imagenet_05", "imagenet_16"]
    arguments = [sys.executable, "-c", code, str(lite0_file), *(str(photos[name]) for name in names)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert float(done.stdout) <= 1.10


def test_several_targets_come_from_the_same_passes(small: ortcam.ScoreCAM, photos: dict[str, Path]) -> None:
    together = small.explain(photos["chelsea"], targets=[3, 500, 7])
    assert [target.index for target in together.targets] == [3, 500, 7]
    assert together.scored <= together.live
    for row, index in enumerate([3, 500, 7]):
        alone = small.explain(photos["chelsea"], targets=index)
        assert np.array_equal(alone.weights[0], together.weights[row])
        assert np.abs(alone.maps[0] - together.maps[row]).max() < 1e-5  # BLAS may add up one row in another order


def test_top_k_is_in_the_order_of_probability(
    small: ortcam.ScoreCAM, resnet18: nn.Module, photos: dict[str, Path]
) -> None:
    explanation = small.explain(photos["chelsea"], top_k=4)
    with torch.no_grad():
        scores = torch.softmax(resnet18(torch.from_numpy(small.model.prepare(photos["chelsea"])[1])), 1)[0]
    values, indices = scores.topk(4)
    assert [target.index for target in explanation.targets] == indices.tolist()
    assert np.allclose([target.probability for target in explanation.targets], values, rtol=1e-4)


def test_a_photo_is_explained_alike_in_every_form(small: ortcam.ScoreCAM, photos: dict[str, Path]) -> None:
    path = photos["imagenet_03"]
    explain = partial(small.explain, budget=32)
    from_path = explain(path)
    _, tensor, _ = small.model.prepare(path)
    assert np.array_equal(explain(read_photo(path)).maps, from_path.maps)
    assert np.array_equal(explain(Image.fromarray(read_photo(path))).maps, from_path.maps)
    from_tensor = explain(tensor)
    assert np.array_equal(from_tensor.input_maps, from_path.input_maps)
    assert from_tensor.maps.shape == (1, 96, 96)
    assert np.array_equal(explain(torch.from_numpy(tensor)).maps, from_tensor.maps)
    assert np.array_equal(explain(tensor[0]).maps, from_tensor.maps)


def test_only_indices_go_up_and_scores_come_down(resnet18_file: Path) -> None:
    """The scoring graph has no input of the size of a masked batch and no output of that size."""
    model = CamModel(resnet18_file)
    graph = build_scoring_graph(model.take_proto(), model.contract, "logits").graph
    per_row = {
        value.name: [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim]
        for value in graph.input
        if any(dim.dim_param == "ortcam.B" for dim in value.type.tensor_type.shape.dim)
    }
    assert per_row == {
        "ortcam.channels": ["ortcam.B"],
        "ortcam.affine": ["ortcam.B", 3, 1, 1],
        "ortcam.targets": ["ortcam.B", "ortcam.T"],
    }
    onnx.checker.check_model(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)]))


def test_the_batch_of_masked_images_is_known_throughout(resnet18_file: Path) -> None:
    """Else ONNX Runtime copies the shortcut of every residual block before it adds to it: 7 % of ResNet-50's time."""
    model = CamModel(resnet18_file)
    proto = onnx.shape_inference.infer_shapes(build_scoring_graph(model.take_proto(), model.contract, "logits"))
    batch = {value.name: value.type.tensor_type.shape.dim[0].dim_param for value in proto.graph.value_info}
    sums = [node for node in proto.graph.node if node.op_type == "Add" and not node.name.startswith("ortcam.")]
    assert len(sums) == 8
    assert {batch[name] for node in sums for name in (*node.input, *node.output)} == {batch["image"]} != {""}


def test_the_logits_are_the_models_own(small: ortcam.ScoreCAM, resnet18: nn.Module, photos: dict[str, Path]) -> None:
    """A masked pass of the graph is the network's score of the masked image; here masks that torch makes."""
    _, tensor, _ = small.model.prepare(photos["coffee"])
    x = torch.from_numpy(tensor)
    group = small._running.get().forward(tensor)
    plain = group.passes[0]
    masks = small.convention.masks(plain.activations, plain.size)
    channels = np.flatnonzero(masks.live)[:5]
    rows = Rows(np.zeros(5, np.int64), channels, masks.affine[channels], np.tile([1, 2], (5, 1)))
    scored = small._running.get().score(group, rows, small.method.change)
    with torch.no_grad():
        up = nn.functional.interpolate(
            torch.from_numpy(plain.activations[channels])[:, None], (96, 96), mode="bilinear"
        )
        low, high = up.amin((2, 3), keepdim=True), up.amax((2, 3), keepdim=True)
        scores = resnet18(x * (up - low) / (high - low))
    assert np.allclose(scored.logits, scores[:, 1:3], rtol=1e-4, atol=1e-4 * float(scores.abs().max()))
    assert np.allclose(scored.log_probabilities, torch.log_softmax(scores, 1)[:, 1:3], atol=1e-3)


@pytest.mark.parametrize(("height", "width"), [(64, 160), (160, 64)])
def test_inputs_need_not_be_square(
    resnet18: nn.Module, models: Path, photos: dict[str, Path], height: int, width: int
) -> None:
    path = export(resnet18, models / f"r{height}.onnx", preprocess="imagenet", input_size=(height, width)).path
    explanation = ortcam.ScoreCAM(path).explain(photos["china"])
    assert explanation.input_maps.shape == (1, height, width)
    assert explanation.raw_maps.shape == (1, height // 32, width // 32)
    assert explanation.maps.shape == (1, *read_photo(photos["china"]).shape[:2])
    assert explanation.maps.max() > 0.9


@pytest.mark.slow
def test_an_early_layer_of_vgg(models: Path, photos: dict[str, Path]) -> None:
    """conv3_3 of VGG-16 after its ReLU: 256 channels of 24x24 at 96x96, before two more poolings."""
    torch.manual_seed(0)
    vgg = sharpened(torchvision.models.vgg11(weights=None), 4.0)
    report = export(vgg, models / "vgg11-early.onnx", layer="features.9", preprocess="imagenet", input_size=96)
    assert report.shape == (256, 24, 24)
    explanation = ortcam.ScoreCAM(report.path).explain(photos["chelsea"])
    assert explanation.raw_maps.shape == (1, 24, 24)
    assert explanation.input_maps.std() > 0.05


class WithHead(nn.Module):
    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.body(x))
        return scores


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["official", "paper", "torchcam"])
def test_a_final_softmax_is_seen_through(
    small: ortcam.ScoreCAM, resnet18: nn.Module, resnet18_file: Path, models: Path, photos: dict[str, Path], preset: str
) -> None:
    """The same network with and without its softmax has the same maps: logits are taken before it."""
    report = export(WithHead(resnet18, nn.Softmax(1)), models / "softmax.onnx", preprocess="imagenet", input_size=96)
    assert report.contract.output == "probabilities"
    ours = ortcam.ScoreCAM(report.path, preset=preset).explain(photos["chelsea"], targets=[3, 500])
    plain = ortcam.ScoreCAM(resnet18_file, preset=preset).explain(photos["chelsea"], targets=[3, 500])
    assert np.abs(ours.input_maps - plain.input_maps).max() < 1e-3
    for a, b in zip(ours.targets, plain.targets, strict=True):
        assert a.logit == pytest.approx(b.logit, rel=1e-4)
        assert a.probability == pytest.approx(b.probability, rel=1e-3)


@pytest.mark.slow
def test_tf_keras_vis_takes_a_softmax_of_the_softmax(
    resnet18: nn.Module, models: Path, photos: dict[str, Path]
) -> None:
    module = WithHead(resnet18, nn.Softmax(1))
    path = export(module, models / "double.onnx", preprocess="imagenet", input_size=96).path
    cam = ortcam.ScoreCAM(path, preset="tf-keras-vis")
    explanation = cam.explain(photos["chelsea"], targets=3)
    _, tensor, _ = cam.model.prepare(photos["chelsea"])
    plain = cam._running.get().forward(tensor).passes[0]
    masks = cam.convention.masks(plain.activations, plain.size)
    channel = int(np.flatnonzero(masks.live)[0])
    up = nn.functional.interpolate(
        torch.from_numpy(plain.activations[channel])[None, None], (96, 96), mode="bilinear", align_corners=True
    )
    mask = (up - up.min()) / (up.max() - up.min() + 1e-7)
    with torch.no_grad():
        twice = torch.softmax(module(torch.from_numpy(tensor) * mask), 1)[0, 3]
    assert explanation.weights[0, channel] == pytest.approx(float(twice), rel=1e-4)


class ConvolutionalHead(nn.Module):
    """A head that ends in a softmax over [B,N,1,1], flattened after it."""

    def __init__(self, resnet18: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*list(resnet18.children())[:-1])
        self.head = nn.Conv2d(512, 1000, 1)
        self.head.weight.data = resnet18.fc.weight.data[:, :, None, None].clone()
        self.head.bias.data = resnet18.fc.bias.data.clone()
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.head(self.body(x)), 1).flatten(1)


@pytest.mark.slow
def test_a_softmax_before_a_flatten_is_seen_through(
    small: ortcam.ScoreCAM, resnet18: nn.Module, models: Path, photos: dict[str, Path]
) -> None:
    path = export(ConvolutionalHead(resnet18), models / "head.onnx", preprocess="imagenet", input_size=96).path
    cam = ortcam.ScoreCAM(path, preset="paper")
    ours = cam.explain(photos["chelsea"], targets=3)
    theirs = ortcam.ScoreCAM(small.model.path, preset="paper").explain(photos["chelsea"], targets=3)
    assert ours.targets[0].logit == pytest.approx(theirs.targets[0].logit, rel=1e-4)
    assert np.abs(ours.input_maps - theirs.input_maps).max() < 1e-3


@pytest.mark.slow
def test_a_sigmoid_weighs_by_its_own_probability(resnet18: nn.Module, models: Path, photos: dict[str, Path]) -> None:
    module = WithHead(resnet18, nn.Sigmoid())
    report = export(module, models / "sigmoid.onnx", preprocess="imagenet", input_size=96)
    assert report.contract.output == "sigmoid"
    cam = ortcam.ScoreCAM(report.path)
    explanation = cam.explain(photos["chelsea"], targets=[3, 500])
    _, tensor, _ = cam.model.prepare(photos["chelsea"])
    with torch.no_grad():
        probabilities = module(torch.from_numpy(tensor))[0, [3, 500]]
    assert np.allclose([target.probability for target in explanation.targets], probabilities, rtol=1e-4)
    assert explanation.weights.max() <= 1
    assert explanation.weights.sum(axis=1).min() > 1  # sigmoids of one channel do not share one whole


@pytest.mark.parametrize("preset", ortcam.PRESETS)
def test_a_flat_layer_gives_a_zero_map_and_a_warning(models: Path, photos: dict[str, Path], preset: str) -> None:
    path = export(FlatLayer(), models / "flat.onnx", preprocess="raw", input_size=32).path
    with pytest.warns(OrtcamWarning, match="flat"):
        explanation = ortcam.ScoreCAM(path, preset=preset).explain(photos["chelsea"], targets=[0, 1])
    assert explanation.live == 0
    assert (explanation.maps == 0).all()
    assert explanation.flat == (True, True)
    assert np.isfinite(explanation.weights).all()


def test_one_by_one_photo(small: ortcam.ScoreCAM) -> None:
    explanation = small.explain(np.full((1, 1, 3), 90, np.uint8))
    assert explanation.maps.shape == (1, 1, 1)
    assert np.isfinite(explanation.maps).all()


def test_a_batch_goes_on_after_a_bad_photo(small: ortcam.ScoreCAM, photos: dict[str, Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_text("no photo")
    failed: list[tuple[object, str]] = []
    done = list(
        small.explain_batch(
            [photos["chelsea"], bad, photos["coffee"]], on_error=lambda image, error: failed.append((image, str(error)))
        )
    )
    assert len(done) == 2
    assert failed[0][0] == bad
    assert "not an image" in failed[0][1]
    with pytest.raises(ImageError, match=r"bad\.jpg"):
        list(small.explain_batch([bad, photos["coffee"]]))


def test_a_batch_is_streamed(small: ortcam.ScoreCAM, photos: dict[str, Path]) -> None:
    taken: list[str] = []

    def names() -> object:
        for name in ("chelsea", "coffee", "astronaut", "camera"):
            taken.append(name)
            yield photos[name]

    stream = small.explain_batch(names())
    next(stream)
    assert taken == ["chelsea", "coffee"]  # the one in hand, and the next, which is decoded meanwhile
    next(stream)
    assert taken == ["chelsea", "coffee", "astronaut"]


@pytest.mark.slow
@pytest.mark.parametrize("budget", [None, 8])
def test_what_came_before_a_fault_of_the_callers_is_explained(
    small: ortcam.ScoreCAM, photos: dict[str, Path], budget: int | None
) -> None:
    """With a small budget several photos are a group: the fault may come in the middle of one."""

    def images(count: int) -> Iterator[Path]:
        yield from itertools.repeat(photos["chelsea"], count)
        raise RuntimeError("the disk")

    for count in (0, 1, 2, 3):
        done = []
        with pytest.raises(RuntimeError, match="the disk"):
            for explanation in small.explain_batch(images(count), budget=budget):
                done.append(explanation.targets[0].index)  # noqa: PERF401 - what comes before the fault
        assert len(done) == count


def test_a_picture_that_cannot_be_decoded_is_an_error_of_its_own(
    small: ortcam.ScoreCAM, photos: dict[str, Path], tmp_path: Path
) -> None:
    """Pillow decodes when the pixels are asked for."""
    (tmp_path / "cut.jpg").write_bytes(photos["china"].read_bytes()[:5000])
    closed = Image.open(photos["chelsea"])
    closed.close()

    class Broken:
        def __array__(self, *_: object, **__: object) -> np.ndarray:
            raise ValueError("no pixels here")

    bad = [Image.open(tmp_path / "cut.jpg"), closed, Broken(), "a\0b.jpg"]
    failed: list[str] = []
    images = [photos["chelsea"], *bad, photos["coffee"]]
    done = list(small.explain_batch(images, budget=8, on_error=lambda _, error: failed.append(str(error))))
    assert len(done) == 2
    for message, expected in zip(failed, ("truncated", "closed image", "no pixels here", "null byte"), strict=True):
        assert expected in message


def test_nothing_is_decoded_any_more_when_a_photo_fails(small: ortcam.ScoreCAM, photos: dict[str, Path]) -> None:
    """Also while the error is kept."""
    with pytest.raises(ImageError, match=r"missing\.jpg") as kept:
        list(small.explain_batch([photos["chelsea"], "missing.jpg", photos["coffee"], photos["camera"]]))
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("ortcam-decode")]
    assert kept.value is not None


def test_groups_side_by_side_give_the_same_maps_in_the_same_order(resnet18_file: Path, photos: dict[str, Path]) -> None:
    """As on CUDA: two groups at once, the photos of each chosen for together; here the CPU runs it."""
    names = [name for name in photos if name.startswith("imagenet")][:10]
    images = [*(photos[name] for name in names[:5]), "missing.jpg", *(photos[name] for name in names[5:])]
    cam = ortcam.ScoreCAM(resnet18_file, batch_size=12)  # three photos a group
    failed: list[object] = []
    expected = list(cam.explain_batch(images, budget=20, on_error=lambda image, _: failed.append(image)))
    classifier = cam._running.get()
    classifier.frees_processor, classifier._predictors = True, DeviceSurrogates(Device()).group
    done: list[float] = []
    beside = list(
        cam.explain_batch(images, budget=20, on_error=lambda image, _: failed.append(image), on_progress=done.append)
    )
    assert failed == ["missing.jpg"] * 2
    assert done == [3, 6, 9, 11]
    assert [one.source for one in beside] == [one.source for one in expected] == [photos[name] for name in names]
    for ours, theirs in zip(beside, expected, strict=True):
        assert np.abs(ours.input_maps - theirs.input_maps).max() < 1e-3
    with pytest.raises(ImageError, match=r"missing\.jpg"):
        list(cam.explain_batch(images, budget=20))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (1000, "out of range; resnet18.onnx has 1000 classes"),
        (-1, "out of range"),
        ([], "empty"),
        ("cat", "has no labels"),
        (1.5, "expected"),
        (np.array([3, 1000]), "out of range"),
        ("--5", "has no labels"),
        ("9" * 5000, "9\\.\\.\\.' is unknown"),
        (["all", 3], "give 'all' alone"),
        ([np.array([1, 2])], "expected a class index"),
        ([True], "expected a class index"),
        ([None], "expected a class index"),
    ],
)
def test_bad_targets(small: ortcam.ScoreCAM, photos: dict[str, Path], targets: object, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        small.explain(photos["chelsea"], targets=targets)


def test_a_wrong_target_fails_once_for_many_photos(small: ortcam.ScoreCAM, photos: dict[str, Path]) -> None:
    failed: list[object] = []
    paths = [photos["chelsea"], photos["coffee"]]
    with pytest.raises(TargetError, match="9999 is out of range"):
        list(small.explain_batch(paths, targets=9999, on_error=lambda path, _: failed.append(path)))
    assert not failed


def test_labels_name_targets(lite0_file: Path) -> None:
    model = CamModel(lite0_file)

    def indices(targets: object) -> list[int]:
        return [one.index for one in model.resolve_targets(targets, 1000) or ()]

    assert indices(["tiger cat", "Bull Mastiff", 5, "285"]) == [282, 243, 5, 285]
    assert indices("sea lion") == [150]
    assert indices(["tench", 0]) == [0]
    with pytest.raises(TargetError, match="nearest: tiger cat"):
        model.resolve_targets("tigr cat", 1000)
    with pytest.raises(TargetError, match=r"labels with 'cat' in them: tabby cat, tiger cat, .* and \d+ more$"):
        model.resolve_targets("cat", 1000)  # words first: `alley cat` before `catamaran`
    with pytest.raises(TargetError, match=r"labels with 'Retriever' in them: .*golden retriever"):
        model.resolve_targets("Retriever", 1000)
    with pytest.raises(TargetError, match=r"names the classes \[134, 517\]"):
        model.resolve_targets("crane", 1000)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((5, 5, 3), np.float32), "expected \\[1, 3, 96, 96\\]"),
        (np.zeros((2, 3, 96, 96), np.float32), "expected \\[1, 3, 96, 96\\]"),
        (np.full((1, 3, 96, 96), np.nan, np.float32), "NaN"),
        (np.zeros((5, 5, 2), np.uint8), "expected an RGB photo"),
        (np.zeros((0, 5, 3), np.uint8), "no pixels"),
        (np.zeros((5, 5, 3), np.int64), "dtype int64"),
        (42, "is a int"),
        (io.BytesIO(b"a file"), "is not an image that can be decoded"),
        (None, "is a NoneType"),
    ],
)
def test_bad_images(small: ortcam.ScoreCAM, image: object, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        small.explain(image)


def test_numbers_of_every_type_are_taken(small: ortcam.ScoreCAM, resnet18_file: Path) -> None:
    for targets in (np.array(3), np.int64(3), torch.tensor(3), [torch.tensor(3)], np.array([3]), "3", ["3"], (3, 3)):
        assert small.model.resolve_targets(targets, 1000) == (Class(3),)
    assert small.model.resolve_targets(torch.tensor([3, 1]), 1000) == (Class(3), Class(1))
    assert ortcam.ScoreCAM(resnet18_file, batch_size=np.int64(4)).batch_size == 4


def test_a_photo_opened_with_pillow_is_the_photo_in_the_file(
    small: ortcam.ScoreCAM, photos: dict[str, Path], tmp_path: Path
) -> None:
    photo = Image.open(photos["chelsea"]).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(tmp_path / "turned.png", exif=exif)
    clear = photo.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(photo.size))
    clear.save(tmp_path / "clear.png")
    Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    photo.convert("P").save(tmp_path / "palette.png")
    for name in ("turned", "clear", "deep", "palette"):
        path = tmp_path / f"{name}.png"
        assert np.array_equal(small.model.prepare(Image.open(path))[0], read_photo(path)), name


def test_tensors_of_torch_are_taken(small: ortcam.ScoreCAM, photos: dict[str, Path]) -> None:
    tensor = torch.from_numpy(small.model.prepare(photos["chelsea"])[1])
    plain = small.model.prepare(tensor)[1]
    assert np.array_equal(small.model.prepare(tensor.clone().requires_grad_())[1], plain)
    assert np.abs(small.model.prepare(tensor.bfloat16())[1] - plain).max() < 0.02


def test_bad_options(resnet18_file: Path, small: ortcam.ScoreCAM, photos: dict[str, Path]) -> None:
    for options in (
        {"batch_size": 0},
        {"batch_size": 1.5},
        {"batch_size": True},
        {"batch_size": "Auto"},
        {"threads": -1},
        {"preset": "offical"},
        {"preset": ["official"]},
    ):
        with pytest.raises(OptionError):
            ortcam.ScoreCAM(resnet18_file, **options)
    for top_k in (0, 1.5, "2", None):
        for targets in (None, [3]):
            with pytest.raises(OptionError, match="top_k"):
                small.explain(photos["chelsea"], targets, top_k=top_k)
    assert ortcam.ScoreCAM(resnet18_file, threads=2**40).batch_size == 8  # no more than there are processors
    with pytest.raises(OptionError, match="use explain"):
        next(small.explain_batch("photo.jpg"))
    with pytest.raises(ProviderError, match="expected a name"):
        ortcam.ScoreCAM(resnet18_file, provider=None)
    with pytest.raises(ModelError, match="expected the path"):
        ortcam.ScoreCAM(None)
    with pytest.raises(ProviderError, match="nearest: cuda"):
        ortcam.ScoreCAM(resnet18_file, provider="cud")
    with pytest.raises(ProviderError, match=r"does not load.*ortcam\[gpu\]"):
        ortcam.ScoreCAM(resnet18_file, provider="cuda")


def test_onnx_runtimes_own_provider_names_work(resnet18_file: Path) -> None:
    assert ortcam.ScoreCAM(resnet18_file, provider="CPUExecutionProvider").provider == "cpu"


def test_bad_model_files(lite0_file: Path, tmp_path: Path) -> None:
    whole = lite0_file.read_bytes()
    files = {
        "empty.onnx": b"",
        "random.onnx": np.random.default_rng(0).bytes(5000),
        "text.onnx": b"no model at all\n",
        **{f"cut{share}.onnx": whole[: len(whole) * share // 100] for share in (1, 50, 90, 99)},
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ModelError) as caught:
            ortcam.ScoreCAM(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="no such file"):
        ortcam.ScoreCAM(tmp_path / "nothing.onnx")
    with pytest.raises(ModelError, match="is a directory"):
        ortcam.ScoreCAM(tmp_path)


def test_a_model_without_an_exposed_layer_says_how_to_expose_one(resnet18_file: Path, tmp_path: Path) -> None:
    proto = onnx.load(resnet18_file)
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "plain.onnx")
    with pytest.raises(ModelError, match=r"ortcam export .*plain\.onnx -o plain\.cam\.onnx"):
        ortcam.ScoreCAM(tmp_path / "plain.onnx")


@pytest.mark.slow
def test_a_file_with_channels_last_is_explained_alike(
    small: ortcam.ScoreCAM, resnet18_file: Path, photos: dict[str, Path], tmp_path: Path
) -> None:
    """The same network with transposed image and activations, as converters of Keras models write them."""
    proto = onnx.load(resnet18_file)
    graph = proto.graph
    for node in graph.node:
        node.input[:] = ["image_first" if name == "image" else name for name in node.input]
        node.input[:] = ["activations_first" if name == "activations" else name for name in node.input]
        node.output[:] = ["activations_first" if name == "activations" else name for name in node.output]
    graph.node.insert(0, onnx.helper.make_node("Transpose", ["image"], ["image_first"], perm=[0, 3, 1, 2]))
    graph.node.append(onnx.helper.make_node("Transpose", ["activations_first"], ["activations"], perm=[0, 2, 3, 1]))
    for value, shape in ((graph.input[0], ["batch", 96, 96, 3]), (graph.output[1], ["batch", 3, 3, 512])):
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, shape))
    entries = {entry.key: entry.value for entry in proto.metadata_props}
    (layer,) = json.loads(entries["ortcam.layers"])
    entries |= {"ortcam.image_layout": '"NHWC"', "ortcam.layers": json.dumps([layer | {"layout": "NHWC"}])}
    onnx.helper.set_model_props(proto, entries)
    onnx.save(proto, tmp_path / "last.onnx")
    cam = ortcam.ScoreCAM(tmp_path / "last.onnx")
    ours, theirs = cam.explain(photos["chelsea"]), small.explain(photos["chelsea"])
    assert cam.model.prepare(photos["chelsea"])[1].shape == (1, 96, 96, 3)
    assert np.abs(ours.input_maps - theirs.input_maps).max() < 1e-4
    assert np.array_equal(cam.explain(cam.model.prepare(photos["chelsea"])[1]).input_maps, ours.input_maps)
