"""ortcam explain with a video: overlays of all frames as a video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ortcam.cli import console, target_options
from ortcam.errors import OptionError

if TYPE_CHECKING:
    from ortcam.explain.protocol import Explainer
    from ortcam.explain.video import OnVideoProgress, Stage

Every = Annotated[
    int | None,
    typer.Option(
        "--every",
        min=1,
        help="For a video: explain every N-th frame; maps between them are interpolated. Default: 5.",
        show_default=False,
    ),
]
Steady = Annotated[
    float | None,
    typer.Option(
        "--steady",
        min=0.0,
        help="For a video: average the maps over explained frames with this time constant in seconds; 0 for none. "
        "Default: 0.3.",
        show_default=False,
    ),
]
_STAGES = {"looking": "finding the class, frame", "explaining": "explaining, frame", "writing": "writing, frame"}


@dataclass(frozen=True)
class Asked:
    """A video on the command line.

    Attributes:
        source: the video.
        output: the video to write.
        every, steady: as given; None for the default.
    """

    source: Path
    output: Path
    every: int | None
    steady: float | None


def read(
    inputs: Sequence[Path],
    output: Path,
    every: int | None,
    steady: float | None,
    for_photos: Mapping[str, bool],
) -> Asked | None:
    """Return the video that the command line asks for; None if it names photos and folders.

    Args:
        inputs: the inputs.
        output: the output: a video; or a folder, for a video with the name of the input.
        every, steady: the options.
        for_photos: the options that only photos have, and whether each is given.

    Raises:
        OptionError: options or inputs do not go together.
    """
    from ortcam.output.video import CODECS, SUFFIXES

    videos = [path for path in inputs if path.suffix.lower() in SUFFIXES and not path.is_dir()]
    is_folder = output.is_dir() or not output.suffix
    to_video = output.suffix.lower() in SUFFIXES and not is_folder
    if not videos:
        given = "--every" if every is not None else "--steady" if steady is not None else f"-o {output}"
        if to_video or every is not None or steady is not None:
            raise OptionError(f"{given} is for a video, and the input is {inputs[0]}; expected a file such as clip.mp4")
        return None
    if len(inputs) > 1:
        raise OptionError(f"{videos[0]} is a video, and there are {len(inputs)} inputs; explain each video alone")
    wrong = next((name for name, given in for_photos.items() if given), None)
    if wrong is not None:
        raise OptionError(f"{wrong} is for photos, and {videos[0]} is a video")
    if not is_folder and output.suffix.lower() not in CODECS:
        raise OptionError(
            f"-o {output} is of type {output.suffix}, and {videos[0]} is a video; expected .mp4, or .webm for browsers"
        )
    return Asked(videos[0], output / f"{videos[0].stem}.mp4" if is_folder else output, every, steady)


def explain(explainer: Explainer, asked: Asked, wanted: Any, as_json: bool, **options: Any) -> None:
    """Explain a video and print what was done.

    Args:
        explainer: the explainer.
        asked: the video.
        wanted: the targets.
        as_json: print JSON.
        options: of `ortcam.explain_video`.

    Raises:
        OrtcamError: as `ortcam.explain_video`.
    """
    from ortcam.explain.video import EVERY, STEADY, explain_video

    with ExitStack() as bars:
        explained = explain_video(
            explainer,
            asked.source,
            asked.output,
            wanted,
            every=EVERY if asked.every is None else asked.every,
            steady=STEADY if asked.steady is None else asked.steady,
            on_progress=_show_stages(bars),
            **options,
        )
    record = explained.record
    _tell_of_problems(record)
    if as_json:
        without = {name: value for name, value in record.items() if name != "frames"}
        rows = record["frames"]
        missing = sum(row["target"] is None for row in rows)
        count = {"frames_explained": len(rows) - missing, "frames_without_map": missing}
        written = {"written": str(explained.path), "record": str(explained.record_path)}
        console.print_json({**written, **count, **without})
        return
    _print_summary(record, str(explained.path), str(explained.record_path))


def _show_stages(bars: ExitStack) -> OnVideoProgress:
    """Return a callback that shows a progress bar for each stage, one after the other."""
    shown: dict[str, Any] = {}

    def show(stage: Stage, done: int, total: int) -> None:
        if stage not in shown:
            bars.close()
            shown[stage] = bars.enter_context(console.progress_bar(max(total, 1)))
        shown[stage](f"{_STAGES[stage]} {done} of {total or 'an unknown number'}", done)

    return show


def _tell_of_problems(record: dict[str, Any]) -> None:
    video, rows = record["video"], record["frames"]
    if video["ends_early"]:
        console.warn(
            f"{video['name']} ends early: {video['frames']} of {video['frames_stated']} frames can be read; "
            "these are explained"
        )
    missing = [row["problem"] for row in rows if row["target"] is None]
    if missing:
        console.note(f"{len(missing)} of {len(rows)} explained frames have no map: {missing[0]}")
    flat = sum(row["target"] is not None and row["target"]["map_is_flat"] for row in rows)
    if flat:
        console.note(f"{flat} of {len(rows)} explained frames have a flat map: no evidence for the target")


def _print_summary(record: dict[str, Any], path: str, record_path: str) -> None:
    target, rows, video = record["target"], record["frames"], record["video"]
    sure = [row["target"]["probability"] for row in rows if row["target"] is not None]
    table = console.make_table("video", "target", "mean", "frames", "explained", "seconds", right=("mean", "frames"))
    shown = dict(next(row["target"] for row in rows if row["target"] is not None))
    if "box" in (shown.get("place") or {}):
        shown.pop("place")  # the box moves
    mean = target_options.score_of({**shown, "probability": sum(sure) / len(rows), "logit": sum(sure) / len(rows)})
    table.add_row(
        video["name"],
        target_options.name_of(shown),
        mean,
        str(video["frames"]),
        str(len(sure)),
        f"{record['run']['seconds']:.1f}",
    )
    console.print_table(table)
    console.note(
        f"target: {target['chosen']}; every {record['maps']['every']} frames, averaged over "
        f"{record['maps']['steady']} s; without sound; written to {path} and {record_path}"
    )
