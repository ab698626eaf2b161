"""Read and write videos with OpenCV: frames in their order, with their times; MP4 and WebM out."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from ortcam.core import native
from ortcam.core.pictures import Photo
from ortcam.errors import ImageError, OptionError, OutputError

# The suffixes of files that count as videos on the command line.
SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ogv", ".mts", ".m2ts"}
)
# The codecs of each output, in order: H.264 where OpenCV was built with an encoder; else MPEG-4 Part 2.
CODECS = {".mp4": ("avc1", "mp4v"), ".webm": ("VP80",)}
_RATES = 1.0, 240.0  # frames a second that are believed
_DEFAULT_RATE = 25.0
_SIDE = 16  # of the thumbnails that are compared to find cuts
_CUT = 30.0  # mean difference of two thumbnails, of 255: pans and flicker stay below 20, cuts are at 40 and above


@dataclass(frozen=True)
class Frame:
    """A frame of a video.

    Attributes:
        number: from 0.
        seconds: its time; 0 for the first frame.
        picture: uint8 [H,W,3] RGB, upright; None if it was not asked for.
        is_cut: whether a new shot begins with it; False unless it was asked for.
    """

    number: int
    seconds: float
    picture: Photo | None
    is_cut: bool = False


class Video:
    """A video file. It can be read several times.

    Attributes:
        path: the file.
        size: (H, W) of the upright frames.
        rate: frames a second, as the file states it.
        expected: the number of frames, as the file states or suggests it; 0 if unknown.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        """Open a video and read its first frame.

        Raises:
            ImageError: the file is missing, is not a video, or has no frames.
        """
        self.path = Path(path)
        if not self.path.is_file():
            what = "is a folder" if self.path.is_dir() else "does not exist"
            raise ImageError(f"{self.path} {what}; expected a video file")
        with native.quiet():
            capture = self._open()
            readable, first = capture.read()
            rate, count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
            capture.release()
        if not readable:
            raise ImageError(f"{self.path} has no frames that OpenCV can decode; expected a video")
        self.size = (int(first.shape[0]), int(first.shape[1]))
        self.rate = float(rate) if _RATES[0] <= rate <= _RATES[1] else _DEFAULT_RATE
        self.expected = int(count) if math.isfinite(count) and count > 0 else 0

    def ends_early(self, read: int) -> bool:
        """Whether `read` frames are fewer than the file states, by more than 1 % and more than one."""
        return self.expected - read > max(1, self.expected // 100)

    def frames(
        self, wanted: Callable[[int], bool] = lambda _: True, find_cuts: bool = False
    ) -> Generator[Frame, None, None]:
        """Yield the frames in order, until the file ends or cannot be read further.

        Args:
            wanted: which frames have a picture.
            find_cuts: whether to look for cuts: a cut is a frame whose 16 x 16 thumbnail differs from the one before by
                more than 30 of 255 in the mean.
        """
        with native.quiet():
            capture = self._open()
            try:
                yield from self._read(capture, wanted, find_cuts)
            finally:
                capture.release()

    def _open(self) -> cv2.VideoCapture:
        # An absolute path never reads as an address or a protocol of FFmpeg.
        capture = cv2.VideoCapture(str(self.path.absolute()), cv2.CAP_FFMPEG)
        if not capture.isOpened():
            raise ImageError(
                f"cannot read {self.path} as a video: it is not a video, has no frames, or is cut off before its index"
            )
        return capture

    def _read(self, capture: cv2.VideoCapture, wanted: Callable[[int], bool], find_cuts: bool) -> Iterator[Frame]:
        number, last, before, start = 0, -math.inf, None, 0.0
        while capture.grab():
            stated = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            start = stated if number == 0 else start
            seconds = stated - start
            if not (math.isfinite(seconds) and seconds > last):  # a file without times
                seconds = last + 1 / self.rate if number else 0.0
            picture, is_cut = None, False
            if wanted(number) or find_cuts:
                readable, found = capture.retrieve()
                if not readable:
                    return
                if find_cuts:
                    thumbnail = cv2.resize(found, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
                    is_cut = before is not None and float(np.abs(thumbnail - before).mean()) > _CUT
                    before = thumbnail
                picture = self._upright(np.asarray(found, np.uint8)) if wanted(number) else None
            yield Frame(number, seconds, picture, is_cut)
            number, last = number + 1, seconds

    def _upright(self, found: NDArray[np.uint8]) -> Photo:
        height, width = self.size
        if found.shape[:2] != self.size:  # a stream that changes its size
            found = cv2.resize(found, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8)
        return cv2.cvtColor(found, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)


def check_output(path: Path) -> None:
    """Raise an OptionError if `path` does not name a video that `VideoWriter` writes."""
    if path.suffix.lower() not in CODECS:
        raise OptionError(f"the output is {path}; expected a video: .mp4, or .webm for browsers")


class VideoWriter:
    """Writes frames at a constant rate, without sound. It is a context manager, which closes the file.

    Attributes:
        codec: the four letters of the codec in use.
        written: the number of frames in the file.
        repeated, dropped: the number of frames that were written more or less than once.
        size: (H, W) of the frames in the file.
    """

    def __init__(self, path: Path, size: tuple[int, int], rate: float) -> None:
        """Begin a video.

        Args:
            path: the file, .mp4 or .webm.
            size: (H, W) of the frames. The codecs need even sides: an odd side is written with its last row or column
                twice.
            rate: frames a second.

        Raises:
            OptionError: the suffix of the path is another.
            OutputError: the video cannot be written.
        """
        check_output(path)
        self._path, self._size, self._rate, self.written = path, size, rate, 0
        self.repeated = self.dropped = 0
        self.size = size[0] + size[0] % 2, size[1] + size[1] % 2
        with native.quiet():
            for codec in CODECS[path.suffix.lower()]:
                fourcc = cv2.VideoWriter.fourcc(*codec)
                self._writer = cv2.VideoWriter(str(path.absolute()), cv2.CAP_FFMPEG, fourcc, rate, self.size[::-1])
                if self._writer.isOpened():
                    self.codec = codec
                    return
        raise OutputError(f"OpenCV cannot write {path.suffix} of {size[1]}x{size[0]} pixels here")

    def write(self, picture: Photo, times: int = 1) -> None:
        """Write a frame, uint8 [H,W,3] RGB, once or several times."""
        bottom, right = self.size[0] - self._size[0], self.size[1] - self._size[1]
        frame = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        if bottom or right:
            frame = cv2.copyMakeBorder(frame, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
        for _ in range(times):
            self._writer.write(frame)
            self.written += 1
        self.repeated += max(times - 1, 0)
        self.dropped += times == 0

    def slots(self, since: float, until: float) -> int:
        """Return how many frames of the output begin between two times in seconds; 1 at a constant rate."""
        return round(until * self._rate) - round(since * self._rate)

    def to_dict(self) -> dict[str, Any]:
        """Return what was written as plain JSON."""
        height, width = self.size
        return {
            "codec": self.codec,
            "height": height,
            "width": width,
            "frames_per_second": self._rate,
            "frames": self.written,
            "frames_repeated": self.repeated,
            "frames_dropped": self.dropped,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        with native.quiet():
            self._writer.release()
            # OpenCV does not report a full disk.
            if error is None and _count(self._path) != self.written:
                raise OutputError(
                    f"{self._path.name} is incomplete after writing; the disk may be full, or the video "
                    "too small for its format"
                )


def _count(path: Path) -> int:
    capture = cv2.VideoCapture(str(path.absolute()), cv2.CAP_FFMPEG)
    if path.suffix.lower() == ".mp4":  # its index, which is written last, holds the number
        return int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    count = 0
    while capture.grab():
        count += 1
    capture.release()
    return count
