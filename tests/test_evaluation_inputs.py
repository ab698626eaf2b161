"""What goes into an evaluation: maps of any kind, options, photos; and what a run that goes on may keep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import sharpened
from test_evaluation import SIZE, measure, weighing_model
from typer.testing import CliRunner

import ortcam
from ortcam import evaluation
from ortcam.cli.app import app
from ortcam.core.convention import PRESETS
from ortcam.errors import LayerError, ModelError, OptionError, OrtcamWarning
from ortcam.evaluation import Sample
from ortcam.evaluation.metrics import choose_metrics
from ortcam.evaluation.result import Result
from ortcam.exporters import export

WEIGHTS = np.random.default_rng(0).uniform(0.1, 1, (SIZE, SIZE)).astype(np.float32)


def write_photo(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(70, 255, (SIZE, SIZE, 3), np.uint8)
    assert cv2.imwrite(str(path), pixels)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three photos, and a map for each."""
    for number in range(3):
        write_photo(tmp_path / f"{number}.png", number)
        (tmp_path / "maps").mkdir(exist_ok=True)
        np.save(tmp_path / "maps" / f"{number}.npy", np.random.default_rng(10 + number).random((SIZE, SIZE)))
    return tmp_path


def run(folder: Path, maps: Any, output: Path | None, **options: Any) -> Result:
    return evaluation.evaluate(
        weighing_model(WEIGHTS), sorted(folder.glob("*.png")), (), "deletion", maps={"mine": maps}, explain=1,
        folder=output, **options,
    )  # fmt: skip


def evaluated(output: Path) -> list[str]:
    """Return the names of the photos in the order in which they were evaluated."""
    return [json.loads(line)["photo"] for line in (output / "progress.jsonl").read_text().splitlines()[1:]]


@pytest.mark.parametrize("kind", ["folder", "mapping"])
def test_a_run_that_goes_on_keeps_no_values_of_another_map(folder: Path, kind: str, tmp_path: Path) -> None:
    def maps() -> Any:
        if kind == "folder":
            return folder / "maps"
        return {f"{path.stem}.png": torch.from_numpy(np.load(path)) for path in (folder / "maps").iterdir()}

    out = tmp_path / "out"
    first = run(folder, maps(), out)
    assert run(folder, maps(), out).rows == first.rows and evaluated(out) == ["0.png", "1.png", "2.png"]
    np.save(folder / "maps" / "1.npy", np.random.default_rng(99).random((SIZE, SIZE)))
    second = run(folder, maps(), out)
    assert evaluated(out) == ["0.png", "1.png", "2.png", "1.png"], "only the photo of the new map is evaluated again"
    assert second.rows == run(folder, maps(), None).rows
    assert second.values("mine", "deletion")["1.png"] != first.values("mine", "deletion")["1.png"]
    assert run(folder, maps(), out).rows == second.rows and len(evaluated(out)) == 4


def test_a_run_that_goes_on_keeps_no_values_of_another_photo(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (folder / "2.png").write_bytes(b"no photo")
    assert [one.photo for one in run(folder, folder / "maps", out).failures] == ["2.png"]
    write_photo(folder / "0.png", 50)
    write_photo(folder / "2.png", 2)
    again = run(folder, folder / "maps", out)
    assert evaluated(out) == ["0.png", "1.png", "0.png", "2.png"] and not again.failures
    assert again.rows == run(folder, folder / "maps", None).rows


def test_tensors_are_maps(folder: Path) -> None:
    values = np.linspace(0, 1, SIZE * SIZE, dtype=np.float32).reshape(SIZE, SIZE)
    tensor = torch.from_numpy(values)
    kinds: dict[str, Any] = {
        "array": values,
        "gradient": tensor.clone().requires_grad_(),
        "batch": tensor[None, None],
        "bfloat16": tensor.bfloat16(),
        "integers": (tensor * 255).to(torch.uint8),
    }
    for name, one in kinds.items():
        expected = values if name in ("array", "gradient", "batch") else np.asarray(one.float())
        found = measure(weighing_model(WEIGHTS), cv2.imread(str(folder / "0.png")), {"a": one, "b": expected}, "drop")
        assert found["a"].values == found["b"].values and found["a"].values["drop"] is not None, name


@pytest.mark.parametrize("values", ["complex", "none"])
def test_a_map_without_real_numbers_is_an_error_of_its_photo(folder: Path, values: str) -> None:
    one = np.ones((SIZE, SIZE)) * 1j if values == "complex" else None
    result = run(folder, lambda photo, target: one, None)
    assert len(result.failures) == 3 and "expected an array [h,w] of numbers" in result.failures[0].error


def test_an_explanation_of_another_class_is_named(resnet18_file: Path, photos: dict[str, Path]) -> None:
    other = ortcam.ScoreCAM(resnet18_file).explain(photos["chelsea"], targets=[3], budget=2)
    samples = [Sample(photos["chelsea"], "chelsea")]
    result = evaluation.evaluate(resnet18_file, samples, (), "drop", maps={"mine": {"chelsea": other}}, explain=4)
    assert result.failures[0].error.startswith("the map of chelsea in 'mine': class 4 was not explained")


@pytest.mark.parametrize(
    "maps", [[np.zeros((SIZE, SIZE))], {"mine": [np.zeros((SIZE, SIZE))]}, {"mine": np.zeros((3, SIZE, SIZE))}]
)
def test_maps_without_names_are_one_line(maps: Any) -> None:
    with pytest.raises(OptionError, match=r"expected a (mapping|folder of \.npy files)"):
        evaluation.evaluate(weighing_model(WEIGHTS), [np.zeros((SIZE, SIZE, 3), np.uint8)], (), "drop", maps=maps)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("drop:epsilon=nan", r"epsilon of drop is nan; expected a number of at least 0"),
        ("drop:epsilon=-1", r"epsilon of drop is -1\.0; expected"),
        ("insertion:steps=5,steps=6", r"has the option 'steps' twice; give it once"),
    ],
)
def test_a_wrong_option_of_a_metric_is_one_line(metric: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        choose_metrics([metric])


def test_a_model_without_preprocessing_refuses_files_at_once(tiny: Any, folder: Path) -> None:
    file = export(tiny, folder / "tiny.onnx", input_size=32).path
    with pytest.raises(ModelError, match=r"tiny\.onnx does not say how to preprocess a photo; export it with"):
        evaluation.evaluate(file, folder, "recipro-cam", "drop")
    tensors = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    result = evaluation.evaluate(file, list(tensors), "recipro-cam", ["drop", "insertion:rise"])
    assert result.photos == ("photo 1", "photo 2") and not result.failures
    for metric in ("insertion:openvino-xai", "adcc:openvino-xai"):
        with pytest.raises(OptionError, match=r"states no preprocessing, so the input for a black photo is unknown"):
            evaluation.evaluate(file, list(tensors), "recipro-cam", ["drop", metric])


def test_the_record_states_every_choice(folder: Path) -> None:
    metrics = ["insertion:rise", "drop:paper", "adcc", "road", "highest-confidence"]
    result = evaluation.evaluate(weighing_model(WEIGHTS), folder / "0.png", "score-cam", metrics, explain=1)
    record = result.record
    for metric in metrics:
        assert record["metrics"][metric]["score"] == "probability"
    assert record["metrics"]["highest-confidence"]["baseline"]["meaning"].startswith("0 of 255 in the photo")
    assert record["metrics"]["drop:paper"]["baseline"]["meaning"].startswith("0 in the preprocessed input")
    assert record["metrics"]["adcc"]["hidden"]["name"] == "zero"
    assert record["methods"]["score-cam"]["convention"]["steps"] == list(PRESETS["official"].steps)
    assert "10000 resamples" in record["intervals"] and "row by row" in record["ties"]


def test_an_error_on_the_command_line_names_the_photo(folder: Path) -> None:
    model = folder / "model.onnx"
    model.write_bytes(weighing_model(WEIGHTS).SerializeToString())
    np.save(folder / "maps" / "1.npy", np.full((SIZE, SIZE), np.nan))
    (folder / "maps" / "2.npy").unlink()
    arguments = ["evaluate", str(model), str(folder), "--maps", f"mine={folder / 'maps'}", "--explain", "1"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 2 and "1.png" in lines[0] and "2.png" in lines[1]


def test_a_method_that_the_layer_does_not_suit_is_one_line(folder: Path) -> None:
    with pytest.raises(LayerError, match=r"the scores do not follow from layer .*, which the file exposes as a conv"):
        evaluation.evaluate(weighing_model(WEIGHTS, nhwc=True, channels=3), folder, "recipro-cam", "drop")


def test_scores_that_do_not_look_like_a_softmax_are_a_warning(tiny: Any, folder: Path) -> None:
    file = export(sharpened(tiny, 200), folder / "tiny.onnx", preprocess="imagenet", input_size=32).path
    with pytest.warns(OrtcamWarning, match=r"nothing in tiny\.onnx says what its scores are, so a softmax is assumed"):
        evaluation.evaluate(file, folder, "recipro-cam", "drop")


def test_a_folder_is_the_same_however_it_is_written(folder: Path, tmp_path: Path) -> None:
    chosen: dict[str, Any] = {"methods": "score-cam", "metrics": "drop", "folder": tmp_path / "out"}
    model = weighing_model(WEIGHTS)
    first = evaluation.evaluate(model, str(folder), **chosen)
    assert evaluation.evaluate(model, f"{folder}/./", **chosen).rows == first.rows


def test_a_photo_that_can_be_read_at_last_takes_its_place_in_its_class(folder: Path, tmp_path: Path) -> None:
    (folder / "0.png").write_bytes(b"no photo")
    samples = [Sample(path, path.name, label=1) for path in sorted(folder.glob("*.png"))]
    chosen: dict[str, Any] = {"methods": "score-cam", "metrics": "drop", "most_per_class": 2}
    model = weighing_model(WEIGHTS)
    assert evaluation.evaluate(model, samples, folder=tmp_path / "out", **chosen).photos == ("1.png", "2.png")
    write_photo(folder / "0.png", 0)
    again = evaluation.evaluate(model, samples, folder=tmp_path / "out", **chosen)
    assert again.photos == ("0.png", "1.png") and again.rows == evaluation.evaluate(model, samples, **chosen).rows
