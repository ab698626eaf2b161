"""Write the record of an explained video: a JSON file beside it (docs/video.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ortcam.core.files import Fingerprint
from ortcam.errors import OccupiedError, OptionError
from ortcam.output.record import describe_target, outline, plain

if TYPE_CHECKING:
    from ortcam.output.explanation import Pictures
    from ortcam.output.record import Recordable
    from ortcam.output.video import Video

VIDEO_FORMAT = 1
_KIND = "video"


def record_of(video: Path) -> Path:
    """Return the file of a video's record."""
    return video.with_suffix(".json")


def check_free(path: Path, source: Path, overwrite: bool) -> None:
    """Refuse an output that would replace an input, an earlier output without `overwrite`, or another JSON file.

    Raises:
        OptionError: the output is the input.
        OccupiedError: the output or its record exists.
    """
    record = record_of(path)
    if any(one.exists() and one.samefile(source) for one in (path, record)):
        raise OptionError(f"the output {path} is the input, which would be replaced; give another name")
    if path.is_file() and not overwrite:
        raise OccupiedError(f"cannot write {path}: it exists; give another name, or overwrite=True (--overwrite)")
    if record.exists() and not (_is_ours(record) and (overwrite or path.exists())):
        way = ", or overwrite=True (--overwrite)" if _is_ours(record) else ""
        raise OccupiedError(f"cannot write {record}, the record of {path.name}: it exists; give another name{way}")


def _is_ours(record: Path) -> bool:
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        return bool(found["kind"] == _KIND and found["versions"]["ortcam"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def describe_frame(
    number: int, seconds: float, explanation: Pictures | None, problem: Exception | None
) -> dict[str, Any]:
    """Return the record of an explained frame: its target, or why it has none."""
    found: dict[str, Any] = {"frame": number, "seconds": round(seconds, 4)}
    if explanation is None:
        return {**found, "target": None, "problem": str(problem)}
    target = describe_target(explanation.targets[0], explanation.errors[0], cast("Recordable", explanation).flat[0])
    return {**found, "target": plain(target), "problem": None}


def build_record(
    first: Pictures,
    video: Video,
    read: int,
    seconds: float,
    asked: Any,
    chosen: Mapping[str, Any],
    steadiness: Mapping[str, Any],
    output: Mapping[str, Any],
    frames: Sequence[Mapping[str, Any]],
    duration: float,
) -> dict[str, Any]:
    """Return the record.

    Args:
        first: the explanation of a frame, for what all frames share.
        video: the input.
        read, seconds: the number of frames that were read, and the time of the last.
        asked: the target as given, plain JSON.
        chosen: the target in words, and how it was chosen.
        steadiness: how maps were averaged and scaled.
        output: the video that was written.
        frames: the record of each explained frame.
        duration: wall time in seconds.
    """
    common = outline(cast("Recordable", first))
    run = {name: common["run"][name] for name in ("provider", "provider_options", "device_id", "batch_size")}
    return {
        "format": VIDEO_FORMAT,
        "kind": _KIND,
        "created": common["created"],
        "versions": common["versions"],
        "source": str(video.path),
        "video": {
            "name": video.path.name,
            "path": str(video.path.absolute()),
            "sha256": Fingerprint(video.path).sha256,
            "height": video.size[0],
            "width": video.size[1],
            "frames_per_second": video.rate,
            "frames": read,
            "frames_stated": video.expected or None,
            "ends_early": video.ends_early(read),
            "seconds": round(seconds, 4),
        },
        "output": dict(output),
        **{name: common[name] for name in ("crop", "model", "preprocessing", "method", "preset")},
        "asked": {**common["asked"], "targets": plain(asked), "top_k": 1},
        "run": {**run, "channels": common["run"]["channels"], "seconds": round(duration, 3)},
        "target": plain(dict(chosen)),
        "maps": plain(dict(steadiness)),
        "frames": list(frames),
    }


def write_record(record: Mapping[str, Any], path: Path) -> None:
    """Write a record as UTF-8; characters that are not text are written as escapes, as in explanation.json."""
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
