"""Debugging a classifier: the mistakes and what speaks for them, and the report, also in a browser."""

from __future__ import annotations

import base64
import csv
import json
import os
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from test_report import wait_until
from test_runtimes import RUNTIMES, browser, need  # noqa: F401 - a fixture
from typer.testing import CliRunner

from ortcam.cli.app import app
from ortcam.core.measures import MapMeasures, mass_in_common
from ortcam.core.pictures import Crop
from ortcam.core.targets import Target
from ortcam.errors import DatasetError, OccupiedError, OptionError, OutputError, TargetError
from ortcam.evaluation import Box, Debugging, Sample, debug
from ortcam.evaluation import mistakes as definitions
from ortcam.evaluation.mistakes import Evidence, MeanMap, Mistake, Prediction, Without
from ortcam.model.contract import Contract, ExposedLayer
from ortcam.model.preprocessing import Preprocessing
from ortcam.output.explanation import Explanation
from ortcam.report.debugging import COLUMNS, DebugReport

SIZE, BLOCK = 24, 4
LABELS = ("cat, tabby", "dog", "</script><b>bird")
WEIGHTS = np.zeros((3, SIZE, SIZE), np.float32)
WEIGHTS[0, 8:16, 8:16] = 8 / 64  # the cat: what is bright in the middle
WEIGHTS[1, :BLOCK, :BLOCK] = 40 / 16  # the dog: a bright mark in the corner, which has nothing to do with dogs
BIAS = np.array([0, -20, 1], np.float32)


def write_model(path: Path, nhwc: bool = False) -> Path:
    """Write a linear classifier with a shortcut; its layer has a channel for each block of 4 x 4 pixels."""
    count = SIZE // BLOCK
    blocks = np.kron(np.eye(count * count).reshape(-1, count, count), np.ones((BLOCK, BLOCK))).astype(np.float32)
    constants = {"blocks": blocks[None], "weights": WEIGHTS.reshape(3, -1).T, "bias": BIAS}
    nodes = [
        helper.make_node("Transpose", ["image"], ["planes"], perm=[0, 3, 1, 2] if nhwc else [0, 1, 2, 3]),
        helper.make_node("Mul", ["planes", "blocks"], ["activations"]),
        helper.make_node("Flatten", ["planes"], ["row"]),
        helper.make_node("Gemm", ["row", "weights", "bias"], ["logits"]),
    ]
    shape = ["batch", SIZE, SIZE, 1] if nhwc else ["batch", 1, SIZE, SIZE]
    graph = helper.make_graph(
        nodes,
        "shortcut",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("activations", TensorProto.FLOAT, ["batch", count * count, SIZE, SIZE]),
        ],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    seen = Preprocessing(SIZE, SIZE, channels="GRAY", scale=1 / 255, mean=(0.0,), std=(1.0,))
    layers = (ExposedLayer("blocks", "blocks", "NCHW"),)
    layout = "NHWC" if nhwc else "NCHW"
    contract = Contract(layers, activation="softmax", image_layout=layout, preprocessing=seen, labels=LABELS)
    helper.set_model_props(model, contract.to_metadata())
    path.write_bytes(model.SerializeToString())
    return path


def draw_cat(seed: int, marked: bool) -> NDArray[np.uint8]:
    """Draw a photo of a cat, grey in three channels; a marked photo has a watermark in the corner, white to grey."""
    grey = np.random.default_rng(seed).integers(20, 60, (SIZE, SIZE), np.uint8)
    grey[8:16, 8:16] += 120
    if marked:
        grey[:BLOCK, :BLOCK] = np.array([255, 255, 150, 110])[:, None]  # the last row is below half of the maximum
    return np.repeat(grey[:, :, None], 3, axis=2)


def predict(tensor: NDArray[Any]) -> NDArray[np.float64]:
    """Return the probabilities of the three classes for an input [H,W], without ONNX."""
    logits = np.tensordot(WEIGHTS.astype(np.float64), tensor, axes=2) + BIAS
    return np.asarray(np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "shortcut.onnx")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six photos of cats, with labels and boxes: three of them are marked, and the name of one is HTML."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(6):
        name = "<img src=x onerror=alert(1)>.png" if number == 4 else f"{number}.png"
        cv2.imwrite(str(folder / name), draw_cat(number, marked=number >= 3))
    names = sorted(path.name for path in folder.iterdir())
    (folder / "labels.csv").write_text("photo,label\n" + "".join(f"{name},cat\n" for name in names))
    lines = "".join(f"{name},0,8,8,16,16\n" for name in names)
    (folder / "boxes.csv").write_text(f"photo,label,left,top,right,bottom\n{lines}")
    return folder


@pytest.fixture(scope="module")
def found(model: Path, photos: Path) -> tuple[Debugging, dict[str, Explanation]]:
    """The mistakes, and their explanations by the photo's name."""
    kept: dict[str, Explanation] = {}
    result = debug(
        model, f"csv:{photos / 'boxes.csv'}", on_explained=lambda one, map: kept.update({one.prediction.photo: map})
    )
    return result, kept


# --- The analysis -------------------------------------------------------------------------------------------------


def test_a_shortcut_in_the_corner_is_found(found: tuple[Debugging, dict[str, Explanation]]) -> None:
    """The model calls every marked cat a dog, because of the mark, and the report says where the evidence lies."""
    result, _ = found
    assert (result.accuracy, result.misclassified) == (0.5, 3)
    assert [(pair.true, pair.predicted, pair.names, pair.count) for pair in result.pairs] == [(0, 1, ("cat", "dog"), 3)]
    for mistake in result.mistakes:
        assert mistake.predicted.part == "top left"
        assert mistake.predicted.part_share is not None and mistake.predicted.part_share > 0.9
        assert mistake.predicted.outside is not None and mistake.predicted.outside > 0.9
        assert mistake.flags == ("outside", "corner", "frame")
        assert mistake.without is not None and mistake.without.true_wins
        assert mistake.object_box == Crop(8, 8, 16, 16)
        assert mistake.cut == mistake.unseen == 0
    assert result.wrong.part is not None and result.wrong.part[0] == "top left"
    assert result.right.part is not None and result.right.part[0] == "centre"
    assert (result.wrong.count, result.right.count) == (3, 3)


def test_the_numbers_are_those_of_their_definitions(
    found: tuple[Debugging, dict[str, Explanation]], photos: Path
) -> None:
    """Computed again with NumPy from the maps and from the linear model itself."""
    result, kept = found
    grids = []
    for mistake in result.mistakes:
        one, explanation = mistake.prediction, kept[mistake.prediction.photo]
        tensor = cv2.imread(str(photos / one.photo), cv2.IMREAD_GRAYSCALE).astype(np.float64) / 255
        # float32 on the model's side: 24 x 24 products, so 1e-5 is far above its rounding
        assert [one.true.probability, one.predicted.probability] == pytest.approx(predict(tensor)[:2], abs=1e-5)
        a, b = (explanation.map_at(place).astype(np.float64) for place in (0, 1))
        assert [target.index for target in explanation.targets] == [1, 0]
        assert mistake.in_common == pytest.approx(np.minimum(a / a.sum(), b / b.sum()).sum(), abs=1e-6)
        for evidence, saliency in ((mistake.predicted, a), (mistake.true, b)):
            assert evidence.outside == pytest.approx(1 - saliency[8:16, 8:16].sum() / saliency.sum(), abs=1e-6)
            ninths = saliency.reshape(3, 8, 3, 8).sum(axis=(1, 3)) / saliency.sum()
            assert evidence.part_share == pytest.approx(ninths.max(), abs=1e-6)
            assert evidence.part == definitions.PARTS[ninths.argmax()]
        without = mistake.without
        assert without is not None
        region = explanation.input_maps[0] >= explanation.input_maps[0].max() / 2
        left = predict(np.where(region, 0, tensor))
        assert without.share == pytest.approx(region.mean())
        assert [without.true, without.predicted] == pytest.approx(left[:2], abs=1e-5)
        assert without.winner.index == left.argmax()
        # The grid has 16 cells for 24 pixels: each cell is 1.5 pixels wide, so pixels are cut in halves and thirds.
        thirds = np.kron(a, np.ones((2, 2))).reshape(16, 3, 16, 3).sum(axis=(1, 3))
        grids.append(thirds / thirds.sum())
    np.testing.assert_allclose(result.wrong.grid, np.mean(grids, axis=0), atol=1e-7)
    assert result.wrong.grid.sum() == pytest.approx(1)


def test_the_most_misleading_photos_are_explained(model: Path) -> None:
    """Of four mistakes two are explained: those with the largest lead, the photo with more flags first."""
    images = [draw_cat(number, marked=True) for number in range(4)]
    for image, mark in zip(images, (190, 255, 200, 240), strict=True):  # the brighter the mark, the surer the mistake
        image[:BLOCK, :BLOCK] = mark
    steps: list[tuple[int, int]] = []
    result = debug(
        model, images, [0, "cat", 0, 0], most=2, most_correct=0, on_progress=lambda *step: steps.append(step)
    )
    assert [one.prediction.photo for one in result.mistakes] == ["photo 2", "photo 4"]
    assert result.misclassified == 4 and len(result.mistakes) == 2
    assert result.right.count == 0 and result.right.part is None and not result.right.grid.any()
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4), (5, 6), (6, 6)]
    assert result.record["method"]["budget"] == 32


def test_pairs_are_in_the_order_of_their_frequency() -> None:
    def prediction(name: str, true: int, predicted: int) -> Prediction:
        return Prediction(name, None, Target(true, None, 0.0, 0.1), Target(predicted, None, 1.0, 0.7))

    photos = [prediction("a", 0, 1), prediction("b", 2, 1), prediction("c", 1, 1), prediction("d", 2, 1)]
    nothing = MeanMap(0, np.zeros((16, 16)))
    pairs = Debugging(tuple(photos), (), (), nothing, nothing, {}).pairs
    assert [(pair.true, pair.predicted, pair.photos) for pair in pairs] == [(2, 1, ("b", "d")), (0, 1, ("a",))]


def test_two_classes_of_one_name_are_told_apart() -> None:
    """ImageNet has two classes named crane: the bird and the machine."""
    bird, machine = Target(134, "crane", 0.0, 0.3), Target(517, "crane, machine", 1.0, 0.6)
    assert Prediction("a", None, bird, machine).names == ("crane (class 134)", "crane (class 517)")
    assert Prediction("a", None, bird, bird).names == ("crane", "crane")


def test_correct_photos_are_spread_over_the_data_set(model: Path) -> None:
    """Two of four are explained, the second and the fourth; each counts alike."""
    images = [draw_cat(number, marked=False) for number in range(4)]
    alone = [debug(model, [image], [0]).right.grid for image in images]
    both = debug(model, images, [0] * 4, most_correct=2).right
    assert both.count == 2
    np.testing.assert_allclose(both.grid, (alone[1] + alone[3]) / 2, atol=1e-9)


def mistake_of(**changes: Any) -> Mistake:
    """Return a mistake without any flag, but for the changes."""
    measures = MapMeasures((5, 5), Crop(4, 4, 8, 8), 0.1, 0.1)
    values: dict[str, Any] = {
        "prediction": Prediction("a", None, Target(0, None, 0.0, 0.2), Target(1, None, 1.0, 0.7)),
        "predicted": Evidence(measures, "centre", 0.9, 0.1),
        "true": Evidence(measures, "top left", 0.9, 0.9),
        "in_common": 0.5,
        "without": Without(0.1, 0.1, 0.8, Target(0, None, 1.0, 0.8), True),
        "object_box": None,
        "cut": 0.0,
        "unseen": 0.0,
        "size": (24, 24),
        "error": None,
        "sha256": "",
    }
    return Mistake(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({}, ()),
        ({"cut": None}, ()),
        ({"cut": 0.05}, ("cut",)),
        ({"predicted": Evidence(MapMeasures((0, 0), Crop(0, 0, 1, 1), 0.1, 0.1), "top left", 0.49, 0.49)}, ()),
        (
            {"predicted": Evidence(MapMeasures((0, 0), Crop(0, 0, 1, 1), 0.1, 0.38), "bottom right", 0.5, 0.5)},
            ("outside", "corner", "frame"),
        ),
        ({"predicted": Evidence(MapMeasures((0, 0), Crop(0, 0, 1, 1), 0.1, 0.1), "top centre", 0.9)}, ()),
        ({"predicted": Evidence(MapMeasures()), "cut": 0.5}, ("flat", "cut")),
    ],
)
def test_flags(changes: dict[str, Any], flags: tuple[str, ...]) -> None:
    assert mistake_of(**changes).flags == flags
    assert set(flags) <= set(definitions.FLAGS)


def test_more_flags_are_more_suspicious_then_the_lead() -> None:
    def prediction(name: str, sure: float) -> Prediction:
        return Prediction(name, None, Target(0, None, 0.0, 0.0), Target(1, None, 1.0, sure))

    sure, unsure = (mistake_of(prediction=prediction(name, at)) for name, at in (("sure", 0.9), ("unsure", 0.4)))
    flagged = mistake_of(prediction=prediction("flagged", 0.3), cut=0.2)
    order = sorted([unsure, sure, flagged], key=lambda one: one.suspicion)
    assert [one.prediction.photo for one in order] == ["flagged", "sure", "unsure"]


def test_shares_on_a_grid_are_exact() -> None:
    """A pixel that lies in two cells counts for each with its part: 4 x 2 pixels, in 3 x 3 cells."""
    saliency = np.arange(1, 9, dtype=np.float32).reshape(4, 2)
    fine = np.kron(saliency, np.ones((3, 3)))  # 12 x 6: cells of 4 x 2
    cells = fine.reshape(3, 4, 3, 2).sum(axis=(1, 3))
    np.testing.assert_allclose(definitions.on_grid(saliency, 3), cells / cells.sum(), atol=1e-12)


def test_the_mass_in_common_has_its_bounds() -> None:
    one, other = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)[::-1]
    assert mass_in_common(one, one) == mass_in_common(one, 0.1 * one) == pytest.approx(1)
    assert mass_in_common(one, other) == 0
    assert mass_in_common(one, np.zeros_like(one)) is None


def test_a_photo_of_several_classes_is_right_with_each_of_them(model: Path) -> None:
    """The most probable true class stands for a photo that is misclassified; its boxes are the object."""
    marked = draw_cat(0, marked=True)
    samples = [Sample(marked, "a#cat", 0, (Box(8, 8, 16, 16),)), Sample(marked, "a#dog", 1, (Box(0, 0, 4, 4),))]
    assert debug(model, samples).accuracy == 1
    samples = [Sample(marked, "a#bird", 2, (Box(0, 20, 4, 24),)), Sample(marked, "a#cat", 0, (Box(8, 8, 16, 16),))]
    (mistake,) = debug(model, samples).mistakes
    assert (mistake.prediction.photo, mistake.prediction.true.index) == ("a#cat", 0)
    assert mistake.object_box == Crop(8, 8, 16, 16)


def test_a_layout_with_the_channels_last_is_the_same(model: Path, tmp_path: Path) -> None:
    photo = draw_cat(0, marked=True)
    ours, theirs = (
        debug(path, [photo], [0]).mistakes[0] for path in (model, write_model(tmp_path / "nhwc.onnx", nhwc=True))
    )
    assert ours.without is not None and theirs.without is not None
    assert theirs.without.true == pytest.approx(ours.without.true, abs=1e-6)
    assert theirs.without.share == ours.without.share


def test_a_flat_map_is_a_flag(model: Path) -> None:
    """A black photo is called a bird, by the bias alone: no channel speaks for it, and there is nothing to remove."""
    black = np.zeros((SIZE, SIZE, 3), np.uint8)
    (mistake,) = debug(model, [black], [0]).mistakes
    assert mistake.flags == ("flat",)
    assert mistake.without is None and mistake.in_common is None and mistake.predicted.part is None


# --- Bad input ----------------------------------------------------------------------------------------------------


def test_labels_that_do_not_fit_are_refused_in_one_line(model: Path, photos: Path, tmp_path: Path) -> None:
    def fails(kind: type[Exception], words: str, source: Any, labels: Any = None, **options: Any) -> None:
        with pytest.raises(kind, match=words) as caught:
            debug(model, source, labels, **options)
        assert "\n" not in str(caught.value)

    labels = tmp_path / "labels.csv"
    labels.write_text("photo,label\n0.png,cat\n")
    fails(DatasetError, r"no line for .*1\.png", photos, labels)
    labels.write_text("photo,label\nelse.png,cat\n")
    fails(DatasetError, r"no line for .*0\.png", photos, labels)
    fails(DatasetError, r"1 of 2 photos have no label: photo 2; expected", [draw_cat(0, False)] * 2, [0, None])
    fails(DatasetError, r"6 of 6 photos have no label: .*0\.png.*5\.png", photos)
    labels.write_text((photos / "labels.csv").read_text().replace("3.png,cat", "3.png,horse"))
    fails(TargetError, r"the label of 3\.png: label 'horse' is unknown to shortcut\.onnx", photos, labels)
    fails(OptionError, "most is 0", photos, photos / "labels.csv", most=0)
    fails(OptionError, "method 'score' is unknown", photos, photos / "labels.csv", method="score")


def test_a_photo_that_cannot_be_read_is_told(model: Path, photos: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    told: list[str] = []
    result = debug(model, [photos / "3.png", broken], [0, 0], on_error=lambda name, _: told.append(name))
    assert [Path(name).name for name in told] == ["broken.png"] == [Path(one.photo).name for one in result.failures]
    assert len(result.photos) == len(result.mistakes) == 1


def test_a_box_that_does_not_fit_is_told(model: Path) -> None:
    """The photo counts as misclassified, but it is not explained."""
    sample = Sample(draw_cat(0, marked=True), "a", 0, (Box(8, 8, 99, 99),))
    result = debug(model, [sample])
    assert (result.misclassified, result.mistakes) == (1, ())
    assert [one.photo for one in result.failures] == ["a"] and "outside the photo" in result.failures[0].error


# --- The report ---------------------------------------------------------------------------------------------------


def data_of(page: Path) -> dict[str, Any]:
    """Return the data of a page."""
    text = page.read_text(encoding="utf-8")
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert block is not None
    return json.loads(block[1])


def pictures_of(page: Path, number: int) -> list[NDArray[np.uint8]]:
    block = re.search(rf'id="p{number}">(.*?)</script>', page.read_text(encoding="utf-8"))
    assert block is not None
    files = (base64.b64decode(data) for data in json.loads(block[1]))
    return [cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1] for file in files]


@pytest.fixture(scope="module")
def report(model: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page that the command line writes."""
    page = tmp_path_factory.mktemp("report") / "new" / "report.html"
    done = CliRunner().invoke(app, ["debug", str(model), "--dataset", f"csv:{photos / 'boxes.csv'}", "-o", str(page)])
    assert done.exit_code == 0, done.output
    assert "accuracy 50.0% (3 of 6 photos)" in done.output
    assert "outside, corner, frame" in done.output
    assert f"Order: {definitions.ORDER}." in done.output
    assert sorted(path.name for path in page.parent.iterdir()) == ["debug.csv", "debug.json", "report.html"]
    return page


def test_page_record_and_table_say_the_same(report: Path, found: tuple[Debugging, dict[str, Explanation]]) -> None:
    result, _ = found
    expected = {**result.to_dict(), "created": None}
    record = json.loads((report.parent / "debug.json").read_text())
    assert {**record, "created": None} == json.loads(json.dumps(expected))
    data = data_of(report)
    assert [row["photo"] for row in data["rows"]] == [one.prediction.photo for one in result.mistakes]
    assert data["rows"][0]["in_common"] == result.mistakes[0].in_common
    assert data["rows"][0]["flags"] == ["outside", "corner", "frame"]
    with (report.parent / "debug.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0]) == COLUMNS
    assert [line["correct"] for line in lines] == [str(one.is_correct) for one in result.photos]
    by_name = {line["photo"]: line for line in lines}
    for number, one in enumerate(result.mistakes, 1):
        line = by_name[one.prediction.photo]
        assert (line["suspicion"], line["flags"]) == (str(number), "outside corner frame")
        assert one.without is not None
        assert float(line["probability_true_without"]) == one.without.true
        assert float(line["outside_predicted"]) == one.predicted.outside


def test_the_page_shows_what_is_removed(report: Path, found: tuple[Debugging, dict[str, Explanation]]) -> None:
    """The fourth picture is the photo without the top region, which is black here: this model's 0."""
    result, kept = found
    for number, one in enumerate(result.mistakes):
        photo, removed = pictures_of(report, number)[0], pictures_of(report, number)[3]
        explanation = kept[one.prediction.photo]
        region = explanation.input_maps[0] >= explanation.input_maps[0].max() / 2
        assert photo[region].mean() > 150 and removed[region].mean() < 20  # JPEG blurs the edge
        assert abs(photo[8:].astype(int) - removed[8:]).mean() < 3  # the same elsewhere


def test_names_are_harmless(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    assert "<img src=x" not in text and "<b>bird" not in text
    assert any("<img src=x" in row["photo"] for row in data_of(report)["rows"])


def test_no_mistake_is_a_report_that_says_so(model: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    with DebugReport(page) as writer:
        writer.write(debug(model, [draw_cat(0, marked=False)], [0], on_explained=writer.add))
    data = data_of(page)
    assert (data["about"]["accuracy"], data["rows"], data["pairs"]) == (1, [], [])
    with DebugReport(page) as writer:  # an earlier report is replaced
        writer.write(debug(model, [draw_cat(0, marked=True)], [0], on_explained=writer.add))
    assert len(data_of(page)["rows"]) == 1


def test_a_report_that_cannot_be_written_is_one_line(model: Path, photos: Path, tmp_path: Path) -> None:
    arguments = ["debug", str(model), str(photos), "--labels", str(photos / "labels.csv"), "-o"]

    def fails(kind: type[Exception], words: str, page: Path) -> None:
        done = CliRunner().invoke(app, [*arguments, str(page)])
        assert isinstance(done.exception, kind), done.output
        assert words in str(done.exception) and "\n" not in str(done.exception)

    fails(OptionError, "expected a name that ends in .html", tmp_path / "report.pdf")
    (tmp_path / "folder.html").mkdir()
    fails(OutputError, "it is a directory", tmp_path / "folder.html")
    (tmp_path / "mine.html").write_text("mine")
    fails(
        OccupiedError,
        "mine.html: a file of this name exists, and no report of ortcam debug wrote it",
        tmp_path / "mine.html",
    )
    (tmp_path / "file").write_text("")
    fails(OutputError, "file is a file, not a directory", tmp_path / "file" / "report.html")
    if os.access("/proc", os.W_OK) or os.geteuid() == 0:
        fails(OutputError, "cannot write", Path("/proc/none/report.html"))
    assert (tmp_path / "mine.html").read_text() == "mine"


def test_a_second_report_in_a_folder_is_refused(report: Path) -> None:
    """Its record and its table would replace those of the first."""
    with pytest.raises(OccupiedError, match=r"debug\.csv: a file of this name exists, and another report wrote it"):
        DebugReport(report.with_name("other.html"))
    DebugReport(report)  # the same again
    DebugReport(report.with_name("other.html"), overwrite=True)


def test_an_error_leaves_no_half_report(model: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError), DebugReport(tmp_path / "report.html") as writer:
        writer.write(debug(model, [draw_cat(0, marked=True)], [None], on_explained=writer.add))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OptionError, match="is not open"):
        writer.write(Debugging((), (), (), MeanMap(0, np.zeros((16, 16))), MeanMap(0, np.zeros((16, 16))), {}))


# --- The page in a browser ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with several pairs: five cats taken for dogs, two dogs taken for cats, one bird, and a broken photo."""
    folder = tmp_path_factory.mktemp("many")
    names = {f"marked-{number}": (draw_cat(number, marked=True), 0) for number in range(5)}
    names |= {f"plain-{number}": (draw_cat(number, marked=False), 1) for number in range(2)}
    names |= {"bird <b>": (draw_cat(9, marked=False), 2), "right": (draw_cat(8, marked=False), 0)}
    for name, (photo, _) in names.items():
        cv2.imwrite(str(folder / f"{name}.png"), photo)
    (folder / "broken.png").write_bytes(b"no picture")
    lines = [f"{name}.png,{label}" for name, (_, label) in names.items()] + ["broken.png,0"]
    (folder / "labels.csv").write_text("\n".join(["photo,label", *lines]))
    arguments = ["debug", str(model), str(folder), "--labels", str(folder / "labels.csv"), "-o"]
    done = CliRunner().invoke(app, [*arguments, str(folder / "out" / "report.html")])
    assert done.exit_code == 1 and "broken.png" in done.output
    return folder / "out" / "report.html"


def open_page(browser: Any, page: Path, width: int = 1280, **options: Any) -> Any:  # noqa: F811
    tab = browser.new_page(viewport={"width": width, "height": 900}, **options)
    tab.faults = []
    tab.on("pageerror", lambda fault: tab.faults.append(str(fault)))
    tab.on("console", lambda message: tab.faults.append(message.text))
    tab.goto(page.as_uri())
    wait_until(tab, "[...document.querySelectorAll('#first img')].every((one) => one.naturalWidth > 1)")
    return tab


@pytest.mark.slow
def test_the_page_filters_arranges_and_opens(browser: Any, many: Path) -> None:  # noqa: F811
    """Real clicks and keys."""
    tab = open_page(browser, many)
    tiles = dict(
        zip(tab.locator("#tiles dt").all_inner_texts(), tab.locator("#tiles dd").all_inner_texts(), strict=True)
    )
    assert (tiles["Accuracy"], tiles["Photos"], tiles["Misclassified"]) == ("11.1\u00a0%", "9", "8")
    # Without its bright middle a cat is nothing but the bias, a bird; so the bird wins, and the two dogs do not.
    assert tiles["True class wins without the region"] == "6 of 8"
    rows = tab.locator("#pairs tbody tr").all_inner_texts()
    assert [row.split("\t")[:4] for row in rows][:2] == [["cat", "dog", "5", "5"], ["dog", "cat", "2", "2"]]
    assert tab.locator(".group h3").first.inner_text() == "cat taken for dog: 5 photos"
    assert tab.locator("#failures li").count() == 1

    tab.locator("#pairs button", has_text="dog").click()  # the true class of the second pair
    assert tab.locator("#found").inner_text() == "2 of 8 explained photos"
    assert all("plain" in name for name in tab.locator(".card .name").all_text_contents())
    tab.locator("#reset").click()
    tab.locator("#text").fill("bird <b>")
    assert tab.locator(".card .name").all_text_contents() == ["bird <b>.png"]
    tab.locator("#text").fill("")
    tab.get_by_label("in a corner (5)").check()
    assert tab.locator(".card").count() == 5
    tab.locator("#reset").click()
    tab.locator("#arrange").select_option("suspicion")
    order = [row["photo"] for row in data_of(many)["rows"]]
    assert tab.locator(".card .name").all_text_contents() == order

    tab.locator(".open").first.focus()
    tab.keyboard.press("Enter")
    assert tab.locator("#place").inner_text() == "1 of 8"
    wait_until(tab, "[...document.querySelectorAll('#large img')].filter((one) => one.naturalWidth > 1).length === 6")
    tab.keyboard.press("ArrowRight")
    assert tab.locator("#place").inner_text() == "2 of 8"
    assert order[1] in tab.locator("#facts").inner_text()
    tab.keyboard.press("Escape")
    assert not tab.locator("#large").is_visible()
    # The browser tells the page of the closing a little later, and the page then moves the focus.
    wait_until(tab, "document.activeElement.closest('.card')?.dataset.row === '1'")
    tab.keyboard.press("ArrowRight")
    assert tab.evaluate("document.activeElement.closest('.card').dataset.row") == "2"
    tab.locator("#first button").nth(3).click()
    assert tab.locator("#place").inner_text() == "4 of 8"
    tab.keyboard.press("Escape")
    wait_until(tab, "document.activeElement.closest('#first') !== null")
    assert tab.faults == []
    tab.close()


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_is_accessible(browser: Any, many: Path, width: int, scheme: str) -> None:  # noqa: F811
    axe = RUNTIMES / "node_modules" / "axe-core" / "axe.min.js"
    need(axe.is_file(), "axe-core")
    tab = open_page(browser, many, width, color_scheme=scheme, bypass_csp=True)
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), "no need to scroll sideways"
    tab.add_script_tag(path=axe)
    for is_large in (False, True):
        if is_large:
            tab.locator(".open").first.click()
        found = tab.evaluate("axe.run().then((found) => found.violations.map((one) => [one.id, one.nodes[0].html]))")
        assert found == []
    tab.close()


@pytest.mark.slow
def test_a_page_without_mistakes_says_so(browser: Any, model: Path, tmp_path: Path) -> None:  # noqa: F811
    page = tmp_path / "report.html"
    with DebugReport(page) as writer:
        writer.write(debug(model, [draw_cat(0, marked=False)], [0]))
    tab = open_page(browser, page)
    assert tab.locator("#nothing").inner_text() == "No photo is misclassified."
    assert not tab.locator("#controls").is_visible() and not tab.locator("#suspicious").is_visible()
    assert tab.faults == []
    tab.close()
