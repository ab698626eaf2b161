"""Data sets end to end: `ortcam evaluate` on a small tree, its values by hand, and what it says of the samples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage
from torch import nn
from typer.testing import CliRunner

import ortcam
from ortcam.cli.app import app
from ortcam.evaluation import evaluate
from ortcam.evaluation.result import Result
from ortcam.evaluation.rows import Column, Failure, Row
from ortcam.exporters import export

LABELS = {"tabby": 3, "espresso": 7}
BOXES = {"tabby": [(10, 20, 200, 220), (220, 50, 90, 100)], "espresso": [(100, 30, 250, 200)]}  # x, y, width, height
METRICS = ("energy", "energy:paper", "pointing", "rank")


@pytest.fixture
def coco(photos: dict[str, Path], tmp_path: Path) -> Path:
    """Two photos with two classes each, a photo that is missing, and one without objects."""
    images = [{"id": at, "file_name": name} for at, name in enumerate(("chelsea.png", "coffee.png", "gone.png", "no"))]
    for one in images[:2]:
        name = str(one["file_name"])
        (tmp_path / name).write_bytes(photos[Path(name).stem].read_bytes())
    annotations = [
        {"image_id": at, "category_id": LABELS[label], "bbox": box}
        for at in range(3)
        for label, boxes in BOXES.items()
        for box in boxes
    ]
    categories = [{"id": index, "name": label} for label, index in LABELS.items()]
    file = tmp_path / "objects.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return file


def test_two_classes_in_a_photo_are_measured_each_with_its_own_boxes(
    tiny: nn.Module, coco: Path, tmp_path: Path
) -> None:
    names = [next((one for one, at in LABELS.items() if at == index), f"c{index}") for index in range(10)]
    model = export(tiny, tmp_path / "tiny.onnx", preprocess="imagenet", input_size=32, labels=names).path
    chosen = [part for name in METRICS for part in ("--metric", name)]
    given = ["evaluate", str(model), "--dataset", f"coco:{coco}", *chosen, "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output
    assert done.output.startswith("4 samples (each class of the 2 photos is a sample); mean over samples ±")
    said = " ".join(done.output.split())
    assert "intervals take the samples of one photo as independent, so they may be too narrow" in said
    assert "photos without objects are left out: no" in said and "are left out: gone.png" in said
    result = Result.from_json(tmp_path / "out" / "results.json")
    assert result.photos == tuple(f"{name}.png#{label}" for name in ("chelsea", "coffee") for label in BOXES)
    explainer = ortcam.ScoreCAM(model, provider="cpu")
    for row in result.rows:
        if row.method != "score-cam":
            continue
        photo, _, label = row.photo.partition("#")
        assert (row.explained, row.scored) == (LABELS[label],) * 2
        saliency = explainer.explain(coco.parent / photo, LABELS[label]).maps[0]
        assert saliency.max() > saliency.min()
        region = np.zeros(saliency.shape, np.bool_)
        for x, y, width, height in BOXES[label]:
            region[y : y + height, x : x + width] = True
        energy = saliency[region].sum(dtype=np.float64) / saliency.sum(dtype=np.float64)
        highest = np.argsort(-saliency.ravel(), kind="stable")[: region.sum()]
        distance = ndimage.distance_transform_edt(~region).ravel()[saliency.argmax()]
        by_hand = {"energy": energy, "energy:paper": energy, "pointing": float(distance < 15)}
        by_hand["rank"] = region.ravel()[highest].mean()
        assert row.values == pytest.approx(by_hand, abs=1e-5)  # sums of 180 000 float32 values


def test_classes_of_another_number_are_said(tiny: nn.Module, photos: dict[str, Path], tmp_path: Path) -> None:
    """Ten classes of folders fit a model with ten; indices of three fit too, but mean something else."""
    model = export(tiny, tmp_path / "tiny.onnx", preprocess="imagenet", input_size=32).path
    root = tmp_path / "classes"
    for index in range(10):
        (root / f"kind {index}").mkdir(parents=True)
    (root / "kind 2" / "chelsea.png").write_bytes(photos["chelsea"].read_bytes())

    def notes(explain: str) -> list[str]:
        found = evaluate(model, f"classes-sorted:{root}", metrics=["drop"], explain=explain)
        return [note for note in found.record["dataset"]["notes"] if "classes" in note]

    assert notes("true") == []
    for index in range(3, 10):
        (root / f"kind {index}").rmdir()
    (said,) = notes("true")
    wrong = "values are wrong unless both number their classes alike"
    assert said == f"classes-sorted:{root} has 3 classes, tiny.onnx has 10: {wrong}"
    assert notes("predicted") == [], "labels are not read"


def result_of(photos: Sequence[str], failures: Sequence[Failure] = (), **record: Any) -> Result:
    column = Column("drop", "drop:paper", "lower")
    rows = tuple(Row(photo, "mine", 0, 0, {"drop": 0.5}) for photo in photos)
    return Result((column,), ("mine",), (), rows, tuple(failures), record)


def test_the_table_says_how_many_photos_were_left_out_and_why() -> None:
    six = {"samples": 6, "photos": 6, "notes": ["photos without objects are left out: a.jpg"]}
    table = result_of(["b", "c"], dataset=six, only="misclassified", most_per_class=2).table(200)
    assert table.startswith("2 of 6 photos; only misclassified ones, at most 2 a class; mean over photos ±")
    assert table.splitlines()[-1] == "photos without objects are left out: a.jpg"
    one = result_of(["b"], dataset={"samples": 1, "photos": 1, "notes": []}, only="all", most_per_class=None)
    assert one.table(200).startswith("1 photo; one photo has no intervals")
    classes = result_of(["b#x", "b#y"], dataset={"samples": 3, "photos": 2, "notes": []})
    failed = result_of(["b#x"], [Failure("b#y", "box is empty")], dataset={"samples": 2, "photos": 1, "notes": []})
    assert "\n1 sample could not be evaluated and counts nowhere:\n- b#y: box is empty" in failed.table(200)
    assert classes.table(200).startswith("2 of 3 samples (each class of the 2 photos is a sample); mean over samples")


def test_a_failed_photo_is_named_once_in_its_line() -> None:
    failures = [Failure("b.jpg", "b.jpg (boxes.csv): box is empty"), Failure("c.jpg", "the map is missing")]
    lines = result_of(["a.jpg"], failures).table(200).splitlines()
    assert lines[-3:] == [
        "2 photos could not be evaluated and count nowhere:",
        "- b.jpg (boxes.csv): box is empty",
        "- c.jpg: the map is missing",
    ]
