"""What an explanation holds, how it is drawn, and how it is kept."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import sys
from html.parser import HTMLParser
from pathlib import Path

import cv2
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

import ortcam
from ortcam.core.measures import contrast_maps
from ortcam.core.pictures import Crop
from ortcam.core.selection import ErrorEstimate
from ortcam.errors import OptionError, OutputError, TargetError
from ortcam.model.image import read_photo
from ortcam.output.caption import add_caption
from ortcam.output.render import draw_overlay, draw_sheet
from ortcam.output.show import caption_of


@pytest.fixture(scope="module")
def explanation(resnet18_file: Path, photos: dict[str, Path]) -> ortcam.Explanation:
    return ortcam.ScoreCAM(resnet18_file).explain(photos["china"], targets=[3, 500])


def test_maps_have_the_photos_size_and_mark_what_was_cut_away(
    explanation: ortcam.Explanation, photos: dict[str, Path]
) -> None:
    photo = read_photo(photos["china"])
    assert explanation.photo is not None
    assert np.array_equal(explanation.photo, photo)
    assert explanation.maps.shape == (2, *photo.shape[:2])
    assert explanation.maps.dtype == np.float32
    assert explanation.maps.min() >= 0
    assert explanation.maps.max() <= 1
    crop = explanation.crop
    assert crop.width < photo.shape[1]  # a wide photo loses its sides
    outside = np.ones(photo.shape[:2], bool)
    outside[crop.top : crop.bottom, crop.left : crop.right] = False
    assert outside.any()
    assert (explanation.maps[:, outside] == 0).all()


def test_the_map_in_the_photo_is_the_map_of_the_input(explanation: ortcam.Explanation) -> None:
    """Shrunk back to the input size, the photo's map is the convention's own."""
    crop = explanation.crop
    inside = explanation.maps[0, crop.top : crop.bottom, crop.left : crop.right]
    back = cv2.resize(inside, explanation.input_maps.shape[:0:-1], interpolation=cv2.INTER_AREA)
    assert np.abs(back - explanation.input_maps[0]).mean() < 0.01


def test_raw_maps_are_the_weighted_sums(
    explanation: ortcam.Explanation, resnet18_file: Path, photos: dict[str, Path]
) -> None:
    assert explanation.weights.shape == (2, 512)
    assert explanation.raw_maps.shape == (2, 3, 3)
    cam = ortcam.ScoreCAM(resnet18_file)
    activations = cam._running.get().forward(cam.model.prepare(photos["china"])[1]).passes[0].activations
    expected = np.einsum("tk,khw->thw", explanation.weights.astype(np.float64), activations)
    assert np.allclose(explanation.raw_maps, expected, rtol=1e-4)


def test_the_overlay_colours_what_is_salient(explanation: ortcam.Explanation) -> None:
    overlay = explanation.overlay()
    assert overlay.shape == explanation.photo.shape
    assert overlay.dtype == np.uint8
    hot = np.unravel_index(explanation.maps[0].argmax(), explanation.maps[0].shape)
    red, green, blue = overlay[hot].astype(int)
    assert red > green + 20
    assert red > blue + 20
    outside = overlay[:, : explanation.crop.left].astype(int)
    assert (outside.max(axis=2) == outside.min(axis=2)).all()  # grey


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.just(3))),
    st.sampled_from(["turbo", "jet", "inferno", "viridis"]),
    st.floats(0, 1),
    st.data(),
)
def test_any_photo_can_be_drawn_upon(photo: np.ndarray, colormap: str, opacity: float, data: st.DataObject) -> None:
    height, width = photo.shape[:2]
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    crop = Crop(top, left, height, width)
    saliency = data.draw(hnp.arrays(np.float32, (height, width), elements=st.floats(0, 1, width=32)))
    overlay = draw_overlay(photo, saliency, crop, opacity, colormap)
    assert overlay.shape == photo.shape
    nothing = draw_overlay(photo, np.zeros_like(saliency), crop, opacity, colormap)
    assert np.array_equal(nothing[top:, left:], photo[top:, left:])  # where nothing is salient the photo stays


def test_bad_drawing_options(explanation: ortcam.Explanation) -> None:
    with pytest.raises(OptionError, match="nearest: turbo"):
        explanation.overlay(colormap="turbos")
    for opacity in (2, "x", None, float("nan")):
        with pytest.raises(OptionError, match="from 0 to 1"):
            explanation.overlay(opacity=opacity)
    for place in (5, -3, "3", True):
        with pytest.raises(OptionError, match="place of one of the 2 targets"):
            explanation.overlay_at(place)
        with pytest.raises(OptionError, match="place of one of the 2 targets"):
            explanation.map_at(place)


def test_maps_are_reached_by_class(explanation: ortcam.Explanation) -> None:
    """The classes 3 and 500, without labels."""
    assert np.array_equal(explanation.map(500), explanation.maps[1])
    assert np.array_equal(explanation[3], explanation.maps[0])
    assert np.array_equal(explanation["500"], explanation.maps[1])
    assert np.array_equal(explanation.map(), explanation.map_at(0))
    assert np.array_equal(explanation.map_at(-1), explanation.maps[1])
    assert np.array_equal(explanation.overlay(500), explanation.overlay_at(1))
    assert 500 in explanation
    assert 1 not in explanation
    with pytest.raises(TypeError, match="not iterable"):
        list(explanation)  # type: ignore[call-overload]
    for target in (0, 1, -1, "cat", True, 2.5):
        with pytest.raises(TargetError, match="was not explained; expected one of the explained classes: 3, 500"):
            explanation.map(target)


def test_maps_are_reached_by_label(explanation: ortcam.Explanation) -> None:
    labels = ("tabby, tabby cat", "Egyptian cat")
    targets = tuple(
        dataclasses.replace(one, label=label) for one, label in zip(explanation.targets, labels, strict=True)
    )
    named = dataclasses.replace(explanation, targets=targets)
    assert np.array_equal(named.map("egyptian CAT"), explanation.maps[1])
    assert np.array_equal(named["tabby cat"], explanation.maps[0])
    with pytest.raises(TargetError, match=r"'cat' was not explained; .* 3 tabby, 500 Egyptian cat"):
        named.map("cat")
    twins = dataclasses.replace(explanation, targets=tuple(dataclasses.replace(one, label="crane") for one in targets))
    with pytest.raises(TargetError, match="'crane' names several explained classes"):
        twins.map("crane")


def test_sheets_hold_any_number_of_photos() -> None:
    photo = np.zeros((50, 80, 3), np.uint8)
    for count in (1, 4, 5):
        sheet = draw_sheet([(photo, photo, "a caption")] * count, side=40, columns=4)
        assert sheet.shape[2] == 3
        assert sheet.min() == 0


def test_saving_writes_everything(explanation: ortcam.Explanation, photos: dict[str, Path], tmp_path: Path) -> None:
    folder = explanation.save(tmp_path / "a" / "b")
    assert sorted(path.name for path in folder.iterdir()) == [
        "explanation.json",
        "maps.npy",
        "overlay-3.png",
        "overlay-500.png",
        "raw_maps.npy",
        "weights.npy",
    ]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]  # nothing unfinished
    assert np.array_equal(np.load(folder / "maps.npy"), explanation.maps)
    manifest = json.loads((folder / "explanation.json").read_text())
    assert manifest["source"] == str(photos["china"])
    assert [target["index"] for target in manifest["targets"]] == [3, 500]
    assert (folder / manifest["targets"][1]["overlay"]).is_file()
    assert manifest["run"]["channels"] == {"total": 512, "live": explanation.live, "scored": explanation.scored}
    assert manifest["preset"]["name"] == "official"
    assert manifest["run"]["provider"] == "cpu"
    picture = cv2.cvtColor(cv2.imread(str(folder / "overlay-3.png")), cv2.COLOR_BGR2RGB)
    assert np.array_equal(picture, explanation.overlay())


def test_overlays_are_named_by_their_label(lite0_file: Path, tmp_path: Path) -> None:
    cam = ortcam.ScoreCAM(lite0_file)
    explained = cam.explain(np.zeros((8, 8, 3), np.uint8), targets=[985])
    assert explained.targets[0].name == "daisy"
    folder = explained.save(tmp_path / "x")
    assert (folder / "overlay-985-daisy.png").is_file()


def test_an_older_explanation_is_replaced(explanation: ortcam.Explanation, tmp_path: Path) -> None:
    explanation.save(tmp_path / "x")
    (tmp_path / "x" / "overlay-7-old.png").write_text("old")
    explanation.save(tmp_path / "x")
    assert not (tmp_path / "x" / "overlay-7-old.png").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_notes_beside_an_explanation_are_never_deleted(explanation: ortcam.Explanation, tmp_path: Path) -> None:
    explanation.save(tmp_path / "x")
    (tmp_path / "x" / "notes.txt").write_text("what I thought of it")
    with pytest.raises(OutputError, match="holds other files"):
        explanation.save(tmp_path / "x")
    assert (tmp_path / "x" / "notes.txt").exists()
    assert (tmp_path / "x" / "maps.npy").exists()


def test_a_link_to_a_folder_stays_a_link(
    explanation: ortcam.Explanation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    explanation.save(tmp_path / "link")
    explanation.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "maps.npy").is_file()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    explanation.save(".")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "link", "real"]
    assert (tmp_path / "here" / "maps.npy").is_file()


def test_what_is_not_ours_is_left_alone(explanation: ortcam.Explanation, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="holds other files"):
        explanation.save(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "file").write_text("")
    for bad in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(OutputError, match="cannot write"):
            explanation.save(bad)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "mine"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that takes no files, such as /proc")
def test_a_file_system_that_takes_no_files(explanation: ortcam.Explanation) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        explanation.save("/proc/ortcam-explanation")


class _Page(HTMLParser):
    """The pictures and the text of HTML; fails where a tag is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.pictures: list[dict[str, str | None]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.pictures.append(dict(attrs))
        elif tag != "br":
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def decoded(picture: str | bytes) -> np.ndarray:
    data = base64.b64decode(picture.partition(",")[2]) if isinstance(picture, str) else picture
    return np.asarray(Image.open(io.BytesIO(data)))


def test_an_explanation_prints_one_line(explanation: ortcam.Explanation) -> None:
    first, second = explanation.targets
    line = f"<Explanation of china.jpg, 640x427: class 3 {first.probability:.1%}, class 500 {second.probability:.1%}; "
    assert str(explanation) == repr(explanation) == f"{line}score-cam, preset official, layer layer4, exact map>"
    label = "one\ntwo " * 2
    many = dataclasses.replace(
        explanation,
        targets=(dataclasses.replace(first, label=label), *[second] * 4),
        errors=(ErrorEstimate(0.0042, 0.001, 0.009),) * 5,
        flat=(False,) * 5,
        source=None,
        photo=None,
    )
    assert "\n" not in str(many)
    assert str(many).startswith("<Explanation of an input, 507x400: one two one two ")
    assert " and 2 more; score-cam, preset official, layer layer4, error about 0.004>" in str(many)


def test_a_notebook_shows_each_target(explanation: ortcam.Explanation) -> None:
    targets = (
        dataclasses.replace(explanation.targets[0], label='<img src="x" onerror="alert(1)">'),
        explanation.targets[1],
    )
    named = dataclasses.replace(explanation, targets=targets)
    page = _Page(named._repr_html_())
    assert len(page.pictures) == 2  # the label is text
    assert '<img src="x" onerror="alert(1)">' in page.text
    x, y = explanation.measures[1].maximum or (0, 0)
    for said in (f"{targets[0].probability:.1%}", "score-cam, preset official, exact map", f"maximum at x {x}, y {y}"):
        assert said in page.text
    assert "this map's maximum" in page.text
    for place, picture in enumerate(page.pictures):
        shown = decoded(str(picture["src"])).astype(int)
        assert shown.shape == (214, 320, 3)
        small = cv2.resize(explanation.overlay_at(place), (320, 214), interpolation=cv2.INTER_AREA)
        assert np.abs(shown - small).mean() < 4  # JPEG at a quality of 88
    assert len(named._repr_html_()) < 100_000
    png = decoded(explanation._repr_png_())
    assert png.shape[1] == 2 * 480 + 8
    captioned = add_caption(draw_small(explanation), caption_of(explanation, 0), "turbo")
    assert np.array_equal(png[: len(captioned), :480], captioned)


def draw_small(explanation: ortcam.Explanation) -> np.ndarray:
    height = round(480 / 640 * 427)
    crop = explanation.crop.resized((427, 640), (height, 480))
    assert explanation.photo is not None
    photo, saliency = (
        cv2.resize(one, (480, height), interpolation=cv2.INTER_AREA) for one in (explanation.photo, explanation.maps[0])
    )
    return draw_overlay(photo, saliency, crop)


def test_tensors_tiny_photos_and_many_targets_show_themselves(explanation: ortcam.Explanation) -> None:
    count = 15
    many = dataclasses.replace(
        explanation,
        targets=explanation.targets[:1] * count,
        errors=(None,) * count,
        flat=(True,) * count,
        raw_maps=np.zeros((count, 3, 3), np.float32),
        photo=None,
        crop=Crop(0, 0, 24, 32),
    )
    page = _Page(many._repr_html_())
    assert len(page.pictures) == 12
    assert "and 3 more" in page.text
    assert "flat map" in page.text
    assert "maximum at" not in page.text
    assert (page.pictures[0]["width"], page.pictures[0]["height"]) == ("160", "120")
    assert (decoded(str(page.pictures[0]["src"])) == 128).all()
    assert decoded(many._repr_png_()).shape[1] == 4 * 192 + 3 * 8


def test_an_explanation_as_a_pillow_image(explanation: ortcam.Explanation, monkeypatch: pytest.MonkeyPatch) -> None:
    image = explanation.image(500, colormap="jet")
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), explanation.overlay(500, colormap="jet"))
    assert explanation.image(caption=True).height > image.height
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(OptionError, match=r"^image\(\) needs Pillow: pip install 'ortcam\[plot\]'$"):
        explanation.image()


def test_an_explanation_as_a_figure(explanation: ortcam.Explanation, monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib.use("agg")
    targets = tuple(
        dataclasses.replace(one, label=label) for one, label in zip(explanation.targets, ("$a_1$", "金毛"), strict=True)
    )
    named = dataclasses.replace(explanation, targets=targets)
    figure = named.plot()
    figure.canvas.draw()
    photo, first, second = figure.axes
    assert np.array_equal(photo.images[0].get_array(), explanation.photo)
    assert np.array_equal(second.images[0].get_array(), explanation.overlay(500))
    assert first.get_title().startswith(r"\$a_1\$ ")  # no formula
    assert second.get_title().startswith("class 500 ")  # matplotlib's own font has no such letters
    (bar,) = second.child_axes
    assert "share of this map's maximum" in (bar.get_ylabel(), bar.yaxis.label.get_text())
    assert [tick.get_text() for tick in bar.get_yticklabels()] == ["0.0", "0.5", "1.0"]
    assert not plt.get_fignums()  # closed: it is shown once
    contrasted = explanation.plot(500, against=3).axes[1].images[0].get_array()
    assert np.array_equal(contrasted, explanation.overlay(500, against=3))
    with pytest.raises(TargetError, match="was not explained"):
        explanation.plot(7)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(OptionError, match=r"^plot\(\) needs matplotlib: pip install 'ortcam\[plot\]'$"):
        explanation.plot()


def test_a_contrast_shows_what_speaks_for_one_of_two_classes(lite0_file: Path, photos: dict[str, Path]) -> None:
    """Two photos side by side, strawberries and bottle caps: the contrast keeps to its half, which the maps do not."""
    halves = [cv2.resize(read_photo(photos[name]), (224, 224))[:, 56:168] for name in ("imagenet_04", "imagenet_09")]
    with ortcam.load_explainer(lite0_file, "recipro-cam") as explainer:
        explanation = explainer.explain(np.hstack(halves), targets=[949, 455])
    left, right = explanation.contrast(949, 455), explanation.contrast(455, 949)
    assert np.array_equal(left, contrast_maps(explanation.map(949), explanation.map(455)))
    assert not (left * right).any()
    assert left.max() == right.max() == 1
    for saliency, contrast, half in (
        (explanation.map(949), left, slice(0, 112)),
        (explanation.map(455), right, slice(112, None)),
    ):
        assert contrast[:, half].sum() / contrast.sum() > 0.95 > 0.85 > saliency[:, half].sum() / saliency.sum()
    with pytest.raises(TargetError, match="was not explained"):
        explanation.contrast(949, 1)
