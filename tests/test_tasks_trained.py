"""Trained models of other tasks, on real photos: the models of benchmarks/tasks.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import correlation
from test_runtimes import RUNTIMES, need, run_script
from typer.testing import CliRunner

import ortcam
from ortcam import Box, Region, Similarity
from ortcam.cli.app import app
from ortcam.model.image import read_photo

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
        import tasks

        yield tasks


@pytest.fixture(scope="module")
def files(script: ModuleType, models: Path) -> dict[str, Path]:
    folder = models / "tasks"
    folder.mkdir()
    made: dict[str, Path] = script.export_all(folder)
    return made


def share(saliency: np.ndarray[Any, Any], box: list[float]) -> float:
    left, top, right, bottom = (max(round(side), 0) for side in box)
    return float(saliency[top:bottom, left:right].sum() / saliency.sum())


@pytest.mark.parametrize(("name", "label"), [("chelsea", "Cat"), ("coffee", "Coffee cup"), ("imagenet_06", "Car")])
def test_a_detector_sees_what_is_there(files: dict[str, Path], photos: dict[str, Path], name: str, label: str) -> None:
    """The surest box has the right class; the map lies in it more than a map that is the same everywhere."""
    detector = ortcam.ScoreCAM(files["objects"])
    (found,) = detector.predict(photos[name])
    assert found.label == label
    explanation = detector.explain(photos[name], targets=Box(0), budget=64)
    left, top, right, bottom = found.place["box"]  # type: ignore[index]
    height, width = explanation.photo_size
    even = (min(right, width) - max(left, 0)) * (min(bottom, height) - max(top, 0)) / (height * width)
    assert share(explanation.maps[0], [left, top, right, bottom]) > even + 0.1 * (1 - even)
    error = explanation.error
    assert error is not None and 0 < error.expected < 0.1


def test_maps_equal_the_formula(script: ModuleType, files: dict[str, Path], photos: dict[str, Path]) -> None:
    """The face detector and the text detector, one masked input after the other."""
    for name, photo, target in (("faces", photos["astronaut"], Box(0)), ("text", photos["page"], Region("text"))):
        case = script.Case(name, files[name], photo, target, [0, 0, 1, 1])
        expected = script.Measured(case).formula()
        made = ortcam.ScoreCAM(files[name]).explain(photo, targets=target)
        assert correlation(made.raw_maps[0], expected) >= 0.9999


def test_each_reference_finds_its_own_half(script: ModuleType, files: dict[str, Path], photos: dict[str, Path]) -> None:
    """A cat beside a car: the map of a reference lies on the half that looks like it."""
    cat, car = script.read(photos["chelsea"]), script.read(photos["imagenet_06"])
    both, (left, right) = script.paste(cat, car)
    embedder = ortcam.ScoreCAM(files["features"])
    made = embedder.explain(both, targets=[Similarity(cat), Similarity(car)], budget=128)
    assert share(made.maps[0], left) > 0.8
    assert share(made.maps[1], right) > 0.8


def test_the_command_line_on_a_detector(files: dict[str, Path], photos: dict[str, Path], tmp_path: Path) -> None:
    base = ["explain", str(files["objects"]), str(photos["imagenet_06"])]
    listed = CliRunner().invoke(app, [*base, "--list", "--json"])
    (entry,) = json.loads(listed.stdout)["listed"]
    assert [one["label"] for one in entry["targets"]] == ["Car", "Car"]
    result = CliRunner().invoke(app, [*base, "--box", "1", "--budget", "16", "-o", str(tmp_path / "out"), "--json"])
    assert result.exit_code == 0, result.output
    (made,) = json.loads(result.stdout)["explanations"]
    assert made["targets"][0]["place"]["box"] == entry["targets"][1]["place"]["box"]


@pytest.mark.parametrize(
    ("name", "photo", "targets", "budget"),
    [
        ("objects", "coffee", [Box(0), Box((30, 50, 250, 210), "Cat")], 32),
        ("objects", "imagenet_06", None, None),
        ("faces", "astronaut", None, None),
        ("faces", "astronaut", None, 16),
        ("text", "page", "text", 32),
        ("features", None, None, 64),
    ],
)
def test_a_packed_file_as_the_engine(
    script: ModuleType, files: dict[str, Path], photos: dict[str, Path], tmp_path: Path,
    name: str, photo: str | None, targets: Any, budget: int | None,
) -> None:  # fmt: skip
    path = ortcam.pack(files[name], tmp_path / "packed.onnx", budget=budget, verify=False).path
    if photo is None:
        cat, car = script.read(photos["chelsea"]), script.read(photos["imagenet_06"])
        image, targets = script.paste(cat, car)[0], [Similarity(cat), Similarity(car)]
    else:
        image = photos[photo]
    made = ortcam.PackedExplainer(path, "cpu").explain(image, targets)
    expected = ortcam.ScoreCAM(files[name], "cpu").explain(image, targets, budget=budget)
    assert made.scored == expected.scored
    assert [one.name for one in made.targets] == [one.name for one in expected.targets]
    assert min(one.std() for one in expected.maps) > 0.01
    assert np.abs(made.maps - expected.maps).max() <= 1e-4  # 1.3e-5 was seen
    for error, other in zip(made.errors, expected.errors, strict=True):
        assert error is not None and other is not None
        assert error.expected == pytest.approx(other.expected, abs=1e-4)


@pytest.mark.parametrize("runtime", ["web", "openvino"])
def test_a_packed_detector_in_another_runtime(
    files: dict[str, Path], photos: dict[str, Path], tmp_path: Path, runtime: str
) -> None:
    """The surest face, and a box: onnxruntime-web's wasm in Node.js, and OpenVINO."""
    photo = read_photo(photos["astronaut"])
    path = ortcam.pack(files["faces"], tmp_path / "packed.onnx", budget=16, verify=False).path
    given = (200.0, 60.0, 280.0, 160.0)
    for target, box in ((Box(0), (0, 0, 0, 0)), (Box(given), given)):
        expected = ortcam.ScoreCAM(files["faces"], "cpu").explain(photo, target, budget=16)
        if runtime == "web":
            need((RUNTIMES / "node_modules" / "onnxruntime-web").is_dir(), "onnxruntime-web")
            asked = f"-1@{','.join(map(str, box))}"
            made = run_script(["node", RUNTIMES / "explain.mjs", "web"], path, photo, asked, tmp_path)
            scored, index, saliency, error = (made[key] for key in ("scored", "target", "map", "error"))
        else:
            core = pytest.importorskip("openvino").Core()
            compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
            inputs = {"image": photo, "target": np.array([-1]), "box": np.array([box], np.float32)}
            made = compiled(inputs)
            (index,), (saliency,), (scored,), (error,) = (made[place] for place in (2, 5, 6, 7))
        assert (scored, index) == (expected.scored, 0)
        assert correlation(saliency, expected.maps[0]) >= 0.9999
        assert error == pytest.approx(list(vars(expected.errors[0]).values()), rel=0.01)
