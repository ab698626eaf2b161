"""Captions, colour bars and boxes on overlays: where they stand, what they say, and that they leave the photo alone."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import Tiny
from jsonschema import Draft202012Validator
from PIL import Image
from test_tasks import toy
from typer.testing import CliRunner

import ortcam
from ortcam.cli.app import app
from ortcam.core.measures import MapMeasures, contrast_maps
from ortcam.core.pictures import Crop
from ortcam.core.selection import EXACT, ErrorEstimate
from ortcam.core.targets import Target
from ortcam.errors import OptionError
from ortcam.exporters import export
from ortcam.exporters.report import ExportReport
from ortcam.output.caption import Caption, add_caption, describe, magnify, title_lines
from ortcam.output.render import Style, colour_table, draw_dashed_box, draw_overlay
from ortcam.output.schema import find_violation, schema
from ortcam.output.show import draw
from ortcam.output.text import AsciiFont, UnicodeFont, make_font, spell, wrap

LONG = "a label that somebody wrote as a whole sentence because their classes are described so " * 3
CAPTION = Caption("tabby", "class 281", "62.3%", ("score-cam, preset official", "exact map"))
needs_unicode = pytest.mark.skipif(not hasattr(cv2, "FontFace"), reason="OpenCV 4 has no font but Hershey's")


def ink(font: AsciiFont | UnicodeFont, text: str) -> np.ndarray:
    picture = np.zeros((40, 400, 3), np.uint8)
    font.draw(picture, text, 4, 28, 20, (255, 255, 255))
    return picture[:, :, 0]


@pytest.mark.parametrize("font", [make_font(), AsciiFont()])
def test_a_text_is_as_wide_as_it_says(font: AsciiFont | UnicodeFont) -> None:
    for text in ("tabby 62.3%", "WWWWW", "iiiii"):
        columns = np.flatnonzero(ink(font, text).any(axis=0))
        assert columns[-1] - 4 == pytest.approx(font.width(text, 20), abs=3)  # side bearings of the last letter
        rows = np.flatnonzero(ink(font, text).any(axis=1))
        assert 10 <= rows[-1] - rows[0] <= 22  # letters of one size, whichever OpenCV draws them


@needs_unicode
def test_labels_in_many_scripts_are_drawn_as_themselves() -> None:
    font = UnicodeFont()
    for label in ("Schäferhund", "Größe", "été", "金毛寻回犬", "いぬ", "개", "собака", "σκύλος", "chó", "what?"):
        assert spell(label, font) == label
        assert not np.array_equal(ink(font, label), ink(font, "?" * len(label)))
    for label in ("कुत्ता", "สุนัข", "🐶", "كلب", "כלב"):  # no letters, or letters from right to left
        assert spell(label, font) is None
    assert spell("a\nb\tc", font) == "a b c"
    assert spell("ḫound", font) == "hound"  # its h with a breve is missing


def test_opencv_4_draws_labels_without_accents() -> None:
    font = AsciiFont()
    assert spell("Weißkopf-Schäferhund", font) == "Weisskopf-Schaferhund"
    assert spell("d\u2019été \u2013 Łódź", font) == "d'ete - Lodz"
    assert spell("金毛", font) is None


def test_a_label_that_cannot_be_drawn_becomes_its_index() -> None:
    font = make_font()
    for target, expected in (
        (Target(207, "कुत्ता", 1.0, 0.5), "class 207 50.0%"),
        (Target(3, "कुत्ता", 1.0, 0.5, {"kind": "box", "box": [1, 2, 3, 4]}), "class 3 at 1,2,3,4 50.0%"),
        (Target(1, None, 0.31, 0.31, {"kind": "similarity", "like": "🐶.jpg"}), "similarity to reference 1 0.31"),
        (Target(2, None, -1.5, -1.5, {"kind": "value", "sign": -1}), "-value 2 -1.5"),
    ):
        assert title_lines(describe(target, None, False, {"name": "rise"}, "rise"), 600, 12, font) == [expected]


def test_long_labels_are_shortened_and_the_score_stays() -> None:
    font = make_font()
    for name in (LONG, "x" * 500, "金" * 300 if hasattr(cv2, "FontFace") else "y" * 300):
        caption = Caption(name, "class 3", "7.1%", ())
        for width in (150, 300, 900):
            lines = title_lines(caption, width, 12, font)
            assert len(lines) <= 2
            assert lines[-1].endswith("... 7.1%")
            assert max(font.width(line, 12) for line in lines) <= width
    assert wrap("one two three", font.width("one two", 12), 12, font) == ["one two", "three"]


def test_what_a_caption_says() -> None:
    cat, dog = Target(281, "tabby, tabby cat", 9.0, 0.623), Target(243, "bull mastiff", 8.0, 0.2)
    official, rise = {"name": "score-cam"}, {"name": "rise", "masks": 10}
    assert describe(cat, EXACT, False, official, "paper") == Caption(
        "tabby", "class 281", "62.3%", ("score-cam", "preset paper", "exact map")
    )
    assert (
        describe(cat, ErrorEstimate(0.0042, 0.001, 0.009), False, official, "paper").details[2] == "error about 0.004"
    )
    assert describe(cat, None, False, official, "paper").details[2] == "error unknown"
    assert describe(cat, None, False, rise, "rise").details == ("rise",)
    assert describe(cat, EXACT, True, official, "paper").details[2].startswith("flat map")
    measures = MapMeasures((1, 1), Crop(0, 0, 2, 2), 0.1, 0.1, Crop(0, 0, 2, 2), 0.041)
    assert describe(cat, None, False, rise, "rise", measures).details[1] == (
        "box around half of the maximum: 4.1% of the photo"
    )
    assert str(describe(cat, EXACT, False, rise, "rise", against=dog)) == "tabby rather than bull mastiff"


@pytest.mark.parametrize("size", [(300, 225), (225, 300), (640, 480), (3000, 200), (30, 900), (168, 10)])
def test_the_overlay_stays_above_its_caption(size: tuple[int, int]) -> None:
    width, height = size
    overlay = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    made = add_caption(overlay, CAPTION, "turbo")
    assert np.array_equal(made[:height, :width], overlay)
    assert made.shape[1] == max(width, 168)
    strip = made[height + 4 :]
    assert (strip[-2:] == 255).all() and (strip[:, :2] == 255).all() and (strip[:, -2:] == 255).all()  # nothing is cut
    assert (strip.max(axis=2) < 60).any()  # dark letters
    for level, cover in ((255, 1.0), (64, 0.5)):  # the bar fades to white as the overlay fades to the photo
        colour = colour_table("turbo")[level] * cover + 255 * (1 - cover)
        assert np.abs(strip - colour).max(axis=2).min() <= 4  # narrow bars skip levels


def test_tiny_photos_are_magnified() -> None:
    overlay = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
    magnified = magnify(overlay)
    assert magnified.shape == (6 * 24, 6 * 32, 3)
    assert np.array_equal(magnified[3::6, 3::6], overlay)
    assert magnify(np.zeros((50, 168, 3), np.uint8)).shape == (50, 168, 3)


def test_a_dashed_box_changes_nothing_but_its_outline() -> None:
    overlay = np.full((90, 120, 3), 128, np.uint8)
    drawn = draw_dashed_box(overlay, Crop(20, 30, 90, 120))  # up to the photo's edge
    inside = np.zeros((90, 120), bool)
    inside[20:90, 30:120] = True
    outline = inside.copy()
    outline[21:89, 31:119] = False
    assert (drawn[~outline] == 128).all()
    assert set(np.unique(drawn[outline])) == {0, 255}  # black and white: one of them is seen on any photo
    assert 0.3 < (drawn[outline] == 255).mean() < 0.7
    assert (overlay == 128).all()
    assert draw_dashed_box(overlay, Crop(5, 5, 6, 6))[5, 5, 0] == 255


def test_a_style_is_checked() -> None:
    with pytest.raises(OptionError, match="nearest: turbo"):
        Style(colormap="turbos")
    with pytest.raises(OptionError, match="from 0 to 1"):
        Style(opacity=2)


@pytest.fixture(scope="module")
def tiny_report(models: Path) -> ExportReport:
    labels = ["金毛", *(f"label {n}" for n in range(1, 10))]
    return export(Tiny().eval(), models / "caption.onnx", preprocess="imagenet", input_size=64, labels=labels)


@pytest.fixture(scope="module")
def tiny_file(tiny_report: ExportReport) -> Path:
    return tiny_report.path


@pytest.fixture
def work(tiny_file: Path, photos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copy(tiny_file, "m.onnx")
    with Image.open(photos["chelsea"]) as photo:
        photo.save("cat.png")
        photo.resize((32, 24)).save("tiny.png")
    return tmp_path


def test_explain_writes_captions_and_boxes(work: Path) -> None:
    command = ["explain", "m.onnx", "cat.png", "tiny.png", "-t", "0", "-t", "3", "--method", "score-cam"]
    for name, more in (("plain", ["--no-caption"]), ("words", []), ("boxes", ["--boxes"])):
        done = CliRunner().invoke(app, [*command, "-o", name, *more])
        assert done.exit_code == 0, done.stderr
    explanation = ortcam.ScoreCAM("m.onnx").explain("cat.png", [0, 3])
    for place, file in enumerate(("overlay-0.png", "overlay-3-label-3.png")):
        plain, words, boxes = (
            cv2.imread(f"{name}/cat/{file}")[:, :, ::-1].astype(int) for name in ("plain", "words", "boxes")
        )
        overlay = explanation.overlay_at(place)
        height = len(overlay)
        assert np.array_equal(plain, overlay)
        assert np.array_equal(plain, draw_overlay(explanation.photo, explanation.maps[place], explanation.crop))
        assert np.array_equal(words[:height], overlay)
        assert np.array_equal(words, explanation.overlay_at(place, caption=True))
        box = explanation.measures[place].peak_box
        assert box is not None
        assert set(np.unique(boxes[box.top, box.left : box.right])) == {0, 255}
        assert np.array_equal(
            boxes[box.top + 1 : box.bottom - 1, box.left + 1 : box.right - 1],
            overlay[box.top + 1 : box.bottom - 1, box.left + 1 : box.right - 1],
        )
    assert cv2.imread("words/tiny/overlay-0.png").shape[1] == 192
    assert cv2.imread("plain/tiny/overlay-0.png").shape == (24, 32, 3)


def test_the_record_has_the_box_of_the_maximum(work: Path) -> None:
    explanation = ortcam.ScoreCAM("m.onnx").explain("cat.png", [0, 3])
    record = json.loads((explanation.save("x") / "explanation.json").read_text())
    Draft202012Validator(schema()).validate(record)
    for target, saliency in zip(record["targets"], explanation.maps, strict=True):
        box, (x, y) = target["peak_box"], (target["maximum"]["x"], target["maximum"]["y"])
        inside = saliency[box["top"] : box["bottom"], box["left"] : box["right"]]
        assert box["left"] <= x < box["right"] and box["top"] <= y < box["bottom"]
        assert inside.max() == saliency.max()
        for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
            assert edge.max() >= saliency.max() / 2  # it is no larger than it must be
        assert target["peak_share"] == pytest.approx(inside.size / saliency.size)
        del target["peak_box"], target["peak_share"]
    assert find_violation(record, schema()) is None  # an older ortcam wrote neither


def test_reports_print_short(tiny_report: ExportReport, tmp_path: Path) -> None:
    report = dataclasses.replace(tiny_report, notices=("one", "two"))
    first, second, third, *notes = str(report).splitlines()
    size = report.path.stat().st_size / 1e6
    assert first == f"{report.path}: logits, 10 labels, {size:.1f} MB"
    assert second == "target layer features (16 x 16 x 16)"
    assert re.fullmatch(
        r"agrees with its source: scores within \de-\d+, target layer within \de-\d+ \(relative\)", third
    )
    assert notes == ["note: one", "note: two"]
    assert repr(report) == f"<ExportReport of {report.path}: target layer features (16 x 16 x 16)>"
    packed = ortcam.pack(report.path, tmp_path / "p.onnx", budget=6)
    first, second, *notes = str(packed).splitlines()
    assert notes == [f"note: {notice}" for notice in packed.notices]
    size = packed.path.stat().st_size / 1e6
    named = f"{packed.path}: score-cam, preset official, budget 6, source {report.path.name}"
    assert first == f"{named}, {size:.1f} MB"
    assert re.fullmatch(r"agrees with the engine: r 1\.0+, largest difference \de-\d+", second)
    assert repr(packed) == f"<PackReport of {named}>"
    assert "not checked" in str(dataclasses.replace(packed, r=None))


def test_packed_explanations_show_themselves(tiny_file: Path, photos: dict[str, Path], tmp_path: Path) -> None:
    ortcam.pack(tiny_file, tmp_path / "p.onnx", budget=6, verify=False)
    with ortcam.PackedExplainer(tmp_path / "p.onnx", provider="cpu") as explainer:
        explanation = explainer.explain(photos["chelsea"], [0, 3])
    assert re.fullmatch(
        r"<PackedExplanation of chelsea.png, 451x300: 金毛 [\d.]+%, label 3 [\d.]+%; "
        r"score-cam, preset official, layer features, error unknown>",
        str(explanation),
    )
    assert explanation._repr_html_().count("<img ") == 2
    assert np.array_equal(explanation.contrast("label 3", 0), contrast_maps(*explanation.maps[::-1]))
    contrast = explanation.overlay(3, against=0, boxes=True)
    assert np.array_equal(contrast, explanation.overlay_at(1, against=0, boxes=True))
    assert not np.array_equal(contrast, explanation.overlay(3, boxes=True))


def test_boxes_of_detectors_are_drawn_at_any_size(photos: dict[str, Path]) -> None:
    with ortcam.ScoreCAM(toy("detect")) as detector:
        explanation = detector.explain(photos["chelsea"], ortcam.Box((20, 30, 200, 220), 0))
    assert " at 20,30,200,220 " in str(explanation)
    small = draw(explanation, 0, Style(), longest=150).astype(int)
    assert small.shape == (100, 150, 3)
    white = (small > 225).all(axis=2)
    for row, column in ((10, 30), (73, 30), (40, 7), (40, 66)):  # the sides of the box, at a third of their size
        assert white[row - 1 : row + 2, column - 1 : column + 2].any(), (row, column)
    with_words = explanation.overlay_at(0, caption=True)
    assert np.array_equal(with_words[:300, :451], explanation.overlay_at(0))
