"""Explain a video: maps of every N-th frame, averaged and interpolated (`ortcam.core.timeline`), over all frames."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ortcam.core.budget import Selecting
from ortcam.core.files import replace_files
from ortcam.core.pictures import Photo
from ortcam.core.provenance import Asked
from ortcam.core.targets import Targets
from ortcam.errors import OptionError, OutputError, TargetError, whole
from ortcam.explain.ahead import read_ahead
from ortcam.explain.explainer import ModelExplainer
from ortcam.explain.video_maps import FEWEST_AHEAD, Drawing, Scan
from ortcam.output.render import Style
from ortcam.output.video import Video, VideoWriter, check_output
from ortcam.output.video_record import build_record, check_free, record_of, write_record

if TYPE_CHECKING:
    from ortcam.explain.protocol import Explainer

EVERY = 5
STEADY = 0.3  # seconds
_DRAWN_AT_ONCE = 2  # NumPy and OpenCV free the interpreter
_MEAN = {"classify": "highest mean probability", "detect": "highest mean score", "segment": "highest mean score"}
_ALL = 1 << 30

Stage = Literal["looking", "explaining", "writing"]
OnVideoProgress = Callable[[Stage, int, int], None]


@dataclass(frozen=True)
class ExplainedVideo:
    """A video that was explained.

    Attributes:
        path: the video with the overlays.
        record: what was done, as plain JSON: the content of `record_path` (docs/video.md).
    """

    path: Path
    record: dict[str, Any]

    @property
    def record_path(self) -> Path:
        """The file of the record: `path` with the suffix .json."""
        return record_of(self.path)


def explain_video(
    explainer: Explainer,
    video: str | PathLike[str],
    output: str | PathLike[str],
    targets: Targets = None,
    *,
    every: int = EVERY,
    steady: float = STEADY,
    budget: int | None = None,
    tolerance: float | None = None,
    selection: Selecting = "predict",
    opacity: float = 0.6,
    colormap: str = "turbo",
    caption: bool = False,
    overwrite: bool = False,
    on_progress: OnVideoProgress | None = None,
) -> ExplainedVideo:
    """Explain every N-th frame of a video, and write the maps over all frames as a video, with a record beside it.

    The output has no sound. It appears whole or not at all. Memory holds a few frames; only the record grows with the
    video.

    Args:
        explainer: explains the frames.
        video: a video file that OpenCV reads.
        output: the video to write, .mp4 or .webm.
        targets: one target, as `explain` takes it, the same in every frame. None for the class with the highest mean
            probability over the explained frames (of a detector or segmenter: the highest mean score of the surest
            detection or region); this takes a plain pass of each of these frames first. A packed explainer takes the
            top class of the first frame.
        every: explain the frames 0, N, 2N, ...; maps between them are interpolated linearly.
        steady: the time constant of the average over explained frames, in seconds; 0 for no average.
            `ortcam.core.timeline` defines the average.
        budget, tolerance, selection: as for `explain`.
        opacity, colormap: for the overlays, as in `Explanation.overlay`.
        caption: write class, probability and a colour bar under each frame, which makes the frames taller. Frames that
            are narrower than 168 pixels are magnified.
        overwrite: replace an earlier output.
        on_progress: called with the stage, the frames done, and all frames as far as the file states them.

    Raises:
        ImageError: the video cannot be read, or has no frames.
        TargetError: the target is unknown, or no explained frame has it.
        OptionError: a number is invalid, there are several targets, or the output is not .mp4 or .webm.
        OccupiedError: the output exists, and `overwrite` is false.
        OutputError: the output cannot be written.
    """
    begin = time.perf_counter()
    every, steady = whole("every", every), _checked_steady(steady)
    style = Style(opacity, colormap, caption)
    path, target = Path(output), _only(targets)
    check_output(path)
    source = Video(video)
    check_free(path, source.path, overwrite)
    tell = on_progress or (lambda stage, done, total: None)
    limits: dict[str, Any] = {"budget": budget, "tolerance": tolerance, "selection": selection}
    with replace_files(path) as unfinished:
        try:
            choice = {"chosen": "given"} if target is not None else _choose(explainer, source, every, tell)
            wanted = choice.pop("target", target)
            scan, maps = Scan(source, every, steady), unfinished / "maps.raw"
            scan.run(explainer, wanted, limits, maps, lambda done: tell("explaining", done, source.expected))
            drawing = Drawing(scan, maps, steady, style)
            with VideoWriter(unfinished / path.name, drawing.size, source.rate) as writer:
                _write(source, drawing, writer, lambda done: tell("writing", done, scan.read))
            scale, captions = drawing.scale, drawing.captions
            del drawing  # Windows deletes no file that is mapped
            for file in (maps, maps.with_suffix(".steady")):
                file.unlink()
            assert scan.first is not None
            record = build_record(
                scan.first, source, scan.read, scan.seconds,
                asked=Asked.targets_of(target),
                chosen=_describe(scan, choice),
                steadiness={"every": every, "steady": steady, "scale": scale, "cuts": scan.timeline.cuts},
                output={"name": path.name, **writer.to_dict(), "caption_height": captions.height if captions else 0},
                frames=scan.rows,
                duration=time.perf_counter() - begin,
            )  # fmt: skip
            write_record(record, unfinished / record_of(path).name)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    return ExplainedVideo(path, record)


def _checked_steady(steady: float) -> float:
    if isinstance(steady, bool) or not isinstance(steady, int | float) or not 0 <= steady < float("inf"):
        raise OptionError(f"steady is {steady!r}; expected a number of seconds from 0")
    return float(steady)


def _only(targets: Any) -> Any:
    """Return the one target that is given; None for None."""
    several = not isinstance(targets, str | int) and hasattr(targets, "__iter__")
    given = list(targets) if several else [targets]
    if len(given) != 1 or (isinstance(given[0], str) and given[0] == "all"):
        what = "all" if len(given) == 1 else len(given)
        raise OptionError(f"a video shows one target, and {what} are given; explain the video once for each")
    return given[0]


def _choose(explainer: Explainer, video: Video, every: int, tell: OnVideoProgress) -> dict[str, Any]:
    """Return the class with the highest mean over the explained frames, and how it was found.

    The result has no target for models whose target is always named, or the same.
    """
    if not isinstance(explainer, ModelExplainer):
        with closing(video.frames()) as frames:
            first = next(frames).picture
        assert first is not None
        (top,) = explainer.explain(first).targets
        return {"target": top.index, "chosen": "top class of the first frame"}
    contract = explainer.model.contract
    task = "classify" if contract.classifies else contract.task
    if task not in _MEAN:
        return {"chosen": "the only target"}
    sums: defaultdict[int, float] = defaultdict(float)
    count, failure = 0, None
    frames = video.frames(lambda number: number % every == 0)
    with closing(read_ahead(frames, max(FEWEST_AHEAD, 2 * every))) as ahead:
        for frame in ahead:
            tell("looking", frame.number, video.expected)
            if frame.picture is None:
                continue
            count += 1
            try:
                found = explainer.predict(frame.picture, _ALL)
            except TargetError as error:  # a frame without detections
                failure = failure or error
                continue
            best: dict[int, float] = {}
            for one in found:
                best[one.index] = max(one.probability, best.get(one.index, one.probability))
            for index, value in best.items():
                sums[index] += value
    if not sums:
        assert failure is not None
        raise failure
    highest = max(sums, key=lambda index: (sums[index], -index))
    return {"target": highest, "chosen": _MEAN[task], "mean": sums[highest] / count}


def _describe(scan: Scan, choice: dict[str, Any]) -> dict[str, Any]:
    """Return the target of all frames for the record."""
    target = next(row["target"] for row in scan.rows if row["target"] is not None)
    mean = choice.get("mean")
    return {
        "index": target["index"],
        "label": target["label"],
        "chosen": choice["chosen"],
        "mean_probability": mean,
    }


def _write(video: Video, drawing: Drawing, writer: VideoWriter, tell: Callable[[int], None]) -> None:
    """Draw and write all frames at their times: at a variable rate, frames are repeated or dropped."""
    waiting: deque[tuple[Future[Photo], int, float]] = deque()
    with closing(read_ahead(video.frames(), FEWEST_AHEAD)) as ahead, ThreadPoolExecutor(_DRAWN_AT_ONCE) as pool:

        def write_first(until: float | None) -> None:
            drawn, number, since = waiting.popleft()
            writer.write(drawn.result(), 1 if until is None else writer.slots(since, until))
            tell(number + 1)

        for frame in ahead:
            assert frame.picture is not None
            waiting.append((pool.submit(drawing.draw, frame.number, frame.picture), frame.number, frame.seconds))
            while len(waiting) > _DRAWN_AT_ONCE + 1:
                write_first(waiting[1][2])
        while waiting:
            write_first(waiting[1][2] if len(waiting) > 1 else None)
