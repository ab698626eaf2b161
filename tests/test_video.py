"""Videos: each frame of the output against the map of its explanation, times, bad input. Clips pan over real photos."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import Tiny
from numpy.typing import NDArray
from test_tasks import toy
from typer.testing import CliRunner

import ortcam
from ortcam.cli.app import app
from ortcam.core.timeline import Place, Timeline, blend
from ortcam.deploy.load import load_explainer
from ortcam.errors import ImageError, OccupiedError, OptionError, OrtcamError, TargetError
from ortcam.exporters import export
from ortcam.output.caption import Caption, draw_strip
from ortcam.output.render import draw_overlay, place_map
from ortcam.output.video import Video, VideoWriter
from ortcam.output.video_caption import FrameCaptions, describe_row, without_map

Array = NDArray[Any]
HEIGHT, WIDTH, FRAMES, RATE = 48, 64, 10, 25.0
# Of 255, the mean over a frame. MPEG-4 and VP8 change these small frames by at most 4; another frame's overlay, or the
# frame without a map, differs by more than 8.
CODEC = 5.0


@pytest.fixture(scope="module")
def tiny_file(models: Path) -> Path:
    return export(Tiny().eval(), models / "tiny-video.onnx", preprocess="raw", input_size=32).path


@pytest.fixture(scope="module")
def tiny_cam(tiny_file: Path) -> Iterator[ortcam.ScoreCAM]:
    with ortcam.ScoreCAM(tiny_file) as cam:
        yield cam


def write_clip(path: Path, frames: Sequence[Array], codec: str = "mp4v", rate: float = RATE) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), rate, frames[0].shape[1::-1])
    assert writer.isOpened()
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def pan(photo: Path, count: int, height: int = HEIGHT, width: int = WIDTH, step: int = 4) -> list[Array]:
    """Return windows of a photo, each `step` pixels further to the right."""
    whole = cv2.cvtColor(cv2.imread(str(photo)), cv2.COLOR_BGR2RGB)
    wide = cv2.resize(whole, (width + step * count, height), interpolation=cv2.INTER_AREA)
    return [np.ascontiguousarray(wide[:, step * k : step * k + width]) for k in range(count)]


def read(path: Path) -> list[Array]:
    return [frame.picture for frame in Video(path).frames() if frame.picture is not None]


@pytest.fixture(scope="module")
def clip(photos: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", pan(photos["chelsea"], FRAMES))


def difference(one: Array, other: Array) -> float:
    return float(np.abs(one.astype(np.float32) - other).mean())


def overlay_of(explanation: ortcam.Explanation, scale: float) -> Array:
    """The overlay of a frame whose map is as bright as its raw maximum is of `scale`."""
    share = max(float(explanation.raw_maps[0].max()), 0) / scale
    assert explanation.photo is not None
    return draw_overlay(explanation.photo, explanation.map() * np.float32(share), explanation.crop)


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_each_frame_shows_the_map_of_its_explanation(
    tiny_cam: ortcam.ScoreCAM, clip: Path, tmp_path: Path, suffix: str
) -> None:
    done = ortcam.explain_video(tiny_cam, clip, tmp_path / f"out{suffix}", 3, every=3, steady=0)
    explained = list(tiny_cam.explain_batch(read(clip)[::3], 3))
    scale = max(float(one.raw_maps.max()) for one in explained)
    assert done.record["maps"]["scale"] == pytest.approx(scale, rel=1e-5)  # groups sum in another order
    shown = read(done.path)
    assert len(shown) == FRAMES
    overlays = [overlay_of(one, scale) for one in explained]
    for place, overlay in enumerate(overlays):
        frame = shown[3 * place]
        assert difference(frame, overlay) < CODEC
        assert difference(frame, overlays[place - 1]) > 8
        photo = explained[place].photo
        assert photo is not None
        assert difference(frame, photo) > 8
    # Frame 4 is a third of the way from frame 3 to frame 6: the raw maps are interpolated, over its own picture.
    raw = explained[1].raw_maps * 2 / 3 + explained[2].raw_maps / 3
    (one,) = tiny_cam.convention.saliency(raw, explained[1].input_size)
    between = place_map(one * np.float32(raw.max() / scale), explained[1].crop, (HEIGHT, WIDTH))
    assert difference(shown[4], draw_overlay(read(clip)[4], between, explained[1].crop)) < CODEC
    # The record has the explanations' own values.
    rows = done.record["frames"]
    assert [row["frame"] for row in rows] == [0, 3, 6, 9]
    assert [row["seconds"] for row in rows] == pytest.approx([0, 0.12, 0.24, 0.36])
    assert [row["target"]["probability"] for row in rows] == pytest.approx(
        [one.targets[0].probability for one in explained], rel=1e-5
    )
    assert json.loads(done.record_path.read_text()) == done.record
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", f"out{suffix}"]
    with pytest.raises(OccupiedError, match=r"out\.\w+: it exists; give another name, or overwrite"):
        ortcam.explain_video(tiny_cam, clip, done.path)
    done.path.unlink()
    with pytest.raises(OccupiedError, match=r"out\.json, the record of out.*, or overwrite"):
        ortcam.explain_video(tiny_cam, clip, done.path)
    assert ortcam.explain_video(tiny_cam, clip, done.path, 3, every=9, overwrite=True).path.exists()


def test_the_class_is_that_of_the_highest_mean_probability(
    tiny_cam: ortcam.ScoreCAM, clip: Path, tmp_path: Path
) -> None:
    record = ortcam.explain_video(tiny_cam, clip, tmp_path / "out.mp4", every=4).record
    everything = [tiny_cam.predict(frame, 10) for frame in read(clip)[::4]]
    means = [
        np.mean([next(one.probability for one in all_ if one.index == k) for all_ in everything]) for k in range(10)
    ]
    assert record["target"]["index"] == int(np.argmax(means))
    assert record["target"]["mean_probability"] == pytest.approx(max(means), rel=1e-5)
    assert record["asked"]["targets"] is None
    assert {row["target"]["index"] for row in record["frames"]} == {int(np.argmax(means))}


def test_averages_follow_their_formula() -> None:
    """At irregular times, with a cut and a frame without a map."""
    random = np.random.default_rng(0)
    numbers, seconds = [0, 5, 10, 15, 20, 25, 30], [0.0, 0.2, 0.5, 0.6, 0.8, 1.1, 1.2]
    has_map = [True, True, True, True, True, False, True]
    line = Timeline(numbers, seconds, has_map, cuts=[12])
    maps = random.standard_normal((7, 3, 2)).astype(np.float32)
    found = np.full_like(maps, np.nan)
    line.average(maps, 0.3, found)
    for shot in ([0, 1, 2], [3, 4], [6]):
        for row in shot:
            weights = np.exp(-np.abs(np.array(seconds)[shot] - seconds[row]) / 0.3)
            expected = np.tensordot(weights, maps[shot], 1) / weights.sum()
            np.testing.assert_allclose(found[row], expected, rtol=1e-5, atol=1e-6)
    line.average(maps, 0, found)
    rows = [0, 1, 2, 3, 4, 6]
    np.testing.assert_array_equal(found[rows], maps[rows])


def test_maps_change_at_cuts_and_end_where_there_is_none() -> None:
    line = Timeline([0, 5, 10, 15, 20], [0, 0.2, 0.4, 0.6, 0.8], [True, True, True, False, True], cuts=[7, 21])
    held = {0: 0, 5: 1, 6: 1, 7: 2, 9: 2, 10: 2, 12: 2, 20: 4, 24: 4}
    assert {number: line.find(number) for number in held} == {k: Place(row, row, 0.0) for k, row in held.items()}
    assert line.find(2) == Place(0, 1, 0.4)
    assert [line.find(number) for number in (15, 16, 19)] == [None] * 3
    assert Timeline([0, 9], [0, 1], [True, True], cuts=[3, 6]).find(4) is None  # a shot that was not explained
    boxes = [np.array(box, np.float32) for box in ([0, 0, 10, 10], [2, 0, 12, 10], [30, 0, 40, 10])]
    moving = Timeline([0, 2, 4], [0, 1, 2])
    for box_ in boxes:
        moving.add(True, box_)
    assert [moving.find(number) for number in (1, 3)] == [Place(0, 1, 0.5), Place(1, 1, 0.0)]  # another object
    maps = np.arange(2, dtype=np.float32)[:, None, None] * np.ones((1, 2, 2), np.float32)
    np.testing.assert_allclose(blend(Place(0, 1, 0.4), maps), 0.4)


def test_a_cut_is_found_and_no_map_crosses_it(
    tiny_cam: ortcam.ScoreCAM, photos: dict[str, Path], tmp_path: Path
) -> None:
    first, second = pan(photos["chelsea"], 5), pan(photos["page"], 5)
    cut = write_clip(tmp_path / "cut.mp4", [*first, *second])
    record = ortcam.explain_video(tiny_cam, cut, tmp_path / "out.mp4", 3, every=3).record
    assert record["maps"]["cuts"] == [5]
    explained = list(tiny_cam.explain_batch(read(cut)[::3], 3))
    weight = np.exp(-3 / RATE / 0.3)
    first_average = (explained[0].raw_maps + weight * explained[1].raw_maps) / (1 + weight)
    second_average = (explained[2].raw_maps + weight * explained[3].raw_maps) / (1 + weight)
    averages = [
        first_average, (explained[1].raw_maps + weight * explained[0].raw_maps) / (1 + weight),
        second_average, (explained[3].raw_maps + weight * explained[2].raw_maps) / (1 + weight),
    ]  # fmt: skip
    assert record["maps"]["scale"] == pytest.approx(max(float(one.max()) for one in averages), rel=1e-5)


def test_the_box_of_a_detector_moves(clip: Path, tmp_path: Path) -> None:
    """And frames without a detection stay as they are."""
    frames = read(clip)
    dark = [np.zeros_like(frames[0])] * 4
    path = write_clip(tmp_path / "dark.avi", [*frames, *dark], "MJPG")
    cam = ortcam.ScoreCAM(toy("detect"), detecting=ortcam.Detecting(0.3))
    done = ortcam.explain_video(cam, path, tmp_path / "out.mp4", "cat", every=2, steady=0)
    rows = done.record["frames"]
    given = read(path)
    for row in rows:
        try:
            expected = cam.explain(given[row["frame"]], "cat").targets[0]
        except TargetError as error:
            assert (row["target"], row["problem"]) == (None, str(error))
            assert difference(read(done.path)[row["frame"]], given[row["frame"]]) < CODEC
        else:
            assert row["target"]["place"]["box"] == pytest.approx(expected.place["box"], abs=1e-3)  # type: ignore[index]
    assert [row["target"] is None for row in rows[-2:]] == [True, True]
    assert len({tuple(row["target"]["place"]["box"]) for row in rows if row["target"]}) > 1


def box(name: bytes, data: bytes) -> tuple[int, int]:
    """Return where the content of an MP4 box begins, and where the box ends."""
    at = data.index(name)
    return at + 4, at - 4 + struct.unpack(">I", data[at - 4 : at])[0]


def test_a_rotated_video_is_upright(tiny_cam: ortcam.ScoreCAM, clip: Path, tmp_path: Path) -> None:
    """As telephones write it: the matrix of the track turns the stored frames by 90 degrees."""
    data = bytearray(clip.read_bytes())
    begin, _ = box(b"tkhd", bytes(data))
    matrix = begin + 40
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, HEIGHT << 16, 0, 1 << 30)
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(data)
    assert Video(turned).size == (WIDTH, HEIGHT)
    done = ortcam.explain_video(tiny_cam, turned, tmp_path / "out.mp4", 3, every=9)
    assert read(done.path)[0].shape == (WIDTH, HEIGHT, 3)
    np.testing.assert_array_equal(read(turned)[0], np.rot90(read(clip)[0], -1))


def test_frames_keep_their_times(tiny_cam: ortcam.ScoreCAM, clip: Path, tmp_path: Path) -> None:
    """At a variable rate: the first five frames last twice as long as the others."""
    data = clip.read_bytes()
    begin, end = box(b"stts", data)
    count, delta = struct.unpack(">II", data[begin + 8 : begin + 16])
    assert (count, struct.unpack(">I", data[begin + 4 : begin + 8])[0]) == (FRAMES, 1)
    table = struct.pack(">IIIIII", 0, 2, 5, 2 * delta, 5, delta)
    changed = bytearray((data[:begin] + table + data[end:]).replace(b"edts", b"free"))  # it states the old duration
    for parent in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stts"):  # the index is behind the frames
        at = changed.index(parent)
        changed[at - 4 : at] = struct.pack(">I", struct.unpack(">I", changed[at - 4 : at])[0] + 8)
    path = tmp_path / "variable.mp4"
    path.write_bytes(changed)
    done = ortcam.explain_video(tiny_cam, path, tmp_path / "out.mp4", 3, every=20)
    rate = done.record["output"]["frames_per_second"]
    shown, given = read(done.path), read(path)
    times = [frame.seconds for frame in Video(path).frames()]
    assert times == pytest.approx([*np.arange(0, 0.4, 0.08), *np.arange(0.4, 0.6, 0.04)], abs=1e-3)
    assert len(shown) / rate == pytest.approx(0.6, abs=1 / rate)
    still = ortcam.explain_video(tiny_cam, clip, tmp_path / "still.mp4", 3, every=20)
    originals = read(still.path)
    for slot, frame in enumerate(shown):
        nearest = int(np.argmin([difference(frame, one) for one in originals]))
        assert abs(times[nearest] - slot / rate) <= 0.04 + 1e-3, slot
    assert len(given) == FRAMES


def test_odd_sides_are_written_with_their_last_row_twice(photos: dict[str, Path], tmp_path: Path) -> None:
    picture = pan(photos["chelsea"], 1, 47, 63)[0]
    with VideoWriter(tmp_path / "odd.mp4", (47, 63), RATE) as writer:
        writer.write(picture)
    (shown,) = read(tmp_path / "odd.mp4")
    assert shown.shape == (48, 64, 3)
    assert difference(shown[:47, :63], picture) < CODEC
    assert difference(shown[47], shown[46]) < 2 * CODEC


def test_a_video_that_ends_early_is_explained_so_far(clip: Path, tiny_file: Path, tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "whole.avi", read(clip), "MJPG")
    short = tmp_path / "short.avi"
    short.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    output = tmp_path / "out.mp4"
    options = ["-o", str(output), "--budget", "8", "--json"]
    done = CliRunner().invoke(app, ["explain", str(tiny_file), str(short), *options])
    assert done.exit_code == 0, done.output
    count = len(read(output))
    assert 0 < count < FRAMES
    assert f"short.avi ends early: {count} of {FRAMES} frames can be read" in done.stderr
    told = json.loads(done.stdout)
    assert told["video"]["ends_early"] is True
    assert told["frames_explained"] == -(-count // 5)
    assert told["written"] == str(output)
    assert len(json.loads(Path(told["record"]).read_text())["frames"]) == told["frames_explained"]


def test_a_packed_explainer_explains_a_video(
    tiny_file: Path, tiny_cam: ortcam.ScoreCAM, clip: Path, tmp_path: Path
) -> None:
    report = ortcam.pack(tiny_file, tmp_path / "packed.onnx")
    with load_explainer(report.path) as explainer:
        done = ortcam.explain_video(explainer, clip, tmp_path / "out.mp4", every=9, steady=0)
    frames = read(clip)
    top = tiny_cam.explain(frames[0]).targets[0].index
    assert done.record["target"] == {
        "index": top, "label": None, "chosen": "top class of the first frame", "mean_probability": None,
    }  # fmt: skip
    explained = tiny_cam.explain(frames[9], top)
    overlay = draw_overlay(frames[9], explained.map(), explained.crop)
    assert difference(read(done.path)[9], overlay) < CODEC


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["bad.mp4", "-o", "out.mp4"], "cannot read bad.mp4 as a video: it is not a video, has no frames, or is cut"),
        (["none.mp4", "-o", "out.mp4"], "cannot read none.mp4 as a video"),
        (["short.mp4", "-o", "out.mp4"], "cannot read short.mp4 as a video"),
        (["missing.mp4", "-o", "out.mp4"], "missing.mp4 does not exist; expected a video file"),
        (["clip.mp4", "-o", "out.avi"], "-o out.avi is of type .avi, and clip.mp4 is a video; expected .mp4"),
        (["clip.mp4", "bad.mp4", "-o", "out.mp4"], "clip.mp4 is a video, and there are 2 inputs"),
        (["photo.png", "-o", "out.mp4"], "-o out.mp4 is for a video, and the input is photo.png"),
        (["photo.png", "--every", "2"], "--every is for a video, and the input is photo.png"),
        (["clip.mp4", "-o", "clip.mp4", "--overwrite"], "the output clip.mp4 is the input"),
        (["clip.mp4", "-o", "taken.mp4"], "cannot write taken.mp4: it exists; give another name"),
        (["clip.mp4", "-o", "notes.mp4", "--overwrite"], "cannot write notes.json, the record of notes.mp4: it exists"),
        (["clip.mp4", "-o", "out.mp4", "-t", "1", "-t", "2"], "a video shows one target, and 2 are given"),
        (["clip.mp4", "-o", "out.mp4", "-t", "all"], "a video shows one target, and all are given"),
        (["clip.mp4", "-o", "out.mp4", "-t", "12"], "12"),
        (["clip.mp4", "-o", "out.mp4", "--list"], "--list is for photos, and clip.mp4 is a video"),
        (["clip.mp4", "-o", "out.mp4", "--report", "r.html"], "--report is for photos, and clip.mp4 is a video"),
        (["clip.mp4", "-o", "out.mp4", "--colormap", "blue"], "colormap 'blue' is unknown"),
        (["clip.mp4", "-o", "photo.png/out.mp4"], "photo.png is a file, not a directory"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    tiny_file: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], part: str
) -> None:
    monkeypatch.chdir(tmp_path)
    data = clip.read_bytes()
    for name, content in (
        ("clip.mp4", data), ("bad.mp4", b"no video"), ("short.mp4", data[: len(data) // 2]), ("taken.mp4", b""),
        ("notes.json", b'{"mine": 1}'),
    ):  # fmt: skip
        Path(name).write_bytes(content)
    cv2.imwrite("photo.png", np.zeros((8, 8, 3), np.uint8))
    cv2.VideoWriter("none.mp4", cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), RATE, (WIDTH, HEIGHT)).release()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    done = CliRunner().invoke(app, ["explain", str(tiny_file), *arguments])
    assert isinstance(done.exception, OrtcamError)  # one line, printed by `main`
    assert part in str(done.exception)
    assert "\n" not in str(done.exception)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_video_among_photos_in_a_folder_is_left_alone(tiny_file: Path, clip: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "clip.mp4").write_bytes(clip.read_bytes())
    cv2.imwrite(str(folder / "photo.png"), read(clip)[0])
    done = CliRunner().invoke(app, ["explain", str(tiny_file), str(folder), "-o", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    assert [Path(one["source"]).name for one in json.loads(done.stdout)["explanations"]] == ["photo.png"]


def test_a_failure_on_the_way_leaves_nothing(tiny_cam: ortcam.ScoreCAM, clip: Path, tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "writing" and done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ortcam.explain_video(tiny_cam, clip, tmp_path / "out.mp4", 3, on_progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_options_are_checked_before_the_work(tiny_cam: ortcam.ScoreCAM, clip: Path, tmp_path: Path) -> None:
    for changed in ({"every": 0}, {"steady": -1.0}, {"steady": float("nan")}, {"targets": [1, 2]}):
        with pytest.raises(OptionError):
            ortcam.explain_video(tiny_cam, clip, tmp_path / "out.mp4", **changed)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="is a folder"):
        ortcam.explain_video(tiny_cam, tmp_path, tmp_path / "out.mp4")


@pytest.mark.slow
def test_a_trained_network_on_a_moving_photo(lite0_file: Path, photos: dict[str, Path], tmp_path: Path) -> None:
    """The cat stays at its place in the photo while the window moves: the map's maximum follows it."""
    clip = write_clip(tmp_path / "cat.mp4", pan(photos["chelsea"], 30, 224, 300, 3))
    with ortcam.ScoreCAM(lite0_file) as cam:
        done = ortcam.explain_video(cam, clip, tmp_path / "out.mp4", budget=32, every=5, steady=0)
        explained = list(cam.explain_batch(read(clip)[::5], done.record["target"]["index"], budget=32))
    shown = read(done.path)
    overlays = [overlay_of(one, done.record["maps"]["scale"]) for one in explained]
    for place in range(len(overlays)):
        errors = [difference(shown[5 * place], one) for one in overlays]
        assert errors[place] < CODEC
        assert int(np.argmin(errors)) == place


@pytest.mark.parametrize("height", [HEIGHT, 120])
def test_captions_stand_under_all_frames(
    tiny_cam: ortcam.ScoreCAM, photos: dict[str, Path], tmp_path: Path, height: int
) -> None:
    """The strip has one height, and the caption of the explained frame whose map is shown; the frames stay."""
    frames = pan(photos["chelsea"], FRAMES, height, 200 if height == 120 else WIDTH)
    clip = write_clip(tmp_path / "clip.avi", frames, "FFV1")
    bare = ortcam.explain_video(tiny_cam, clip, tmp_path / "bare.mp4", 3, every=6, steady=0)
    done = ortcam.explain_video(tiny_cam, clip, tmp_path / "out.mp4", 3, every=6, steady=0.5, caption=True)
    strip, shown = done.record["output"]["caption_height"], read(done.path)
    assert bare.record["output"]["caption_height"] == 0
    times = 1 if height == 120 else 3  # narrow frames are magnified
    size = frames[0].shape[0] * times + strip, frames[0].shape[1] * times
    assert {frame.shape[:2] for frame in shown} == {size}
    assert tuple(done.record["output"][name] for name in ("height", "width")) == size
    explained = list(tiny_cam.explain_batch(read(clip)[::6], 3))
    method = explained[0].provenance.method
    for number, frame in enumerate(shown):
        one = explained[number // 6]
        words = describe_row(one.targets[0], False, method, one.preset, 0.5)
        assert words.score == f"{one.targets[0].probability:.1%}"
        assert words.details[-1] == "averaged over 0.5 s"
        expected = draw_strip(words, (frame.shape[0] - strip, size[1]), "turbo", ("0", "this video's maximum"))
        assert strip == len(expected) + len(expected) % 2  # with an even height for the codecs
        assert difference(frame[-strip:][: len(expected)], expected) < CODEC
    assert explained[0].targets[0].probability != explained[1].targets[0].probability


def test_the_captions_of_frames_have_one_height() -> None:
    """Long captions are not cut off, and frames without a map say so."""
    short = Caption("cat", "class 0", "3.1%", ("score-cam", "preset x"))
    long = Caption("cat", "class 0", "100.0%", ("score-cam", "preset x", "a detail that needs further lines " * 3))
    captions = FrameCaptions([short, long, without_map(short)], (91, 170), "turbo")
    needed = draw_strip(long, (91, 170), "turbo", ("0", "this video's maximum"))
    assert captions.height - len(needed) == (91 + len(needed)) % 2
    frame = np.full((91, 170, 3), 9, np.uint8)
    for caption in (short, long, without_map(short)):
        made = captions.add(frame, caption)
        assert made.shape == (*captions.size, 3)
        np.testing.assert_array_equal(made[:91], frame)
    np.testing.assert_array_equal(captions.add(frame, long)[91 : 91 + len(needed)], needed)
    assert without_map(short) == Caption("cat", "class 0", "", ("no map in this frame",))


def test_the_command_line_writes_captions(tiny_file: Path, clip: Path, tmp_path: Path) -> None:
    heights = []
    for name, words in (("with.mp4", []), ("without.mp4", ["--no-caption"])):
        common = ["--every", "9", "--budget", "8", "--json", *words]
        done = CliRunner().invoke(app, ["explain", str(tiny_file), str(clip), "-o", str(tmp_path / name), *common])
        assert done.exit_code == 0, done.output
        heights.append((json.loads(done.stdout)["output"]["caption_height"], read(tmp_path / name)[0].shape[0]))
    assert heights[0][0] > 0
    assert heights[0][1] == 3 * HEIGHT + heights[0][0]
    assert heights[1] == (0, HEIGHT)
