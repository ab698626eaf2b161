"""Comparisons: values against SciPy, the same target for all columns, pages that a stranger can read."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import scipy.stats
from conftest import package_folder
from jsonschema import Draft202012Validator
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from test_tasks import run_model as run_task
from test_tasks import score_of_box, tensor_of, toy
from typer.testing import CliRunner

import ortcam
from ortcam import Box, Output, ScoreCAM, Similarity
from ortcam.cli.app import app
from ortcam.comparison import Column, Comparison, compare, cross
from ortcam.comparison.grid import Grid
from ortcam.comparison.result import Summary
from ortcam.comparison.verdict import judge
from ortcam.core.pictures import Crop
from ortcam.core.references import suppress
from ortcam.errors import DatasetError, ImageError, ModelError, OptionError, OrtcamError, OutputError, TargetError
from ortcam.evaluation.statistics import Interval, mean_interval
from ortcam.explain.explainer import ModelExplainer
from ortcam.model.contract import Contract, ExposedLayer
from ortcam.model.preprocessing import Preprocessing
from ortcam.output.text import AsciiFont, as_drawn, fit, make_font, wrap

Array = np.ndarray[Any, Any]
SIDE, CELLS, CHANNELS, CLASSES = 24, 6, 16, 4
LABELS = ("cat, tabby", "dog", "tree", "car")
HOW = Preprocessing(SIDE, SIDE, scale=1 / 255, resize=28)
SCHEMA = Path(ortcam.__file__).parent / "comparison" / "comparison.schema.json"


def classifier(
    noise: float = 0.0, order: tuple[int, ...] = (0, 1, 2, 3), labels: tuple[str, ...] | None = LABELS, **how: Any
) -> onnx.ModelProto:
    """A convolution, a ReLU, a mean and a product; `noise` moves the weights, `order` the classes."""
    random, other = np.random.default_rng(3), np.random.default_rng(4)

    def draw(*shape: int) -> Array:
        values = random.standard_normal(shape) + noise * other.standard_normal(shape)
        return values.astype(np.float32)

    weights = {
        "kernel": draw(CHANNELS, 3, 4, 4) / 8, "bias": draw(CHANNELS) / 3,
        "head": np.ascontiguousarray(4 * draw(CHANNELS, CLASSES)[:, order]),
    }  # fmt: skip
    classes = len(order)
    nodes = [
        helper.make_node("Conv", ["image", "kernel", "bias"], ["conv"], strides=[4, 4]),
        helper.make_node("Relu", ["conv"], ["activations"]),
        helper.make_node("GlobalAveragePool", ["activations"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes]),
            helper.make_tensor_value_info("activations", TensorProto.FLOAT, ["batch", CHANNELS, CELLS, CELLS]),
        ],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    contract = Contract(
        (ExposedLayer("relu", "relu"),), preprocessing=replace(HOW, **how), labels=labels, activation="softmax"
    )
    helper.set_model_props(model, contract.to_metadata())
    return model


@pytest.fixture(scope="module")
def files(photos: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small photos, and models of the same network: as it is, with noise, and with classes in another order."""
    folder = tmp_path_factory.mktemp("compare")
    onnx.save(classifier(), folder / "old.onnx")
    onnx.save(classifier(0.4), folder / "new.onnx")
    onnx.save(classifier(order=(2, 0, 3, 1), labels=("tree", "cat", "car", "dog")), folder / "shuffled.onnx")
    (folder / "photos").mkdir()
    for name in ("chelsea", "coffee", "astronaut"):
        picture = cv2.imread(str(photos[name]))
        cv2.imwrite(str(folder / "photos" / f"{name}.png"), cv2.resize(picture, (90, 60)))
    return folder


def pictures(files: Path) -> list[Path]:
    return sorted((files / "photos").iterdir())


def expected(one: Array, other: Array) -> tuple[float, float, float]:
    """Pearson's and Spearman's correlation and the energy in common of two maps, by NumPy and SciPy."""
    a, b = one.ravel().astype(np.float64), other.ravel().astype(np.float64)
    common = np.minimum(a / a.sum(), b / b.sum()).sum()
    return float(np.corrcoef(a, b)[0, 1]), float(scipy.stats.spearmanr(a, b).statistic), float(common)


# --- Values ---


def test_two_models_are_compared_as_scipy_compares_them(files: Path) -> None:
    """The photos have 90 x 60 pixels, so every pixel is a sample. The models cut off different parts of a photo."""
    wider = classifier(0.4, resize=36)  # sees less of the photo
    result = compare([Column(files / "old.onnx"), Column(wider, name="new")], pictures(files))
    old, new = ScoreCAM(files / "old.onnx"), ScoreCAM(wider)
    assert result.columns == ("old.onnx", "new")
    values = []
    for compared, path in zip(result.photos, pictures(files), strict=True):
        (top,), (theirs,) = old.predict(path), new.predict(path)
        one, other = (cam.explain(path, top.index) for cam in (old, new))
        area = other.crop.inside
        assert other.crop.height < one.crop.height == 52
        (pair,) = compared.pairs
        found = pair.similarity
        assert (found.r, found.spearman, found.energy_in_common) == pytest.approx(
            expected(one.maps[0][area], other.maps[0][area]), abs=1e-6
        )
        assert [cell.target.index for cell in compared.cells] == [top.index] * 2
        assert [cell.predicted.index for cell in compared.cells if cell.predicted] == [top.index, theirs.index]
        assert compared.cells[1].predicted and compared.cells[1].predicted.probability == pytest.approx(
            theirs.probability, abs=1e-6
        )
        assert pair.same_class == (top.index == theirs.index)
        moved = other.targets[0].probability - top.probability
        assert pair.difference == pytest.approx(moved, abs=1e-6) and abs(moved) > 1e-3
        values.append((found.r, pair.same_class, pair.difference, compared.name))
    (summary,) = result.summaries
    assert summary.r == mean_interval([r for r, *_ in values])
    assert summary.same_class is not None and summary.same_class.mean == np.mean([same for _, same, *_ in values])
    assert (summary.least_r, summary.least_photo) == min((r, name) for r, *_, name in values)
    assert summary.largest_difference == max((moved for *_, moved, _ in values), key=abs)
    assert [r for _, r in summary.lowest] == sorted(r for r, *_ in values)


def test_classes_are_matched_by_label(files: Path) -> None:
    """The second model has the same weights and its classes in another order; one label lacks a synonym."""
    result = compare([Column(files / "old.onnx"), Column(files / "shuffled.onnx")], pictures(files))
    places = {0: 1, 1: 3, 2: 0, 3: 2}
    for photo in result.photos:
        one, other = photo.cells
        assert other.target.index == places[one.target.index]
        (pair,) = photo.pairs
        assert pair.similarity.r == pytest.approx(1, abs=1e-6)
        assert pair.same_class
        assert pair.difference == pytest.approx(0, abs=1e-6)
    assert result.verdicts[0].word == "same"


def test_targets_share_passes_and_are_those_of_the_first_model(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four columns of two models: each model explains a photo once. A given target is resolved by the first model."""
    calls = []
    explain = ModelExplainer.explain

    def counted(self: ModelExplainer, *given: Any, **named: Any) -> Any:
        calls.append(self.model.name)
        return explain(self, *given, **named)

    monkeypatch.setattr(ModelExplainer, "explain", counted)
    path = pictures(files)[0]
    columns = cross([files / "old.onnx", files / "shuffled.onnx"], targets=["tree", 0])
    result = compare(columns, [path])
    assert calls == ["old.onnx", "shuffled.onnx"]
    assert result.columns == ("old.onnx, tree", "old.onnx, 0", "shuffled.onnx, tree", "shuffled.onnx, 0")
    assert [cell.target.index for cell in result.photos[0].cells] == [2, 0, 0, 1]
    maps = ScoreCAM(files / "old.onnx").explain(path, [2, 0])
    crop = maps.crop.inside
    assert result.photos[0].with_first(1).similarity.r == pytest.approx(
        expected(maps.maps[0][crop], maps.maps[1][crop])[0], abs=1e-6
    )
    known = {(pair.first, pair.second): pair for pair in result.photos[0].pairs}
    assert len(known) == 6
    assert known[0, 1].difference is None and known[0, 1].same_class is None, "one model"
    assert known[0, 2].difference == pytest.approx(0, abs=1e-6)
    assert known[0, 3].difference is None, "another target"


def test_methods_presets_and_budgets(files: Path) -> None:
    """A preset counts for Score-CAM alone, and a budget for the methods that take one and state none."""
    methods = ["score-cam", "score-cam:budget=6", "recipro-cam"]
    columns = cross([files / "old.onnx"], methods=methods, presets=["official", "paper"])
    result = compare(columns, pictures(files)[:1], budget=9)
    assert result.columns == (
        "score-cam, official", "score-cam, paper", "score-cam:budget=6, official", "score-cam:budget=6, paper",
        "recipro-cam",
    )  # fmt: skip
    scored = [cell.scored for cell in result.photos[0].cells]
    assert scored[:4] == [9, 9, 6, 6]
    record = result.to_dict()
    assert [column["budget"] for column in record["columns"]] == [9, 9, 6, 6, None]
    assert [column["preset"]["name"] for column in record["columns"][:2]] == ["official", "paper"]
    assert any("the budget alone" in line for line in result.lines())


def test_a_default_target_beside_a_given_one(files: Path) -> None:
    path = pictures(files)[0]
    result = compare([Column(files / "old.onnx", target="dog"), Column(files / "old.onnx")], [path])
    (top,) = ScoreCAM(files / "old.onnx").predict(path)
    assert [cell.target.index for cell in result.photos[0].cells] == [1, top.index]


def test_columns_are_named_by_what_distinguishes_them(files: Path, tmp_path: Path) -> None:
    """Files of one name by their folders; names that a user gives stay."""
    for folder in ("float", "int8"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.onnx").write_bytes((files / "old.onnx").read_bytes())
    models = [tmp_path / "float" / "model.onnx", tmp_path / "int8" / "model.onnx"]
    named = [Column(models[0]), Column(models[1]), Column(models[1], "recipro-cam", name="mine")]
    result = compare(named, pictures(files)[:1])
    assert result.columns == ("float/model.onnx, score-cam", "int8/model.onnx, score-cam", "mine")
    tensor = ortcam.CamModel(models[0]).prepare(pictures(files)[0])[1]
    result = compare(named[:2], [tensor, pictures(files)[0]])
    assert result.columns == ("float/model.onnx", "int8/model.onnx")
    assert [photo.name for photo in result.photos] == ["photo 1", "astronaut.png"]
    assert result.photos[0].origin.kind == "tensor" and result.photos[0].size == (SIDE, SIDE)


# --- Other tasks ---


def test_the_same_box_is_asked_of_a_detector_that_sees_the_photo_otherwise(files: Path) -> None:
    """The second detector letterboxes. Its score is the formula's, of the first detector's box in its own pixels."""
    path = pictures(files)[0]
    result = compare([Column(toy("detect"), name="a"), Column(toy("detect", "letterbox"), name="b")], [path])
    one, other = result.photos[0].cells
    assert one.target.place is not None and other.target.place is not None
    assert other.target.place["box"] == pytest.approx(one.target.place["box"], abs=2e-3)
    assert (one.predicted, result.photos[0].pairs[0].same_class) == (None, None)
    photo = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    made = run_task(toy("detect"), tensor_of(photo))
    rows, classes = suppress(made["boxes"][0], made["scores"][0])
    assert one.target.index == classes[0]
    how = Preprocessing(SIDE, SIDE, scale=1 / 255, fit="letterbox")
    box = how.crop(*photo.shape[:2]).to_input(
        Crop(0, 0, *photo.shape[:2]).to_photo(made["boxes"][0][rows[0]], (SIDE, SIDE)), (SIDE, SIDE)
    )
    score = score_of_box(run_task(toy("detect"), how.apply(photo)), box, int(classes[0]))
    assert other.score == pytest.approx(score, abs=1e-4)
    assert result.photos[0].pairs[0].difference == pytest.approx(score - one.score, abs=1e-4)


@pytest.mark.parametrize(
    ("task", "target"),
    [("detect", Box(1)), ("segment", None), ("embed", "reference"), ("value", Output(2, sign=-1))],
)
def test_a_copy_of_a_model_has_the_same_map(files: Path, task: str, target: Any) -> None:
    """Also by another method: the target is the first model's."""
    path, reference = pictures(files)[:2]
    asked = Similarity(reference) if target == "reference" else target
    columns = cross(
        [toy(task), toy(task)], methods=["score-cam", "rise:masks=20"], targets=[] if asked is None else [asked]
    )
    result = compare(columns, [path])
    pairs = {(pair.first, pair.second): pair for pair in result.photos[0].pairs}
    for one, other in ((0, 2), (1, 3)):
        assert pairs[one, other].similarity.energy_in_common == pytest.approx(1, abs=1e-6)
        assert pairs[one, other].difference == pytest.approx(0, abs=1e-6)
    assert pairs[0, 1].similarity.energy_in_common < 0.999
    names = [cell.target.name for cell in result.photos[0].cells]
    assert len(set(names)) == 1


def test_a_region_goes_by_way_of_the_photo(files: Path) -> None:
    """The second segmenter letterboxes a photo that is as wide as high, so that both see the same."""
    photo = cv2.cvtColor(cv2.imread(str(pictures(files)[0])), cv2.COLOR_BGR2RGB)[:, :60]
    result = compare([Column(toy("segment"), name="a"), Column(toy("segment", "letterbox"), name="b")], [photo])
    one, other = result.photos[0].cells
    assert one.target.place is not None and other.target.place is not None
    assert other.target.place["box"] == one.target.place["box"]
    assert other.target.place["share"] == one.target.place["share"]
    assert result.photos[0].pairs[0].difference == pytest.approx(0, abs=1e-6)


# --- Bad input ---


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ([], OptionError, "got no columns; expected two or more"),
        ([classifier()], OptionError, "got one column, .*; expected two or more: add a second model, layer"),
        ([classifier()] * 13, OptionError, "got 13 columns; expected at most 12"),
        ([classifier(), toy("segment")], ModelError, "'classify' and .* 'segment'; expected models of one task"),
        (
            [classifier(), classifier(order=(0, 1, 2), labels=None)],
            ModelError,
            "has 4 classes and .* has 3; expected the same number, or labels in both",
        ),
        ([classifier(), classifier(labels=("a", "b", "c", "d"))], ModelError, "have no label in common"),
    ],
)
def test_columns_that_are_refused(columns: list[Any], error: type[OrtcamError], message: str, files: Path) -> None:
    with pytest.raises(error, match=message) as raised:
        compare([Column(model) for model in columns], pictures(files))
    assert "\n" not in str(raised.value)


def test_arguments_that_are_refused(files: Path, tmp_path: Path) -> None:
    old, new = Column(files / "old.onnx"), Column(files / "new.onnx")
    with pytest.raises(OptionError, match=r"two columns are the same: .*old.onnx, score-cam, default target"):
        compare([old, new, Column(str(files / "old.onnx"))], pictures(files))
    with pytest.raises(DatasetError, match="got no photos"):
        compare([old, new], [])
    with pytest.raises(TargetError, match="label 'horse' is unknown to old"):
        compare([replace(old, target="horse"), new], pictures(files))
    with pytest.raises(
        OptionError, match=r"2 models, 1 layer, 1 method .* and 7 targets make 14 columns; .* at most 12"
    ):
        cross([files / "old.onnx", files / "new.onnx"], targets=list(range(7)))
    with pytest.raises(OptionError, match="no method is score-cam"):
        cross([files / "old.onnx"], methods=["rise", "cam"], presets=["paper"])
    with pytest.raises(OptionError, match="target 'all' makes no columns"):
        compare([replace(old, target="all"), new], pictures(files))
    with pytest.raises(OptionError, match="leave budget, tolerance and selection out"):
        compare(cross([files / "old.onnx"], methods=["cam", "recipro-cam"]), pictures(files), budget=8)
    (tmp_path / "other.txt").touch()
    with pytest.raises(OutputError, match="holds other files"):
        compare([old, new], pictures(files), folder=tmp_path)


def test_photos_that_fail_are_listed_and_nothing_half_is_left(files: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    columns = [Column(files / "old.onnx"), Column(files / "new.onnx")]
    told: list[tuple[Any, OrtcamError]] = []
    result = compare(
        columns, [broken, pictures(files)[0]], on_error=lambda *one: told.append(one), folder=tmp_path / "out"
    )
    assert [photo.name for photo in result.photos] == ["astronaut.png"]
    assert [(path, str(error)) for path, error in told] == [(broken, result.failures[0].error)]
    with pytest.raises(ImageError):
        compare(columns, [pictures(files)[0], broken], folder=tmp_path / "half")
    with pytest.raises(DatasetError, match="0 of 1 photos can be compared"):
        compare(columns, [broken], on_error=lambda *_: None, folder=tmp_path / "half")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.png", "out"]


# --- Verdicts ---


@pytest.mark.parametrize(
    ("values", "unrelated", "word"),
    [
        ([0.95, 0.99], 0.3, "same"),
        ([0.94, 0.99], 0.3, "similar"),
        ([0.5, 0.9], 0.3, "different"),
        ([0.1, 0.2], 0.3, "unrelated"),
        ([0.1, 0.2], None, "different"),
        ([], 0.3, "flat"),
    ],
)
def test_verdicts(values: list[float], unrelated: float | None, word: str) -> None:
    none = Interval(None, None, None, 0)
    lowest = tuple((f"{r}.jpg", r) for r in sorted(values))
    same = mean_interval([1.0, 0.0])
    summary = Summary(
        "int8", mean_interval(values), none, none, min(values, default=None), None, same, None, None, 0, ("b.jpg",),
        lowest,
    )  # fmt: skip
    verdict = judge(summary, 2, unrelated)
    assert verdict.word == word
    assert "the same top class on 1 of 2 photos" in verdict.text
    assert "another top class on b.jpg" in verdict.look
    below = [name for name, r in lowest if r < 0.95]
    assert all(name in verdict.look for name in below)
    assert ("look first" in verdict.look) == bool(below)


def test_flat_maps_are_counted(files: Path) -> None:
    """A model whose layer is constant has flat maps: no r, and no warning for each photo."""
    dead = classifier()
    for tensor in dead.graph.initializer:
        if tensor.name == "kernel":
            tensor.CopyFrom(numpy_helper.from_array(np.zeros((CHANNELS, 3, 4, 4), np.float32), "kernel"))
    result = compare([Column(files / "old.onnx"), Column(dead, name="dead")], pictures(files))
    (summary,) = result.summaries
    assert (summary.flat, summary.least_r, summary.r.count) == (3, None, 0)
    assert result.verdicts[0].word == "flat"
    assert all(photo.rank == -2 for photo in result.photos), "such photos come first on the pages"


# --- Files ---


def test_the_files_of_a_comparison(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON as its schema says, a row for each photo and pair, and pages with the least r first."""
    monkeypatch.setattr("ortcam.comparison.grid.ROWS", 2)
    models = [files / name for name in ("old.onnx", "new.onnx", "shuffled.onnx")]
    result = compare([Column(model) for model in models], pictures(files), folder=tmp_path / "out")
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "comparison.csv", "comparison.json", "grid-2.png", "grid.png",
    ]  # fmt: skip
    record = json.loads((out / "comparison.json").read_text())
    Draft202012Validator.check_schema(json.loads(SCHEMA.read_text()))
    Draft202012Validator(json.loads(SCHEMA.read_text())).validate(record)
    assert record == json.loads(json.dumps(result.to_dict()))
    assert (
        record["photos"][0]["sha256"] == ortcam.ScoreCAM(models[0]).explain(pictures(files)[0]).provenance.photo.sha256
    )
    rows = list(csv.DictReader((out / "comparison.csv").open(newline="")))
    assert len(rows) == 9
    (pair,) = (one for one in result.photos[0].pairs if (one.first, one.second) == (1, 2))
    (row,) = (
        one for one in rows if (one["photo"], one["first"], one["second"]) == ("astronaut.png", *result.columns[1:])
    )
    assert float(row["r"]) == pair.similarity.r
    assert (row["same_class"], float(row["difference"])) == (str(pair.same_class), pair.difference)
    order = sorted(result.photos, key=lambda photo: min(one.similarity.r or 0 for one in photo.pairs if one.first == 0))
    page = cv2.cvtColor(cv2.imread(str(out / "grid.png")), cv2.COLOR_BGR2RGB)
    first = cv2.cvtColor(cv2.imread(str(files / "photos" / order[0].name)), cv2.COLOR_BGR2RGB)
    enlarged = np.repeat(np.repeat(first, 3, axis=0), 3, axis=1)  # 90 pixels to 270 of 280
    best = cv2.minMaxLoc(cv2.matchTemplate(page[:600], enlarged, cv2.TM_SQDIFF))[0] / enlarged.size
    assert best < 20, "squared levels that JPEG changes; another photo differs by thousands"
    compare([Column(model) for model in models[:2]], pictures(files)[:1], folder=out, overwrite=True)
    assert not (out / "grid-2.png").exists(), "an earlier comparison is replaced"


def test_pages_have_a_bounded_size(tmp_path: Path) -> None:
    sides = {}
    for columns in (2, 6, 12):
        (tmp_path / str(columns)).mkdir()
        sides[columns] = Grid(tmp_path / str(columns), ["a"] * columns).side
    assert sides[2] == 280 and sides[12] == 150
    assert all((columns + 1) * side < 2200 for columns, side in sides.items())


@pytest.mark.parametrize(
    "text",
    [
        "short",
        "a very long name " * 9,
        "$x^2$ <b>tag</b> " * 9,
        "猫の写真 " * 20,
        "\udcff broken",
        "Wörter ÄÖÜ ß " * 9,
        "שלום",
    ],
)
@pytest.mark.parametrize("font", [make_font(), AsciiFont()])
def test_lines_fit_below_a_picture(text: str, font: Any) -> None:
    """What is drawn, in black on white, stays within the width; letters without a font are written as numbers."""
    sheet = np.full((90, 400, 3), 255, np.uint8)
    shown = as_drawn(text, font)
    font.draw(sheet, fit(shown, 200, 13, font), 0, 20, 13, (0, 0, 0))
    for number, line in enumerate(wrap(shown, 200, 13, font, bold=True)[:3]):
        font.draw(sheet, line, 0, 40 + 20 * number, 13, (0, 0, 0), bold=True)
    columns = np.flatnonzero((sheet < 128).any(axis=(0, 2)))
    assert 10 < columns.max() <= 200
    assert fit("short", 200, 13, font) == "short"
    assert fit("a_name_that_is_far_too_long_for_its_picture.jpg", 200, 13, font, keeps_end=True).endswith(".jpg")
    assert as_drawn("\udcff", font) == "U+DCFF"


# --- Command line ---


@pytest.fixture
def run(files: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.chdir(files)
    return lambda *words: CliRunner().invoke(app, ["compare", *words])


def test_the_command_line(run: Callable[..., Any], tmp_path: Path) -> None:
    done = run("old.onnx", "shuffled.onnx", "photos", "-o", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    assert "3 photos; each column against old.onnx" in done.output
    assert (
        "shuffled.onnx: THE SAME MAPS (r 1.000 on average, 1.000 at least); the same top class on 3 of 3" in done.output
    )
    assert (tmp_path / "out" / "grid.png").is_file()
    done = run("old.onnx", "photos", "--method", "score-cam", "--method", "recipro-cam", "-t", "dog", "--json")
    found = json.loads(done.stdout)
    assert [column["method"]["name"] for column in found["columns"]] == ["score-cam", "recipro-cam"]
    assert {cell["target"]["label"] for photo in found["photos"] for cell in photo["cells"]} == {"dog"}
    assert found["directory"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["old.onnx", "photos"], "got one column, old.onnx; expected two or more: add a second model"),
        (["old.onnx", "new.onnx"], "got 2 models and no photos; expected photos or folders behind the models"),
        (["old.onnx", "gone.onnx", "photos"], "gone.onnx"),
        (["old.onnx", "photos", "--layer", "relu", "--layer", "rel"], "layer 'rel' is not in old.onnx"),
        (["old.onnx", "new.onnx", "photos", "--sign", "-1", "-t", "cat"], "with --sign expected the number of a value"),
    ],
)
def test_errors_of_the_command_line_are_one_line(run: Callable[..., Any], words: list[str], message: str) -> None:
    done = run(*words)
    assert done.exit_code == 1
    assert isinstance(done.exception, OrtcamError)
    assert message in str(done.exception) and "\n" not in str(done.exception)


def test_pages_of_an_earlier_comparison_are_no_photos(run: Callable[..., Any], files: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "coffee.png"), cv2.imread(str(files / "photos" / "coffee.png")))
    words = ["old.onnx", "new.onnx", str(tmp_path), "--budget", "4", "-o", str(tmp_path / "out")]
    for _ in range(2):
        assert "1 photo; each column" in run(*words).output


def test_a_failed_photo_is_told_and_the_others_go_on(run: Callable[..., Any], files: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    done = run("old.onnx", "new.onnx", str(broken), "photos/coffee.png")
    assert done.exit_code == 1
    assert "error: " in done.output and "broken.png" in done.output
    assert "1 photo; each column against old.onnx" in done.output


# --- A real network ---


@pytest.mark.slow
def test_a_quantised_network_is_compared_with_its_float_model(
    lite0_file: Path, photos: dict[str, Path], tmp_path: Path
) -> None:
    """EfficientNet-Lite0, quantised with 20 photos: nearly the same classes and maps. Noise in its weights is seen."""
    named = [photo for name, photo in photos.items() if name.startswith("imagenet")]
    model = ortcam.CamModel(lite0_file)

    class Calibration(CalibrationDataReader):
        def __init__(self) -> None:
            self._photos = iter(named)

        def get_next(self) -> dict[str, Any] | None:
            photo = next(self._photos, None)
            return None if photo is None else {"image": model.prepare(photo)[1]}

    int8, noisy = tmp_path / "int8.onnx", tmp_path / "noisy.onnx"
    quantize_static(lite0_file, int8, Calibration(), quant_format=QuantFormat.QDQ, per_channel=True)
    proto, random = onnx.load(lite0_file), np.random.default_rng(0)
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.ndim == 4:
            values = values + 0.3 * values.std() * random.standard_normal(values.shape).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
    onnx.save(proto, noisy)
    data = package_folder("skimage") / "data"
    shown = [*named[:6], data / "chelsea.png", data / "coffee.png"]
    result: Comparison = compare(
        [Column(lite0_file), Column(int8), Column(noisy)], shown, budget=32, folder=tmp_path / "out"
    )
    good, bad = result.summaries
    assert good.r.mean is not None and bad.r.mean is not None
    assert good.r.mean > 0.95, "measured 0.98 on 37 photos"
    assert good.same_class is not None and good.same_class.mean is not None and good.same_class.mean >= 7 / 8
    assert bad.r.mean < good.r.mean - 0.1, "noise of 0.3 deviations"
    assert result.verdicts[0].word in ("same", "similar")
    Draft202012Validator(json.loads(SCHEMA.read_text())).validate(result.to_dict())
    page = cv2.imread(str(tmp_path / "out" / "grid.png"))
    assert page.shape[1] < 2200
