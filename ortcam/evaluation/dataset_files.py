"""What the layouts of data sets share, and the layouts that are folders of photos."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ortcam.errors import DatasetError
from ortcam.evaluation.journal import RESULTS
from ortcam.evaluation.regions import Box, MaskFile, MaskSource, Rectangle, cut
from ortcam.evaluation.samples import Sample
from ortcam.model.image import SUFFIXES
from ortcam.output.record import MANIFEST

if TYPE_CHECKING:
    from ortcam.core.pictures import Image

_INDEX = re.compile(r"\s*[0-9]{1,18}\s*")


class Content(NamedTuple):
    """What a layout holds.

    Attributes:
        samples: the photos with their classes, in the order of the data set.
        notes: what was left out, a line each.
        classes: the number of classes, where the layout numbers them; None for other layouts.
    """

    samples: list[Sample]
    notes: list[str]
    classes: int | None = None


class Item(NamedTuple):
    """An object in a photo: its class, its box, its mask; None for those that are not stated."""

    label: int | str | None
    box: Box | None = None
    mask: MaskSource | None = None

    @property
    def region(self) -> MaskSource | None:
        """The mask; the box as a mask for an object that has no mask."""
        return self.mask or (Rectangle(self.box) if self.box is not None else None)


def samples_of(
    image: Image, name: str, items: Iterable[Item], source: str = "", size: tuple[int, int] | None = None
) -> list[Sample]:
    """Return a sample for each class of a photo's objects; with several classes, ``#class`` is added to the name."""
    classes: dict[int | str | None, list[Item]] = {}
    for item in items:
        classes.setdefault(item.label, []).append(item)
    found = []
    for label, objects in classes.items():
        boxes = tuple(dict.fromkeys(item.box for item in objects if item.box is not None))
        masks: tuple[MaskSource, ...] = ()
        if any(item.mask is not None for item in objects):
            masks = tuple(mask for item in objects if (mask := item.region) is not None)
        full = name if len(classes) == 1 else f"{name}#{'unknown' if label is None else ' '.join(str(label).split())}"
        found.append(Sample(image, full, label, boxes, masks, source, size))
    return found


def as_label(text: str) -> int | str | None:
    """Return a class as a file states it: digits are an index, no text is an unknown class."""
    return int(text) if _INDEX.fullmatch(text) else text.strip() or None


def find_photos(folder: Path) -> list[Path]:
    """Return the photos in a folder and below it, sorted; hidden files, saved explanations and results
    are skipped.

    Raises:
        DatasetError: the folder is missing, cannot be read, or holds no photos.
    """
    need_folder(folder)
    try:
        found = sorted(path for path in folder.rglob("*") if is_photo(path) and path.is_file() and not _is_made(path))
    except OSError as error:
        raise DatasetError(f"cannot read {folder}: {error.strerror or error}") from error
    if not found:
        raise DatasetError(f"{folder} holds no photos; expected files such as .jpg or .png")
    return found


def _is_made(path: Path) -> bool:
    """Return whether a picture is part of a saved explanation, or of the results of an evaluation."""
    return (path.parent / MANIFEST).exists() or (path.name in RESULTS and (path.parent / RESULTS[0]).exists())


def is_photo(path: Path) -> bool:
    """Return whether a file's name is that of a photo, by the rule of `ortcam explain`."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def need_folder(folder: Path, purpose: str = "") -> Path:
    """Return the folder.

    Raises:
        DatasetError: it is missing, or is a file.
    """
    if not exists(folder):
        raise DatasetError(f"{folder} is missing{purpose and f'; expected {purpose}'}")
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder{purpose and f'; expected {purpose}'}")
    return folder


def exists(path: Path) -> bool:
    """Return whether a file or folder exists; False for names that no file can have."""
    try:
        return path.exists()
    except (OSError, ValueError):  # too long; a null byte
        return False


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a file.

    Raises:
        DatasetError: it is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else getattr(error, "strerror", None) or error
        raise DatasetError(f"cannot read {path}: {reason}") from error


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8, with or without a byte order mark.

    Raises:
        DatasetError: it is missing, cannot be read, or has another encoding.
    """
    data = read_bytes(path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DatasetError(f"{path} line {line} is not UTF-8; save the file as UTF-8 (Excel: CSV UTF-8)") from error
    if "\0" in text:
        raise DatasetError(
            f"{path} line {text.count(chr(10), 0, text.find(chr(0))) + 1} has null bytes; expected UTF-8 text"
        )
    return text


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text file that are not blank, each with its number from 1."""
    for number, line in enumerate(io.StringIO(read_text(path)), 1):
        if line.strip():
            yield number, line.strip()


def and_more(names: list[str]) -> str:
    """Return the first name, and how many follow: ``a.jpg and 3 more``."""
    return cut(names[0], 400) + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def read_classes(folder: Path, by_position: bool) -> Content:
    """Read a folder with a folder of photos for each class.

    Args:
        folder: the folder of the classes' folders.
        by_position: the class is the position of the folder's name in their sorted list, from 0, as for torchvision's
            ImageFolder. Otherwise it is the name: an index or a label.

    Raises:
        DatasetError: a folder is missing, or none holds photos.
    """
    need_folder(folder)
    inside = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    classes = [path for path in inside if path.is_dir()]
    if not classes:
        raise DatasetError(f"{folder} holds no folders; expected one for each class, with photos in it")
    samples: list[Sample] = []
    notes = []
    if loose := [path.name for path in inside if is_photo(path) and path.is_file()]:
        notes.append(f"photos outside the folders of classes are left out: {and_more(loose)}")
    for position, path in enumerate(classes):
        if not any(is_photo(photo) for photo in path.rglob("*")):
            notes.append(f"the folder {path.name} holds no photos")
            continue
        label = position if by_position else as_label(path.name)
        samples.extend(Sample(photo, photo.relative_to(folder).as_posix(), label) for photo in find_photos(path))
    if not samples:
        raise DatasetError(f"{folder} holds no photos in its folders; expected files such as .jpg or .png")
    return Content(samples, notes, len(classes) if by_position else None)


def read_masks(folder: Path) -> Content:
    """Read ``images/`` with photos and ``masks/`` with a PNG for each: ``images/x/a.jpg`` has ``masks/x/a.png``.

    Raises:
        DatasetError: a folder or a photo's mask is missing, or two photos have the same mask.
    """
    images = need_folder(folder / "images", "the photos of the layout masks")
    masks = need_folder(folder / "masks", "the masks of the layout masks, PNG files named like the photos")
    samples, owners, missing = [], dict[str, Path](), list[str]()
    for photo in find_photos(images):
        name = photo.relative_to(images)
        mask = name.with_suffix(".png").as_posix()
        if mask in owners:
            raise DatasetError(f"{owners[mask]} and {photo} have the same mask, {masks / mask}; rename one")
        owners[mask] = photo
        if not (masks / mask).is_file():
            missing.append(f"{photo} (expected {masks / mask})")
        samples.append(Sample(photo, name.as_posix(), None, (), (MaskFile(masks / mask, mask),)))
    if missing:
        raise DatasetError(f"no mask for {and_more(missing)}")
    lost = [
        path.relative_to(masks).as_posix() for path in sorted(masks.rglob("*.png")) if not path.name.startswith(".")
    ]
    lost = [name for name in lost if name not in owners]
    return Content(samples, [f"masks without a photo are left out: {and_more(lost)}"] if lost else [])
