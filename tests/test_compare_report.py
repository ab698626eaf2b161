"""The report of a comparison: what the page says, what it replaces, and the page in a browser."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from conftest import correlation
from test_compare import classifier
from test_report import NASTY, decode, wait_until
from test_runtimes import RUNTIMES, browser, need  # noqa: F401 - a fixture
from typer.testing import CliRunner

from ortcam import ScoreCAM
from ortcam.cli.app import app
from ortcam.comparison import Column, Comparison, compare
from ortcam.errors import OccupiedError, OptionError, OutputError
from ortcam.evaluation.statistics import mean_interval
from ortcam.report import CompareReport

LABELS = ("cat, tabby", "dog", "</script><b>tree", "car")


def flat_classifier() -> onnx.ModelProto:
    """A classifier whose layer is constant: its maps are flat."""
    model = classifier(labels=LABELS)
    for tensor in model.graph.initializer:
        if tensor.name == "kernel":
            zeros = np.zeros(tuple(tensor.dims), np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(zeros, "kernel"))
    return model


@pytest.fixture(scope="module")
def files(photos: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of one network, one with much noise, and four photos, of which one has a name that is HTML."""
    folder = tmp_path_factory.mktemp("compare")
    onnx.save(classifier(labels=LABELS), folder / "old.onnx")
    onnx.save(classifier(1.5, labels=LABELS), folder / "new.onnx")
    (folder / "photos").mkdir()
    for name in ("chelsea", "coffee", "astronaut", "rocket"):
        picture = cv2.resize(cv2.imread(str(photos[name])), (90, 60))
        cv2.imwrite(str(folder / "photos" / (NASTY if name == "rocket" else f"{name}.png")), picture)
    return folder


def pictures(files: Path) -> list[Path]:
    return sorted((files / "photos").iterdir())


@pytest.fixture(scope="module")
def made(files: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Comparison]:
    """A page of three columns, and the comparison that it shows."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    columns = [Column(files / "old.onnx"), Column(files / "new.onnx"), Column(files / "old.onnx", "recipro-cam")]
    with CompareReport(path) as report:
        result = compare(columns, pictures(files), on_compared=report.add)
        report.write(result)
    return path, result


def read(page: Path) -> tuple[dict[str, Any], list[list[bytes]]]:
    """Return the data of a page, and the JPEG files of each photo."""
    text = page.read_text(encoding="utf-8")
    [data] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    blocks = re.findall(r'<script type="application/json" id="p\d+">(.*?)</script>', text, re.DOTALL)
    return json.loads(data), [[base64.b64decode(one) for one in json.loads(block)] for block in blocks]


def test_the_page_says_what_the_comparison_says(made: tuple[Path, Comparison]) -> None:
    page, result = made
    data, _ = read(page)
    ranked = sorted(result.photos, key=lambda photo: photo.rank)
    assert [row["name"] for row in data["rows"]] == [photo.name for photo in ranked]
    assert [row["order"] for row in data["rows"]] == [result.photos.index(photo) for photo in ranked]
    for row, photo in zip(data["rows"], ranked, strict=True):
        assert row["least"] == photo.rank
        for place, (told, cell) in enumerate(zip(row["cells"], photo.cells, strict=True)):
            assert (told["target"], told["probability"]) == (cell.target.name, cell.target.probability)
            assert cell.predicted is not None
            assert (told["top"]["name"], told["top"]["probability"]) == (
                cell.predicted.name,
                cell.predicted.probability,
            )
            if place:
                pair = photo.with_first(place)
                assert (told["r"], told["changed"]) == (pair.similarity.r, pair.same_class is False)
    assert [(pair["first"], pair["second"]) for pair in data["pairs"]] == [(0, 1), (0, 2), (1, 2)]
    for at, pair in enumerate(data["pairs"]):
        values = [photo.pairs[at].similarity.r for photo in result.photos]
        interval = mean_interval([value for value in values if value is not None])
        assert pair["r"] == [interval.mean, interval.low, interval.high]
        assert pair["least"] == min(value for value in values if value is not None)
    changed = sum(photo.with_first(1).same_class is False for photo in result.photos)
    assert 0 < changed < 4, "the test needs a class that changes"
    assert [pair["changed"] for pair in data["pairs"]] == [changed, None, changed]
    assert data["pairs"][0]["changed_share"][0] == changed / 4
    assert data["about"]["lines"] == result.lines()


def test_the_pictures_are_the_photo_and_the_maps(made: tuple[Path, Comparison], files: Path) -> None:
    """The tolerance allows for JPEG at quality 80, and for pixels that are repeated."""
    data, blocks = read(made[0])
    old = ScoreCAM(files / "old.onnx")
    for row, block in zip(data["rows"], blocks, strict=True):
        path = files / "photos" / row["name"]
        explanation = old.explain(path)
        expected = [cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB), explanation.overlay()]
        assert len(block) == 4
        assert sum(map(len, block)) < 135_000
        for data_of_one, picture in zip(block, expected, strict=False):
            small = cv2.resize(decode(data_of_one), picture.shape[1::-1], interpolation=cv2.INTER_AREA)
            assert correlation(small, picture) > 0.97


def test_names_and_labels_are_harmless(made: tuple[Path, Comparison]) -> None:
    text = made[0].read_text(encoding="utf-8")
    assert NASTY not in text and LABELS[2] not in text
    assert "http://" not in text and "https://" not in text


def test_a_report_that_cannot_be_written_is_told_before_the_work(
    made: tuple[Path, Comparison], files: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.html").write_text("mine")
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "file").touch()
    arguments = ["compare", *(str(files / name) for name in ("old.onnx", "new.onnx", "photos")), "--report"]
    for page, kind, words in (
        ("report.pdf", OptionError, "expected a name that ends in .html"),
        ("mine.html", OccupiedError, "mine.html: a file of this name exists, and no report of ortcam compare wrote it"),
        ("folder.html", OutputError, "it is a directory"),
        ("file/report.html", OutputError, "file is a file, not a directory"),
        ("/proc/none/report.html", OutputError, "cannot write"),
    ):
        done = CliRunner().invoke(app, [*arguments, str(tmp_path / page)])
        assert isinstance(done.exception, kind), done.output
        assert words in str(done.exception) and "\n" not in str(done.exception)
        assert "r 1.000" not in done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.html", "mine.html"]
    with pytest.raises(OptionError, match=r"is not open; use it as: with CompareReport\('r.html'\) as report"):
        CompareReport(tmp_path / "r.html").write(made[1])


def test_an_error_leaves_no_report(files: Path, tmp_path: Path) -> None:
    columns = [Column(files / "old.onnx"), Column(files / "new.onnx")]
    with pytest.raises(KeyboardInterrupt), CompareReport(tmp_path / "new" / "r.html") as report:
        compare(columns, pictures(files), on_compared=report.add)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def run(files: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.chdir(files)
    return lambda *words: CliRunner().invoke(app, ["compare", *words])


def test_a_comparison_is_not_replaced_by_one_of_another_question(
    run: Callable[..., Any], files: Path, tmp_path: Path
) -> None:
    """The report may lie in the folder of the results. All of it is replaced together, or nothing."""
    out = tmp_path / "out"
    shutil.copytree(files / "photos", tmp_path / "photos")
    words = ["old.onnx", "new.onnx", str(tmp_path / "photos"), "-o", str(out), "--report", str(out / "report.html")]
    for _ in range(2):
        done = run(*words, "--budget", "4", "--batch-size", "2")
        assert done.exit_code == 0, done.exception or done.output
        assert sorted(path.name for path in out.iterdir()) == [
            "comparison.csv", "comparison.json", "grid.png", "report.html",
        ]  # fmt: skip
    assert run(*words[:-2], "--budget", "4").exit_code == 0
    assert (out / "report.html").is_file(), "reports in the folder are kept"
    before = (out / "comparison.json").read_text()

    def refused(told: str, *words: str) -> None:
        done = run(*words)
        assert isinstance(done.exception, OccupiedError), done.output
        assert told in str(done.exception) and "\n" not in str(done.exception)
        assert "give another folder, or overwrite=True (--overwrite)" in str(done.exception)
        assert (out / "comparison.json").read_text() == before and (out / "report.html").is_file()

    refused("it holds results with old.onnx.budget = 4; expected 5", *words, "--budget", "5")
    refused(
        'columns = ["old.onnx", "new.onnx"]; expected',
        *words,
        "--budget",
        "4",
        "--method",
        "score-cam",
        "--method",
        "cam",
    )
    refused('old.onnx.target = null; expected "dog"', *words, "--budget", "4", "-t", "dog")
    refused("it holds results of other photos", *words[:2], "photos/coffee.png", *words[3:], "--budget", "4")
    shutil.copy(tmp_path / "photos" / "coffee.png", tmp_path / "photos" / "chelsea.png")
    refused("it holds results of another photo chelsea.png", *words, "--budget", "4")
    done = run(*words, "--budget", "5", "--overwrite")
    assert done.exit_code == 0, done.exception
    assert json.loads((out / "comparison.json").read_text())["budget"] == 5
    (out / "comparison.json").write_text("{}")
    before = "{}"
    refused("it holds results without a complete comparison.json", *words, "--budget", "5")


def test_the_same_photo_counts_once(run: Callable[..., Any], files: Path, tmp_path: Path) -> None:
    shutil.copy(files / "photos" / "coffee.png", tmp_path / "copy.png")
    arguments = ["old.onnx", "new.onnx", "photos/coffee.png", "photos/chelsea.png", "-o", str(tmp_path / "out")]
    once = json.loads(run(*arguments, "--json").stdout)
    twice = [*arguments, str(tmp_path / "copy.png"), "--overwrite"]
    done = run(*twice)
    assert "2 photos; each column" in done.output
    assert "photos given twice count once: copy.png (the same file as coffee.png)" in done.output
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert found["repeated"] == [{"photo": "copy.png", "same_as": "coffee.png"}]
    assert found["summaries"] == once["summaries"]
    assert run(*twice[:-1]).exit_code == 0, "the same question, with the copy"


# --- The page in a browser ---


@pytest.fixture(scope="module")
def many(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty photos, four of which are different, and one that is broken; the third column has flat maps."""
    folder = tmp_path_factory.mktemp("many")
    onnx.save(flat_classifier(), folder / "flat.onnx")
    photos = [cv2.imread(str(path)) for path in pictures(files)]
    for number in range(60):
        photo = photos[number % 4].copy()
        photo[0, 0] = number  # no two files are the same
        cv2.imwrite(str(folder / (NASTY[:-4] + ".png" if number == 4 else f"photo {number}.png")), photo)
    (folder / "broken.png").write_bytes(b"no picture")
    models = [files / "old.onnx", files / "new.onnx"]
    words = [*map(str, models), str(folder), "--report", str(folder / "out" / "report.html")]
    assert CliRunner().invoke(app, ["compare", *words]).exit_code == 1
    return folder / "out" / "report.html"


@pytest.fixture
def opened(many: Path, browser: Any) -> Iterator[Any]:  # noqa: F811
    """The page; it must not fail, or load anything."""
    page = browser.new_page(viewport={"width": 1280, "height": 900}, bypass_csp=True)  # Playwright evaluates strings
    faults: list[str] = []
    page.on("pageerror", lambda fault: faults.append(str(fault)))
    page.on("dialog", lambda dialog: faults.append(dialog.message) or dialog.dismiss())
    page.on(
        "request", lambda request: None if request.url.startswith(("file:", "data:")) else faults.append(request.url)
    )
    page.goto(many.as_uri())
    wait_until(page, "[...document.querySelectorAll('.card img')].slice(0, 3).every((one) => one.naturalWidth > 1)")
    yield page
    page.close()
    assert faults == []


def names(page: Any) -> list[str]:
    wait_until(page, "made === chosen.length")
    found: list[str] = page.locator("#list .card h3").all_text_contents()
    return found


@pytest.mark.slow
def test_the_page_filters_and_sorts(opened: Any, many: Path) -> None:
    rows = read(many)[0]["rows"]
    assert opened.inner_text("#found") == "All 60 photos"
    assert names(opened) == [row["name"] for row in rows]
    first = opened.locator(".card").first
    assert first.locator("figcaption .r").inner_text() == f"r {rows[0]['least']:.3f}"
    cell = rows[0]["cells"][0]
    assert f"{cell['target']} {100 * cell['probability']:.1f}" in first.inner_text()
    assert opened.locator("#failures li").inner_text().startswith("broken.png: ")
    opened.fill("#text", "PHOTO 57")
    assert names(opened) == ["photo 57.png"]
    opened.fill("#text", "no such photo")
    assert opened.inner_text("#nothing") == "Nothing matches these filters."
    opened.click("#reset")
    wait_until(opened, "document.getElementById('found').textContent === 'All 60 photos'")
    middle = (rows[0]["least"] + rows[-1]["least"]) / 2
    opened.fill("#to", str(middle))
    assert names(opened) == [row["name"] for row in rows if row["least"] <= middle]
    opened.click("#reset")
    wait_until(opened, "document.getElementById('found').textContent === 'All 60 photos'")
    opened.check("#flags input[value=changed]")
    changed = [row["name"] for row in rows if row["cells"][1]["changed"]]
    assert 0 < len(changed) < 60 and names(opened) == changed
    opened.click("#reset")
    wait_until(opened, "document.getElementById('found').textContent === 'All 60 photos'")
    opened.click("#order")
    assert opened.inner_text("#order") == "descending ↓"
    least = {row["name"]: row["least"] for row in rows}
    found = [least[name] for name in names(opened)]
    assert found == sorted(found, reverse=True)
    opened.select_option("#sort", "name")
    assert opened.inner_text("#order") == "ascending ↑"
    assert [name for name in names(opened) if name.startswith("photo")][:3] == [
        "photo 0.png",
        "photo 1.png",
        "photo 2.png",
    ]
    opened.select_option("#sort", "moved")
    moved = {row["name"]: abs(row["cells"][1]["probability"] - row["cells"][0]["probability"]) for row in rows}
    found = [moved[name] for name in names(opened)]
    assert found == sorted(found, reverse=True), "the largest change comes first"


@pytest.mark.slow
def test_the_page_without_a_mouse(opened: Any, many: Path) -> None:
    rows = read(many)[0]["rows"]
    opened.focus("#reset")
    opened.keyboard.press("Tab")
    name = "document.activeElement.textContent"
    assert opened.evaluate(name) == rows[0]["name"]
    opened.keyboard.press("ArrowRight")
    opened.keyboard.press("ArrowDown")  # two cards in a row
    assert opened.evaluate(name) == rows[3]["name"]
    opened.keyboard.press("Enter")
    assert opened.inner_text("#large-title") == rows[3]["name"]
    wait_until(
        opened, "[...document.querySelectorAll('#large img')].filter((one) => one.naturalWidth > 1).length === 3"
    )
    table = opened.locator("#large-pairs td").all_inner_texts()
    assert table == ["new.onnx", "old.onnx", *(f"{value:.3f}" for value in rows[3]["pairs"][0])]
    opened.keyboard.press("ArrowRight")
    assert opened.inner_text("#place") == "5 of 60"
    opened.keyboard.press("Escape")
    wait_until(opened, f"{name} === {json.dumps(rows[4]['name'])}")
    opened.locator("#first button").nth(1).click()
    assert opened.inner_text("#place") == "2 of 60"
    opened.keyboard.press("Escape")
    wait_until(opened, "document.activeElement.closest('#first') !== null")


@pytest.mark.slow
def test_the_page_prints_all_photos(opened: Any) -> None:
    opened.emulate_media(media="print")
    opened.evaluate("dispatchEvent(new Event('beforeprint'))")
    wait_until(opened, "[...document.querySelectorAll('.card img')].every((one) => one.naturalWidth > 1)")
    assert opened.locator(".card").count() == 60
    assert opened.is_hidden("#controls")


@pytest.mark.slow
def test_many_columns_and_flat_maps(browser: Any, many: Path, files: Path, tmp_path: Path) -> None:  # noqa: F811
    models = [files / "old.onnx", files / "new.onnx", many.parent.parent / "flat.onnx"]
    columns = [Column(model, method) for model in models for method in ("score-cam", "cam", "recipro-cam", "eigen-cam")]
    page = tmp_path / "report.html"
    with CompareReport(page) as report:
        report.write(compare(columns, pictures(files), on_compared=report.add))
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.goto(page.as_uri())
    assert tab.locator(".card").first.locator("figure").count() == 13
    assert tab.locator("#pairs tbody tr:visible").count() == 11
    tab.click("#all-pairs")
    assert tab.locator("#pairs tbody tr:visible").count() == 66
    assert tab.locator(".card").first.locator(".r.low").all_text_contents()[-2:] == ["no r", "flat map"]
    assert tab.locator("#flags input[value=flat]").count() == 1
    tab.close()


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_is_accessible(browser: Any, many: Path, width: int, scheme: str) -> None:  # noqa: F811
    axe = RUNTIMES / "node_modules" / "axe-core" / "axe.min.js"
    need(axe.is_file(), "axe-core")
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme, bypass_csp=True)
    page.goto(many.as_uri())
    wait_until(page, "[...document.querySelectorAll('.card img')].slice(0, 3).every((one) => one.naturalWidth > 1)")
    if width < 640:
        page.click("#panel summary")  # the filters are folded on a phone
    assert page.is_visible("#controls")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "no need to scroll sideways"
    page.add_script_tag(path=axe)
    for is_large in (False, True):
        if is_large:
            page.locator(".card .open").first.click()
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
    page.close()
