"""Letterboxing: as ultralytics pads, and back from the input to the same pixels of the photo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from conftest import Tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from PIL import Image
from typer.testing import CliRunner

import ortcam
from ortcam.cli.app import app
from ortcam.core.pictures import Crop
from ortcam.deploy.triton import write_triton
from ortcam.errors import OptionError
from ortcam.evaluation.maps import as_map
from ortcam.exporters import export
from ortcam.graph.builder import Builder
from ortcam.graph.photo import photo_sides, write_placing
from ortcam.model.image import read_photo
from ortcam.model.preprocessing import Preprocessing
from ortcam.output.render import place_map
from ortcam.output.schema import schema

SIZES = [(480, 640), (300, 451), (61, 37), (901, 333), (64, 64), (1, 50)]
FITS: dict[str, dict[str, Any]] = {
    "letterbox": {"fit": "letterbox"},
    "end": {"fit": "letterbox", "pad_place": "end"},
    "stretch": {"fit": "stretch"},
    "crop": {"fit": "crop", "resize": 110},
}


def ultralytics(photo: np.ndarray, height: int, width: int, centre: bool = True) -> np.ndarray:
    """LetterBox with its defaults, as ultralytics.data.augment states it (8.3), for photos uint8 [H,W,3]."""
    ratio = min(height / photo.shape[0], width / photo.shape[1])
    inner_w, inner_h = max(round(photo.shape[1] * ratio), 1), max(round(photo.shape[0] * ratio), 1)
    across, down = (width - inner_w) / (2 if centre else 1), (height - inner_h) / (2 if centre else 1)
    inner = cv2.resize(photo, (inner_w, inner_h), interpolation=cv2.INTER_LINEAR)
    top, left = (round(down - 0.1), round(across - 0.1)) if centre else (0, 0)
    bottom, right = round(down + 0.1), round(across + 0.1)
    return cv2.copyMakeBorder(inner, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(114, 114, 114))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(8, 150), st.integers(8, 150), st.booleans())
def test_the_padding_lies_where_ultralytics_pads(h: int, w: int, height: int, width: int, centre: bool) -> None:
    photo = np.full((h, w, 3), 7, np.uint8)
    known = Preprocessing(height, width, fit="letterbox", pad_place="centre" if centre else "end")
    ours = known.apply(photo, "NHWC")[0]
    # 1e-4: the weights of a filter sum to 1 within the rounding of float32
    np.testing.assert_allclose(ours, ultralytics(photo, height, width, centre), atol=1e-4)


@pytest.mark.parametrize("size", [(320, 320), (640, 640), (384, 640)])
def test_linear_agrees_with_opencv(photos: dict[str, Path], size: tuple[int, int]) -> None:
    """OpenCV rounds to 8 bits at the end, and its weights to 11 bits."""
    for name in ("chelsea", "rocket"):
        photo = read_photo(photos[name])
        ours = Preprocessing(*size, fit="letterbox", interpolation="linear").apply(photo, "NHWC")[0]
        assert np.abs(ours - ultralytics(photo, *size)).max() <= 0.8  # of 255


def test_bilinear_agrees_with_pillow(photos: dict[str, Path]) -> None:
    """Antialiased, as Pillow, which rounds to 8 bits after each of its two passes."""
    photo = read_photo(photos["chelsea"])  # 300 x 451
    ours = Preprocessing(128, 128, fit="letterbox").apply(photo, "NHWC")[0]
    theirs = np.full((128, 128, 3), 114.0)
    theirs[21:106] = np.asarray(Image.fromarray(photo).resize((128, 85), Image.Resampling.BILINEAR))
    assert np.abs(ours - theirs).max() <= 1.2  # of 255
    assert np.array_equal(ours[:21], theirs[:21]) and np.array_equal(ours[106:], theirs[106:])


def test_padding_is_in_the_order_of_the_channels_and_is_scaled_with_them() -> None:
    photo = np.full((2, 4, 3), (10, 20, 30), np.uint8)
    scaled = {"fit": "letterbox", "scale": 0.5, "std": 2}
    bgr = Preprocessing(4, 4, "BGR", mean=(1, 2, 3), pad_value=(40, 80, 120), **scaled).apply(photo)[0]
    assert bgr[:, 0, 0].tolist() == [(20 - 1) / 2, (40 - 2) / 2, (60 - 3) / 2]
    np.testing.assert_allclose(bgr[:, 1, 0], [(15 - 1) / 2, (10 - 2) / 2, (5 - 3) / 2], atol=1e-5)
    grey = Preprocessing(4, 4, "GRAY", mean=0, pad_value=100, **scaled).apply(photo)[0]
    assert grey[0, :, 0] == pytest.approx([25, *[(0.299 * 10 + 0.587 * 20 + 0.114 * 30) / 4] * 2, 25], abs=1e-5)


def test_without_fit_the_json_means_what_it_meant() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)
    for resize, fit in ((None, "stretch"), (40, "crop"), ((45, 50), "crop")):
        old = Preprocessing(32, 32, resize=resize)
        assert not {"fit", "pad_value", "pad_place"} & old.to_dict().keys()
        said = Preprocessing.from_dict({**old.to_dict(), "fit": fit})
        assert np.array_equal(said.apply(photo), old.apply(photo)) and said.crop(50, 70) == old.crop(50, 70)
    boxed = Preprocessing(32, 48, fit="letterbox", pad_value=0)
    assert Preprocessing.from_dict(json.loads(json.dumps(boxed.to_dict()))) == boxed
    assert boxed.resized(64, 64) == Preprocessing(64, 64, fit="letterbox", pad_value=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fit": "letterbox", "resize": 40}, "fit is 'letterbox' and resize is 40; expected resize null"),
        ({"fit": "stretch", "resize": [40, 40]}, r"fit is 'stretch' and resize is \(40, 40\); expected resize null"),
        ({"fit": "crop"}, "fit is 'crop' and resize is null; expected resize"),
        ({"pad_value": 0}, "pad_value is 0 and fit is None; expected fit 'letterbox'"),
        ({"fit": "stretch", "pad_place": "end"}, "pad_place is 'end' and fit is 'stretch'"),
        ({"fit": "letterbox", "pad_value": 256}, "pad_value is 256; expected numbers from 0 to 255"),
        ({"fit": "letterbox", "pad_value": [1, 2]}, "pad_value has the values"),
        ({"fit": "letterbox", "pad_place": "center"}, "pad_place is 'center'; expected centre or end"),
        ({"fit": "pad"}, "fit is 'pad'; expected letterbox, stretch or crop"),
    ],
)
def test_contradictions_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        Preprocessing.from_dict({"height": 32, "width": 32, **fields})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fit", FITS)
def test_a_hot_cell_lands_on_the_pixels_of_its_box(fit: str, size: tuple[int, int]) -> None:
    """From a cell of 1 to its neighbours of 0, a bilinear map passes 0.5 at the edge of the cell."""
    crop = Preprocessing(96, 96, **FITS[fit]).crop(*size)
    seen = np.zeros(size, np.bool_)
    seen[crop.inside] = True
    for cell in ((8, 8, 40, 40), (32, 24, 64, 72), (40, 56, 88, 90)):
        left, top, right, bottom = cell
        saliency = np.zeros((96, 96), np.float32)
        saliency[top:bottom, left:right] = 1
        placed = place_map(saliency, crop, size)
        box = crop.to_photo(cell, (96, 96))
        rows, columns = np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5  # of the pixels' centres
        inside_rows, inside_columns = (rows > box[1]) & (rows < box[3]), (columns > box[0]) & (columns < box[2])
        assert not placed[~seen].any()
        if not (seen & np.outer(inside_rows, inside_columns)).any():  # all of it in the padding, or cut off
            assert placed.max() <= 0.5
            continue
        assert placed.max() == pytest.approx(1, abs=1e-6)
        for across, inside, centres, edges in (
            (placed.max(axis=1), inside_rows & seen.any(axis=1), rows, box[1::2]),
            (placed.max(axis=0), inside_columns & seen.any(axis=0), columns, box[::2]),
        ):
            clear = np.abs(centres[:, None] - edges).min(axis=1) > 1e-3  # float32: the side of an exact 0.5 is open
            assert np.array_equal(across[clear] > 0.5, inside[clear])


boxes = st.lists(st.tuples(*[st.floats(-500, 1500)] * 4), min_size=1, max_size=3)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(FITS)), st.integers(1, 900), st.integers(1, 900), boxes)
def test_boxes_go_back_and_forth(fit: str, h: int, w: int, some: list[tuple[float, ...]]) -> None:
    crop = Preprocessing(64, 96, **FITS[fit]).crop(h, w)
    there = crop.to_photo(some, (64, 96))
    assert there.dtype == np.float64 and there.shape == (len(some), 4)
    np.testing.assert_allclose(crop.to_input(there, (64, 96)), some, atol=1e-9, rtol=0)
    np.testing.assert_allclose(crop.to_photo([0, 0, 96, 64], (64, 96)), crop.frame, atol=1e-9, rtol=0)


def test_boxes_by_hand() -> None:
    """1280 x 720 into 640 x 640: half the size, 140 pixels of padding above and below."""
    crop = Preprocessing(640, 640, fit="letterbox").crop(720, 1280)
    assert crop == Crop(0, 0, 720, 1280, (280.0, 0.0, 280.0, 0.0))
    assert crop.frame.tolist() == [0, -280, 1280, 1000]
    assert crop.resized((720, 1280), (360, 640)) == Crop(0, 0, 360, 640, (140.0, 0.0, 140.0, 0.0))
    assert crop.to_photo([10, 150, 110, 240], (640, 640)).tolist() == [20, 20, 220, 200]
    end = Preprocessing(640, 640, fit="letterbox", pad_place="end").crop(720, 1280)
    assert end.to_input([20, 20, 220, 200], (640, 640)).tolist() == [10, 10, 110, 100]


def test_a_map_with_padding_is_the_whole_frame_resized_and_cut() -> None:
    saliency = np.random.default_rng(0).random((96, 96)).astype(np.float32)
    crop = Preprocessing(96, 96, fit="letterbox").crop(144, 288)  # the padding is of 72 whole pixels
    whole = cv2.resize(saliency, (288, 288), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(place_map(saliency, crop, (144, 288)), whole[72:216], atol=1e-6)  # of float32


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fit", ["letterbox", "end"])
def test_a_map_is_placed_alike_in_the_graph(fit: str, size: tuple[int, int]) -> None:
    known = Preprocessing(64, 96, **FITS[fit])
    saliency = np.random.default_rng(0).random((2, 64, 96)).astype(np.float32)
    graph = Builder()
    image, maps = graph.input("image", np.uint8, ["h", "w", 3]), graph.input("maps", np.float32, [2, 64, 96])
    rows, columns = photo_sides(graph, image, known, graph.constant([0]))
    graph.output(write_placing(graph, maps, rows, columns, known), "placed", [None] * 3)
    proto = onnx.helper.make_model(graph.to_proto("test"), opset_imports=[onnx.helper.make_opsetid("", 18)])
    proto.ir_version = 10
    feed = {"image": np.zeros((*size, 3), np.uint8), "maps": saliency}
    (placed,) = ort.InferenceSession(proto.SerializeToString()).run(None, feed)
    expected = [place_map(one, known.crop(*size), size) for one in saliency]
    np.testing.assert_allclose(placed, expected, atol=1e-5)  # OpenCV's coordinates are float32


def test_invert_keeps_the_photo_and_shows_the_padding(photos: dict[str, Path]) -> None:
    photo = read_photo(photos["chelsea"])[:64, :96].copy()
    known = Preprocessing(96, 96, "BGR", fit="letterbox", mean=(1, 2, 3), std=57, pad_value=(10, 20, 30))
    back = known.invert(known.apply(photo))
    assert np.array_equal(back[16:80], photo)
    assert (back[:16] == (30, 20, 10)).all() and (back[80:] == (30, 20, 10)).all()


@pytest.mark.parametrize("size", [(300, 451), (61, 37)])
def test_a_given_map_of_the_photo_comes_to_its_place_in_the_input(size: tuple[int, int]) -> None:
    """A ramp survives resizing, except within a pixel of its ends."""
    crop = Preprocessing(96, 96, fit="letterbox").crop(*size)
    y, x = np.mgrid[0.5 : size[0], 0.5 : size[1]]
    ramp = (y / size[0] + x / size[1]).astype(np.float32) / 2
    found = as_map(ramp, "it", 0, crop, (96, 96), size)
    left, top, right, bottom = np.rint(crop.to_input([0, 0, size[1], size[0]], (96, 96))).astype(int)
    rows, columns = (np.arange(top, bottom) + 0.5 - top) / (bottom - top), np.arange(left, right) + 0.5 - left
    expected = (rows[:, None] + columns / (right - left)) / 2
    inner = found[top:bottom, left:right]
    assert np.abs(inner - expected)[2:-2, 2:-2].max() < 1e-5  # of float32
    found[top:bottom, left:right] = 0
    assert not found.any()


@pytest.fixture(scope="module")
def boxed(models: Path) -> Path:
    preprocess = {"height": 32, "width": 32, "fit": "letterbox", "scale": 1 / 255, "std": 0.25}
    return export(Tiny().eval(), models / "boxed.onnx", preprocess=preprocess, output_kind="logits").path


def test_explain_and_its_record(boxed: Path, photos: dict[str, Path], tmp_path: Path) -> None:
    cam = ortcam.ScoreCAM(boxed, provider="cpu")
    explanation = cam.explain(photos["chelsea"])
    left, top, right, bottom = explanation.crop.frame
    # 300 x 451 becomes 21 x 32, with 5 rows of padding above and 6 below.
    assert [left, right] == [0, 451] and [top, bottom] == pytest.approx([-5 * 300 / 21, 300 + 6 * 300 / 21])
    assert np.array_equal(explanation.maps[0], place_map(explanation.input_maps[0], explanation.crop, (300, 451)))
    assert (explanation.maps[0] > 0).any()
    assert (explanation.overlay(opacity=0) == explanation.photo).all()  # the model saw all: nothing is dimmed
    record = json.loads((explanation.save(tmp_path / "out") / "explanation.json").read_text())
    Draft202012Validator(schema()).validate(record)
    assert record["crop"]["padding"] == pytest.approx([5 * 300 / 21, 0, 6 * 300 / 21, 0])
    assert record["preprocessing"]["pad_value"] == [114, 114, 114]
    tensor = cam.explain(cam.model.prepare(photos["chelsea"])[1])  # the padding cannot be told from the photo
    assert tensor.crop == Crop(0, 0, 32, 32)


def test_a_packed_explainer_letterboxes(boxed: Path, photos: dict[str, Path], tmp_path: Path) -> None:
    expected = ortcam.ScoreCAM(boxed, provider="cpu").explain(photos["chelsea"])
    for raw in (True, False):
        report = ortcam.pack(boxed, tmp_path / f"{raw}.onnx", raw=raw)
        found = ortcam.PackedExplainer(report.path, provider="cpu").explain(photos["chelsea"])
        assert found.crop == expected.crop
        assert np.abs(found.maps - expected.maps).max() <= 1e-4  # sums of float32 in another order
        assert (write_triton(report.path, tmp_path / "models") / "config.pbtxt").exists()


def test_commands_take_a_letterboxing_model(boxed: Path, photos: dict[str, Path], tmp_path: Path) -> None:
    photo = str(photos["chelsea"])
    labels = tmp_path / "boxes.csv"
    labels.write_text(f"photo,label,left,top,right,bottom\n{photo},3,100,50,300,250\n")
    metrics = [part for name in ("insertion", "drop", "energy", "pointing", "box-iou") for part in ("--metric", name)]
    for arguments in (
        ["explain", str(boxed), photo, "--json", "-o", str(tmp_path / "e")],
        ["evaluate", str(boxed), "--dataset", f"csv:{labels}", *metrics, "-o", str(tmp_path / "v")],
        ["sanity", str(boxed), photo, "-o", str(tmp_path / "s")],
        ["inspect", str(boxed)],
    ):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
    assert "letterboxed, padded with 114 at the centre" in done.output
    values = next(
        row.values
        for row in ortcam.evaluation.Result.from_json(tmp_path / "v" / "results.json").rows
        if row.method == "score-cam"
    )
    saliency = ortcam.ScoreCAM(boxed, provider="cpu").explain(photo, 3).maps[0].astype(np.float64)
    energy = saliency[50:250, 100:300].sum() / saliency.sum()
    assert values["energy"] == pytest.approx(energy, abs=1e-5)  # sums of 135 300 float32 values
