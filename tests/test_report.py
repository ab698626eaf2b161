"""The report of explained photos: what the page and the table say, and the page in a browser."""

from __future__ import annotations

import base64
import csv
import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from conftest import correlation
from onnx import TensorProto, helper, numpy_helper
from test_runtimes import RUNTIMES, browser, need  # noqa: F401 - a fixture
from test_tasks import toy
from typer.testing import CliRunner

import ortcam
from ortcam.cli.app import app
from ortcam.errors import OccupiedError, OptionError, OutputError
from ortcam.model.contract import Contract, ExposedLayer
from ortcam.model.preprocessing import Preprocessing
from ortcam.output.explanation import Pictures
from ortcam.output.render import Style, colour_table
from ortcam.report import Report
from ortcam.report.entries import COLUMNS
from ortcam.report.files import is_sheet
from ortcam.report.thumbnails import Sheet, Thumbnails, as_caption, encode_small

NASTY = "<img src=x onerror=alert(1)>.jpg"
ENDS = '</script><script>alert("2")</script>'  # a label that ends a script element
LABELS = ("red, rouge", "blue", ENDS, "青")
Row = dict[str, Any]


def write_classifier(path: Path) -> Path:
    """Write a classifier of four classes: a convolution of stride 4, a ReLU, means, and a linear layer."""
    random = np.random.default_rng(1)
    constants = {
        "kernel": random.standard_normal((12, 3, 4, 4)).astype(np.float32) / 8,
        "weights": random.standard_normal((12, 4)).astype(np.float32) * 3,
    }
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["conv"], strides=[4, 4]),
        helper.make_node("Relu", ["conv"], ["activations"]),
        helper.make_node("GlobalAveragePool", ["activations"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    shapes = {"logits": [4], "activations": [12, 6, 6]}
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 24, 24])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *dims]) for name, dims in shapes.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    how = Preprocessing(24, 24, scale=1 / 255, resize=24, fit="crop")
    contract = Contract(
        (ExposedLayer("relu", "relu"),), activation="softmax", image_layout="NCHW", preprocessing=how, labels=LABELS
    )
    helper.set_model_props(model, contract.to_metadata())
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("classifier") / "toy.onnx")


@pytest.fixture(scope="module")
def explained(classifier: Path, photos: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[Pictures]:
    """Three photos, of which one has a name that is HTML; each with two classes."""
    folder = tmp_path_factory.mktemp("photos")
    shutil.copy(photos["rocket"], folder / NASTY)
    given = [photos["chelsea"], folder / NASTY, photos["china"]]
    return list(ortcam.ScoreCAM(classifier).explain_batch(given, top_k=2))


@pytest.fixture(scope="module")
def page(explained: list[Pictures], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    with Report(path, colormap="viridis", title="<b>Trial</b> {{data}}") as report:
        for explanation in explained:
            report.add(explanation)
        report.fail("folder/broken.jpg", OptionError("broken.jpg is <broken>"))
    return path


def read(page: Path) -> tuple[Row, list[Row], list[list[bytes]]]:
    """Return what the page knows of the report, its entries, and the JPEG files of each explained photo."""
    text = page.read_text(encoding="utf-8")
    [data] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    blocks = re.findall(r'<script type="application/json" id="p\d+">(.*?)</script>', text, re.DOTALL)
    held = json.loads(data)
    return held["about"], held["rows"], [[base64.b64decode(one) for one in json.loads(block)] for block in blocks]


def decode(data: bytes) -> Any:
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def table(page: Path) -> list[Row]:
    with page.with_name("results.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_page_says_what_the_explanation_says(page: Path, explained: list[Pictures]) -> None:
    about, rows, _ = read(page)
    assert about["photos"] == 4
    assert len(rows) == 7
    for number, explanation in enumerate(explained):
        record = explanation.to_dict()
        for place, target in enumerate(explanation.targets):
            row, recorded = rows[2 * number + place], record["targets"][place]
            assert (row["photo"], row["place"]) == (number, place)
            assert row["target"] == target.name
            assert row["name"] == Path(record["source"]).name
            assert (row["width"], row["height"]) == explanation.photo_size[::-1]
            for key in ("index", "label", "probability", "error", "maximum", "peak_box", "share_above_half"):
                assert row[key] == recorded[key], key
            assert (row["layer"], row["method"], row["preset"]) == ("relu", "score-cam", "official")
            assert row["score"] is None
    crop, (height, width) = explained[2].crop, explained[2].photo_size
    assert rows[4]["cut"] == pytest.approx(1 - crop.height * crop.width / (height * width))
    assert rows[6] == {
        "photo": 3, "name": "broken.jpg", "path": "folder/broken.jpg", "failure": "broken.jpg is <broken>",
        "flags": ["failed"],
    }  # fmt: skip


def test_the_table_says_what_the_page_says(page: Path) -> None:
    rows, lines = read(page)[1], table(page)
    assert list(lines[0]) == list(COLUMNS)
    for row, line in zip(rows, lines, strict=True):
        assert line["photo"] == row["name"]
        assert line["flags"].split() == row["flags"]
        if "failure" in row:
            assert (line["failure"], line["probability"]) == (row["failure"], "")
            continue
        assert float(line["probability"]) == row["probability"]
        assert float(line["error_high"]) == row["error"]["high"]
        assert [int(line[f"box_{side}"]) for side in ("left", "right")] == [
            row["peak_box"][side] for side in ("left", "right")
        ]
        assert (line["label"], int(line["maximum_x"])) == (row["label"], row["maximum"]["x"])


def test_the_pictures_are_the_photo_and_the_overlays(page: Path, explained: list[Pictures]) -> None:
    """The tolerances allow for JPEG at quality 80, and for a map that is drawn on a small photo."""
    blocks = read(page)[2]
    assert [len(block) for block in blocks] == [3, 3, 3]
    for explanation, block in zip(explained, blocks, strict=True):
        whole = [explanation.photo, *(explanation.overlay_at(place, colormap="viridis") for place in range(2))]
        for data, picture in zip(block, whole, strict=True):
            small = decode(data)
            assert max(small.shape) == 448
            assert picture is not None
            expected = cv2.resize(picture, small.shape[1::-1], interpolation=cv2.INTER_AREA)
            assert correlation(small, expected) > 0.97
            assert np.abs(small.astype(int) - expected).mean() < 6
        assert sum(len(base64.b64encode(data)) for data in block) < 200_000


def test_names_and_labels_are_harmless(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert NASTY not in text
    assert ENDS not in text
    assert any(row.get("label") == ENDS for row in read(page)[1]), "the label stands there as JSON"
    assert "<title>&lt;b&gt;Trial&lt;/b&gt; {{data}}</title>" in text
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "https://" not in text


def test_the_colour_bar_has_the_colours_of_the_overlays(page: Path) -> None:
    [ramp] = re.findall(r"--ramp: linear-gradient\(to right, (.*?)\);", page.read_text(encoding="utf-8"))
    stops = [tuple(map(int, stop.split())) for stop in re.findall(r"rgb\((.*?) / [\d.]+\)", ramp)]
    assert [float(cover) for cover in re.findall(r" / ([\d.]+)\)", ramp)][:: len(stops) - 1] == [0, 1]  # it fades
    colours = colour_table("viridis")
    assert [stops[0], stops[8], stops[-1]] == [tuple(colours[level].tolist()) for level in (0, 128, 255)]


def test_flags(explained: list[Pictures], tmp_path: Path) -> None:
    first: Any = explained[0]
    flat = dataclasses.replace(first, raw_maps=np.zeros_like(first.raw_maps), flat=(True, True))
    # One strong place: first in the middle, then in the column that the crop cut at.
    middle, edge = (np.zeros_like(first.raw_maps) for _ in range(2))
    middle[:, 2:4, 2:4] = edge[:, 2:4, 0] = 1
    tensor = dataclasses.replace(first, photo=None)
    path = tmp_path / "flags.html"
    with Report(path, least_probability=first.targets[0].probability) as report:
        for one in (flat, dataclasses.replace(first, raw_maps=middle), dataclasses.replace(first, raw_maps=edge)):
            report.add(one, "same")
        report.add(tensor)
    assert first.crop.left > 0, "the test needs a photo that is cut at the left"
    rows = read(path)[1]
    assert [row["flags"] for row in rows[::2]][:3] == [["flat", "cropped"], ["cropped"], ["edge", "cropped"]]
    assert all("low" in row["flags"] for row in rows[1::2])
    assert (rows[0]["maximum"], rows[0]["share_above_half"]) == (None, None)
    assert {row["name"] for row in rows[:6]} == {"same"}
    assert table(path)[0]["maximum_x"] == ""


@pytest.mark.parametrize("task", ["detect", "segment", "embed", "value"])
def test_other_tasks(task: str, photos: dict[str, Path], tmp_path: Path) -> None:
    explainer = ortcam.ScoreCAM(toy(task))
    asked = {"embed": ortcam.Similarity(photos["rocket"]), "value": ortcam.Output(2, -1)}.get(task)
    explanation = explainer.explain(photos["chelsea"], targets=asked)
    path = tmp_path / "report.html"
    with Report(path) as report:
        report.add(explanation)
    [row], [[_, overlay]] = read(path)[1:]
    target = explanation.targets[0]
    assert row["target"] == target.name
    if task in ("detect", "segment"):
        assert row["class"] == target.label
        assert (row["probability"], row["score"]) == (target.probability, None)
        bare = dataclasses.replace(explanation, targets=(dataclasses.replace(target, place=None),))
        difference = np.abs(decode(overlay).astype(int) - Thumbnails(bare, Style()).overlay(0)).max(axis=2)
        assert target.place is not None
        scale = np.array(difference.shape[::-1] * 2) / np.array(explanation.photo_size[::-1] * 2)
        left, top, right, bottom = np.clip(target.place["box"] * scale, 1, np.array(difference.shape[::-1] * 2) - 2)
        assert difference[round(top) : round(bottom), round((left + right) / 2)].max() > 60, "the box is drawn"
        for edge in (difference[:, round(right)], difference[round(bottom)]):
            assert edge.max() > 60
    else:
        assert row["class"] == target.name
        assert (row["probability"], row["score"]) == (None, target.logit)
        assert float(table(path)[0]["score"]) == pytest.approx(target.logit)


def test_a_packed_explainer(classifier: Path, photos: dict[str, Path], tmp_path: Path) -> None:
    packed = ortcam.pack(classifier, tmp_path / "packed.onnx", budget=4, verify=False).path
    path = tmp_path / "report.html"
    explanation = ortcam.load_explainer(packed).explain(photos["chelsea"])
    with Report(path) as report:
        report.add(explanation)
    [row] = read(path)[1]
    assert row["probability"] == explanation.targets[0].probability
    assert (row["channels"], row["scored"]) == (None, explanation.to_dict()["run"]["channels"]["scored"])


def test_pictures_keep_to_their_size() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (448, 448, 3), np.uint8)  # nothing is worse for a JPEG
    for most in (180_000, 30_000, 5_000):
        assert len(base64.b64decode(encode_small(noise, most))) <= most
    assert max(decode(base64.b64decode(encode_small(noise, 1))).shape) == 96


def test_the_contact_sheet_is_spread_over_the_run() -> None:
    sheet = Sheet(most=4)
    taken = []
    for number in range(19):
        if sheet.wants():
            taken.append(number)
            sheet.add(*[np.full((9, 9, 3), number, np.uint8)] * 2, f"n {number}")
    kept = [int(photo[0, 0, 0]) for photo, _, _ in sheet._entries]
    assert kept == [0, 8, 16]
    assert len(taken) < 12
    assert sheet.draw().shape[1] > 3 * 176
    shown = [as_caption(name, 7, "40%") for name in ("Müßig", "青", "a" * 30)]
    assert shown == ["Mussig 40%", "class 7 40%", "a" * 12 + "... 40%"]


def test_nothing_explained(tmp_path: Path) -> None:
    with Report(tmp_path / "new" / "report.html"):
        pass
    about, rows, _ = read(tmp_path / "new" / "report.html")
    assert (about["photos"], rows, table(tmp_path / "new" / "report.html")) == (0, [], [])
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["overview.png", "report.html", "results.csv"]


def test_formulas_do_not_run_in_a_spreadsheet(tmp_path: Path) -> None:
    with Report(tmp_path / "r.html") as report:
        report.fail('=HYPERLINK("x").jpg', "-1 is no photo")
        report.fail("-", "empty")
    assert [(line["path"], line["failure"]) for line in table(tmp_path / "r.html")] == [
        ('\'=HYPERLINK("x").jpg', "'-1 is no photo"),
        ("-", "empty"),
    ]


def test_a_report_that_cannot_be_written(explained: list[Pictures], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(OptionError, match=r"the report is report\.pdf; expected a name that ends in \.html"):
        Report("report.pdf")
    with pytest.raises(OutputError, match=r"it is a directory; give the name of a file"):
        Report(tmp_path / "folder.html")
    with pytest.raises(OutputError, match=r"file is a file, not a directory"), Report(tmp_path / "file" / "r.html"):
        pass
    with pytest.raises(OutputError, match=r"cannot write /proc/r\.html"), Report("/proc/r.html"):
        pass
    with pytest.raises(OptionError, match="least_probability is 2; expected a number from 0 to 1"):
        Report(tmp_path / "r.html", least_probability=2)
    with pytest.raises(OptionError, match="colormap 'pink' is unknown"):
        Report(tmp_path / "r.html", colormap="pink")
    with pytest.raises(OptionError, match=r"the report .* is not open; use it as: with Report"):
        Report(tmp_path / "r.html").add(explained[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.html"]


def test_nothing_is_left_where_the_block_raises(explained: list[Pictures], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Report(tmp_path / "r.html") as report:
        report.add(explained[0])
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_only_reports_are_replaced(explained: list[Pictures], photos: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    for _ in range(2):
        with Report(path) as report:
            report.add(explained[0])
    assert is_sheet(tmp_path / "overview.png")
    path.write_text("my thesis")
    with pytest.raises(
        OccupiedError,
        match=r"cannot write .*report\.html: a file of this name exists, and this report did not write it",
    ):
        Report(path)
    (tmp_path / "results.csv").write_text("mine,too\n")
    with pytest.raises(OccupiedError, match=r"cannot write .*results\.csv: a file"):
        Report(tmp_path / "other.html")
    with Report(path, overwrite=True):
        pass
    assert read(path)[0]["photos"] == 0
    with pytest.raises(OccupiedError, match=r"cannot write .*results\.csv: a file"):
        Report(tmp_path / "other.html")  # its table would replace that of the first report
    shutil.copy(photos["chelsea"], tmp_path / "overview.png")
    assert not is_sheet(tmp_path / "overview.png")
    with pytest.raises(OccupiedError, match=r"overview\.png: a picture of this name exists"):
        Report(path, overwrite=True)  # it may be a photo


# --- The command line ---


def test_the_command_line_writes_a_report(classifier: Path, photos: dict[str, Path], tmp_path: Path) -> None:
    """Without -o nothing else is written; the contact sheet is no photo of the next run."""
    shutil.copy(photos["chelsea"], tmp_path / "cat.png")
    (tmp_path / "broken.jpg").write_text("no photo")
    page = tmp_path / "report.html"
    arguments = ["explain", str(classifier), str(tmp_path), "--method", "score-cam", "--report", str(page), "--json"]
    for _ in range(2):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 1, done.output
        told = json.loads(done.stdout)
        assert told["report"] == str(page)
        assert [entry["directory"] for entry in told["explanations"]] == [None]
        rows = read(page)[1]
        assert [row["name"] for row in rows] == ["cat.png", "broken.jpg"]
        assert rows[0]["probability"] == told["explanations"][0]["targets"][0]["probability"]
        assert rows[1]["failure"] == told["errors"][0]["error"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "broken.jpg", "cat.png", "overview.png", "report.html", "results.csv",
    ]  # fmt: skip


def test_the_command_line_writes_a_report_and_a_folder(
    classifier: Path, photos: dict[str, Path], tmp_path: Path
) -> None:
    out, page = tmp_path / "out", tmp_path / "out" / "report.html"
    arguments = ["explain", str(classifier), str(photos["chelsea"]), "-o", str(out), "--report", str(page)]
    done = CliRunner().invoke(app, [*arguments, "--method", "score-cam"])
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in out.iterdir()) == ["chelsea", "overview.png", "report.html", "results.csv"]
    assert (out / "chelsea" / "explanation.json").is_file()
    assert f"written to {out}/ and {page}" in done.stderr


@pytest.mark.slow
def test_ctrl_c_leaves_no_report(classifier: Path, photos: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(400):
        shutil.copy(photos["chelsea"], folder / f"{number}.png")
    out = tmp_path / "out"
    command = [Path(sys.executable).with_name("ortcam"), "explain", classifier, folder, "--report", out / "r.html"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (out.is_dir() and any(out.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.5)
    assert process.poll() is None, "it was over too soon"
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert not out.exists()


# --- The page in a browser ---


@pytest.fixture(scope="module")
def many(explained: list[Pictures], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty photos with two targets each, and one that failed."""
    path = tmp_path_factory.mktemp("many") / "report.html"
    with Report(path) as report:
        for number in range(60):
            report.add(explained[number % 3], NASTY if number == 4 else f"photo {number}.jpg")
        report.fail("broken.jpg", "broken.jpg is no image")
    return path


@pytest.fixture
def opened(many: Path, browser: Any) -> Iterator[Any]:  # noqa: F811
    """The page with sixty photos; it must not fail, show a dialog of the browser, or load anything."""
    page = browser.new_page(viewport={"width": 1280, "height": 900}, bypass_csp=True)  # Playwright evaluates strings
    faults: list[str] = []
    page.on("pageerror", lambda fault: faults.append(str(fault)))
    page.on("dialog", lambda dialog: faults.append(dialog.message) or dialog.dismiss())
    page.on(
        "request", lambda request: None if request.url.startswith(("file:", "data:")) else faults.append(request.url)
    )
    page.goto(many.as_uri())
    yield page
    page.close()
    assert faults == []


def shown(page: Any, what: str = ".name") -> list[str]:
    found: list[str] = page.locator(f"#list .card {what}").all_text_contents()
    return found


def wait_until(page: Any, condition: str) -> None:
    """Ask until a condition in JavaScript is true. (`wait_for_function` asks again by eval, which the page forbids.)"""
    end = time.monotonic() + 30
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(20)


def wait_for_pictures(page: Any) -> None:
    wait_until(page, "[...document.querySelectorAll('.card img')].slice(0, 4).every((i) => i.naturalWidth > 1)")


@pytest.mark.slow
def test_the_page_shows_what_it_holds(opened: Any, explained: list[Pictures]) -> None:
    wait_for_pictures(opened)
    assert opened.inner_text("#found") == "All 121 entries"
    wait_until(opened, "document.querySelectorAll('.card').length === 121")
    first, target = opened.locator(".card").first, explained[0].targets[0]
    assert first.locator("h2").inner_text() == target.name
    assert first.locator(".value").inner_text() == f"{100 * target.probability:.1f} %"
    place = explained[0].measures[0].maximum
    assert place is not None
    assert f"maximum at {place[0]}, {place[1]}" in first.inner_text()
    assert opened.locator(".card.failed .message").text_content() == "broken.jpg is no image"
    assert NASTY in shown(opened)
    assert opened.locator(".card img").nth(8).get_attribute("src").startswith("data:image/jpeg;base64,")
    loaded = "document.querySelectorAll('.card img[src]').length"
    assert opened.evaluate(loaded) < 100, "pictures far from the screen are not in the page"
    opened.evaluate("scrollTo(0, document.body.scrollHeight)")
    wait_until(opened, "document.querySelectorAll('.card img')[239].naturalWidth > 1")
    wait_until(opened, "!document.querySelectorAll('.card img')[0].hasAttribute('src')")
    assert opened.evaluate(loaded) < 100


@pytest.mark.slow
def test_the_page_filters_and_sorts(opened: Any, many: Path) -> None:
    rows = read(many)[1]
    opened.fill("#text", "57 PHOTO")
    assert set(shown(opened)) == {"photo 57.jpg"}
    assert opened.inner_text("#found") == "2 of 121 entries, 1 photo"
    opened.fill("#text", "no such photo")
    assert opened.inner_text("#nothing") == "Nothing matches these filters."
    opened.click("#reset")
    wait_until(opened, "document.getElementById('found').textContent === 'All 121 entries'")
    name = rows[1]["class"]
    opened.select_option("#class", f"{rows[1]['index']}\n{name}")
    assert len(shown(opened)) == min(60, sum(row.get("class") == name for row in rows))
    assert set(shown(opened, "h2")) == {name}
    opened.click("#reset")
    wait_until(opened, "document.getElementById('found').textContent === 'All 121 entries'")
    opened.fill("#from", "20")
    opened.fill("#to", "60")
    within = [row for row in rows if "failure" not in row and 0.2 <= row["probability"] <= 0.6]
    assert opened.inner_text("#found").startswith(f"{len(within)} of 121 entries")
    opened.click("#reset")
    wait_until(opened, "document.getElementById('found').textContent === 'All 121 entries'")
    opened.check("#flags input[value=low]")
    low = sum("low" in row["flags"] for row in rows)
    assert 0 < low < 121 and opened.inner_text("#found").startswith(f"{low} of 121 entries")
    opened.check("#flags input[value=failed]")
    assert opened.inner_text("#found").startswith(f"{low + 1} of 121 entries")
    opened.click("#reset")
    opened.select_option("#sort", "value")
    opened.click("#order")
    assert opened.inner_text("#order") == "descending ↓"
    wait_until(opened, "document.querySelectorAll('.card').length === 121")
    values = [float(text.split()[0]) for text in shown(opened, ".value")]
    assert values == sorted(values, reverse=True)
    assert opened.locator(".card").last.get_attribute("class") == "card failed", "what has no probability comes last"
    opened.select_option("#sort", "name")
    opened.click("#order")
    wait_until(opened, "document.querySelectorAll('.card').length === 121")
    names = [name for name in shown(opened)[::2] if name.startswith("photo")]
    assert names == [f"photo {number}.jpg" for number in range(60) if number != 4], "2 comes before 10"


@pytest.mark.slow
def test_the_page_without_a_mouse(opened: Any, explained: list[Pictures]) -> None:
    opened.focus("#reset")
    opened.keyboard.press("Tab")
    label = "document.activeElement.getAttribute('aria-label')"
    assert opened.evaluate(label).startswith("Enlarge photo 0.jpg: ")
    opened.keyboard.press("ArrowRight")
    assert opened.evaluate(label).startswith("Enlarge photo 0.jpg: ")  # its second target
    opened.keyboard.press("ArrowDown")
    assert opened.evaluate(label).startswith("Enlarge photo 2.jpg: ")  # three cards in a row
    opened.keyboard.press("ArrowUp")
    opened.keyboard.press("Enter")
    assert opened.is_visible("#large")
    title = f"{explained[0].targets[1].name}, {100 * explained[0].targets[1].probability:.1f} %"
    assert opened.inner_text("#large-title") == title
    wait_until(opened, "document.getElementById('large-overlay').naturalWidth > 1")
    facts = dict(zip(*(opened.locator(f"#facts {tag}").all_inner_texts() for tag in ("dt", "dd")), strict=True))
    assert facts["Layer"] == "relu" and facts["Method"] == "score-cam" and facts["Preset"] == "official"
    assert facts["Stated error (1 - r)"] == "0 (exact)"
    box = explained[0].measures[1].peak_box
    assert box is not None
    assert facts["Box around it, to half the maximum"] == f"{box.left}, {box.top} to {box.right}, {box.bottom}"
    opened.keyboard.press("ArrowRight")
    assert opened.inner_text("#place") == "3 of 120"
    opened.keyboard.press("ArrowLeft")
    opened.keyboard.press("ArrowLeft")
    assert opened.inner_text("#place") == "1 of 120"
    opened.keyboard.press("ArrowLeft")  # there is no photo before the first
    assert opened.inner_text("#place") == "1 of 120"
    opened.keyboard.press("Escape")
    assert opened.is_hidden("#large")
    # The focus is where one was, as soon as the browser has told the page of the closing.
    wait_until(opened, f"({label}).startsWith('Enlarge photo 0.jpg: ')")


@pytest.mark.slow
def test_the_marks_are_where_the_numbers_are(opened: Any, many: Path) -> None:
    row = read(many)[1][0]
    opened.check("#marks")
    box = opened.locator(".card svg path.over").first
    assert box.is_visible()
    sides = row["peak_box"]
    frame, image = box.bounding_box(), opened.locator(".card img").nth(1).bounding_box()
    scale = image["width"] / row["width"]  # a wide photo fills the frame from side to side
    assert row["width"] >= row["height"]
    left = image["x"] + scale * sides["left"]
    assert frame["x"] == pytest.approx(left, abs=2)  # the line is 2 pixels wide
    assert frame["width"] == pytest.approx(scale * (sides["right"] - sides["left"]), abs=3)


@pytest.mark.slow
def test_the_page_prints_all_photos(opened: Any) -> None:
    opened.emulate_media(media="print")
    opened.evaluate("dispatchEvent(new Event('beforeprint'))")
    wait_until(opened, "[...document.querySelectorAll('.card img')].every((i) => i.naturalWidth > 1)")
    assert opened.locator(".card").count() == 121
    assert opened.is_hidden("#controls")
    assert opened.pdf(format="A4").count(b"/Subtype /Image") >= 3, "the pictures are in the file"


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_is_accessible(browser: Any, many: Path, width: int, scheme: str) -> None:  # noqa: F811
    axe = RUNTIMES / "node_modules" / "axe-core" / "axe.min.js"
    need(axe.is_file(), "axe-core")
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme, bypass_csp=True)
    page.goto(many.as_uri())
    wait_for_pictures(page)
    if width < 640:
        page.click("#panel summary")  # the filters are folded on a phone
    assert page.is_visible("#controls")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "no need to scroll sideways"
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 200) == (scheme == "dark")
    page.add_script_tag(path=axe)
    for is_large in (False, True):
        if is_large:
            page.locator(".open").first.click()
        found = page.evaluate("axe.run().then((found) => found.violations.map((one) => [one.id, one.nodes[0].html]))")
        assert found == []
    page.close()


@pytest.mark.slow
def test_the_page_runs_only_its_own_script(many: Path, browser: Any) -> None:  # noqa: F811
    page = browser.new_page()
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.goto(many.as_uri())
    page.wait_for_selector(".card")
    assert told == []
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=data: onerror=\"window.ran = 1\">')")
    page.wait_for_timeout(300)
    assert page.evaluate("window.ran") is None
    assert any("Content Security Policy" in text for text in told)
    page.close()
