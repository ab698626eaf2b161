"""Find the photos for `ortcam explain`, and choose the folder of each explanation."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ortcam.errors import ImageError, OccupiedError, OptionError, OrtcamError

if TYPE_CHECKING:
    from ortcam.output.explanation import Pictures
    from ortcam.output.render import Style

STDIN = Path("-")
_PICTURES = (".png", ".jpg", ".jpeg")
_PLOTS = {  # of compare, evaluate and sanity: the names of their pictures, by the file beside them
    "comparison.json": r"grid(-\d+)?\.png",
    "results.json": r"curves\.png",
    "sanity.json": r"(curve|strip)\.png",
}


@dataclass(frozen=True)
class Given:
    """A photo on the command line.

    Attributes:
        image: the input of `explain`: the path, or the bytes from standard input.
        source: the path, or - for standard input.
        name: the folder for its explanation, relative to the output.
    """

    image: Any
    source: Path
    name: Path


def find_photos(images: Sequence[Path], report: Callable[[Path, OrtcamError], None]) -> list[Given]:
    """Return every photo that the command line names.

    A folder stands for the images in it and below it, and its layout is kept; explanations, reports and other pictures
    that ortcam wrote are skipped. `-` is a picture on standard input.

    Args:
        images: photos and folders.
        report: called with a folder that holds no images, and the error.
    """
    from ortcam.model.image import SUFFIXES
    from ortcam.output.record import MANIFEST
    from ortcam.report.files import is_sheet

    found: list[Given] = []
    for image in images:
        if image == STDIN:
            found.append(Given(_read_stdin(images), STDIN, Path("stdin")))
            continue
        if not image.is_dir():
            found.append(Given(image, image, Path(_stem(image))))
            continue
        inside = sorted(
            path
            for path in image.rglob("*")
            if path.suffix.lower() in SUFFIXES
            and not path.name.startswith(".")  # macOS keeps other things under such names
            and path.is_file()
            and not (path.parent / MANIFEST).exists()
            and not is_sheet(path)
            and not _is_plot(path)
        )
        if not inside:
            report(image, ImageError(f"{image} holds no images; expected files such as .jpg or .png"))
        found.extend(Given(path, path, path.relative_to(image).with_name(_stem(path))) for path in inside)
    return found


def _is_plot(path: Path) -> bool:
    """Return whether a picture is a plot of ortcam's, beside the numbers that it was written with."""
    return any(re.fullmatch(names, path.name) and (path.parent / beside).exists() for beside, names in _PLOTS.items())


def _stem(path: Path) -> str:
    return path.stem.strip(".") or "photo"


def _read_stdin(images: Sequence[Path]) -> bytes:
    if images.count(STDIN) > 1:
        raise OptionError("- is given twice; expected it once: standard input holds one picture")
    if sys.stdin is None or sys.stdin.isatty():
        raise OptionError("- reads a picture from standard input, which is a terminal; use it as: ... - < photo.jpg")
    return sys.stdin.buffer.read()


class Folders:
    """Gives every explanation of a run its own folder.

    The folder is named after the photo. If a folder of this name holds anything other than an earlier run of the same
    explanation, a number is added: photo-2, photo-3, ... Two explanations of a run never share a folder, and no
    explanation's folder lies inside another's.
    """

    def __init__(self, output: Path, photos: Sequence[Given], overwrite: bool = False) -> None:
        """Prepare for the photos of a run.

        Args:
            output: the folder for the explanations' folders.
            photos: all photos of the run.
            overwrite: replace other explanations of an earlier run.
        """
        self._output, self._overwrite = output, overwrite
        parents = {folder for photo in photos for folder in photo.name.parents}
        self._taken = {folder for folder in parents if not self._is_explanation(folder)}
        self.moved: list[tuple[Path, Path]] = []  # the occupied folder, and the folder used instead

    def save(self, explanation: Pictures, name: Path, style: Style) -> Path:
        """Save an explanation and return its folder.

        Raises:
            OutputError: it cannot be written.
        """
        occupied = None
        for folder in self._candidates(name):
            path = self._output / folder
            try:
                explanation.save(path, overwrite=self._overwrite, **asdict(style))
            except OccupiedError:
                occupied = occupied or path
                continue
            self._taken.add(folder)
            if occupied is not None:
                self.moved.append((occupied, path))
            return path
        raise AssertionError("the candidates never end")

    def _candidates(self, name: Path) -> Iterator[Path]:
        parent = Path()
        for part in name.parent.parts:  # an earlier run may have put an explanation where this needs a folder
            parent = next(folder for folder in _numbered(parent / part) if not self._is_explanation(folder))
        return (folder for folder in _numbered(parent / name.name) if folder not in self._taken)

    def _is_explanation(self, folder: Path) -> bool:
        from ortcam.output.record import MANIFEST

        return (self._output / folder / MANIFEST).exists()


def _numbered(folder: Path) -> Iterator[Path]:
    yield folder
    for number in itertools.count(2):
        yield folder.with_name(f"{folder.name}-{number}")


def picture_of(output: Path) -> Path | None:
    """Return the output if it names a picture; None if it names a folder."""
    from ortcam.model.image import SUFFIXES

    suffix = output.suffix.lower()
    if suffix in SUFFIXES and suffix not in _PICTURES and not output.is_dir():
        raise OptionError(f"-o {output} names a picture of type {suffix}; expected .png or .jpg, or a folder")
    return output if suffix in _PICTURES and not output.is_dir() else None


def check_picture(picture: Path, photos: Sequence[Given], model: Path, classes: int) -> None:
    """Refuse a picture as output for several photos or classes, or if it would replace an input.

    Raises:
        OptionError: one of these is true.
    """
    if len(photos) > 1 or classes > 1:
        what = f"{len(photos)} photos" if len(photos) > 1 else "several classes"
        raise OptionError(
            f"-o {picture} is one picture, for one photo and one class, but the command has {what}; give a folder"
        )
    for path in (model, *(photo.source for photo in photos)):
        if picture.exists() and path.exists() and picture.samefile(path):
            raise OptionError(f"-o {picture} is an input, which would be replaced; give another name")


def write_picture(explanation: Pictures, path: Path, style: Style, overwrite: bool) -> None:
    """Write the overlay of the first class as PNG or JPEG, whole or not at all.

    Raises:
        OccupiedError: `path` is a file with other content, and `overwrite` is false.
        OutputError: it cannot be written.
    """
    from ortcam.core.files import replace_files
    from ortcam.output.render import encode_jpeg, encode_png

    overlay = explanation.overlay_at(0, **asdict(style))
    data = encode_png(overlay) if path.suffix.lower() == ".png" else encode_jpeg(overlay)
    if path.exists() and not overwrite and path.read_bytes() != data:
        raise OccupiedError(f"cannot write {path}: it is another picture; give another name, or --overwrite")
    with replace_files(path) as folder:
        (folder / path.name).write_bytes(data)
