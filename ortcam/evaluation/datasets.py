"""Open data sets of photos with classes, boxes and masks, by their layout."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from ortcam.errors import DatasetError, OptionError, nearest
from ortcam.evaluation.dataset_coco import read_coco
from ortcam.evaluation.dataset_csv import read_csv, with_labels
from ortcam.evaluation.dataset_cub import read_cub
from ortcam.evaluation.dataset_files import (
    Content,
    and_more,
    exists,
    find_photos,
    read_classes,
    read_masks,
)
from ortcam.evaluation.dataset_voc import read_voc
from ortcam.evaluation.fingerprints import hash_array
from ortcam.evaluation.samples import MaskSource, Sample

if TYPE_CHECKING:
    from ortcam.core.pictures import Image

LAYOUTS = {
    "folder": "a folder with photos, at any depth",
    "classes": "a folder with a folder of photos for each class, named by its index or label",
    "classes-sorted": "the same; the class is the position of the folder's name in their sorted list, from 0",
    "coco": "a JSON file of COCO with its photos beside it; coco:JSON,FOLDER for photos elsewhere",
    "csv": "a CSV with the columns photo, label, and perhaps left, top, right, bottom, mask",
    "cub": "CUB-200-2011: its test photos",
    "cub-all": "CUB-200-2011: all photos",
    "cub-train": "CUB-200-2011: its training photos",
    "masks": "a folder with images/, masks/ (a PNG for each photo) and perhaps labels.csv",
    "voc": "Pascal VOC: Annotations/ and JPEGImages/; voc-NAME for the list ImageSets/Main/NAME.txt",
}
Labels = str | PathLike[str] | Sequence[int | str | None]


@dataclass(frozen=True)
class Dataset:
    """Photos to evaluate maps on.

    Attributes:
        name: what was opened, such as ``cub:CUB_200_2011``.
        samples: the photos with their classes and objects; their names differ.
        notes: what was left out, a line each.
        layout: the layout's name; ``list`` for photos that were given one by one.
        folder: the folder or file that was read; empty for a list.
        classes: the number of classes, where the layout numbers them (cub, classes-sorted); None for others.
    """

    name: str
    samples: tuple[Sample, ...]
    notes: tuple[str, ...] = ()
    layout: str = "list"
    folder: str = ""
    classes: int | None = None

    def __post_init__(self) -> None:
        """Check the names.

        Raises:
            DatasetError: two samples have the same name, or there are none.
        """
        if not self.samples:
            raise DatasetError(f"{self.name} holds no photos; expected at least one")
        name, times = Counter(sample.name for sample in self.samples).most_common(1)[0]
        if times > 1:
            raise DatasetError(f"{self.name} has {times} samples named {name!r}; expected different names")

    def describe(self) -> dict[str, Any]:
        """Return what was opened, for the record: values that JSON holds.

        `samples`, `photos` and `labelled` are numbers. `sha256` is a hash of all names, classes, boxes and masks in
        their order, and of the pixels of photos that are no files. Mask files count by name.
        """
        return {
            "layout": self.layout,
            "folder": os.path.normpath(self.folder) if self.folder else "",
            "samples": len(self.samples),
            "photos": len({id(sample.image) for sample in self.samples}),
            "labelled": sum(sample.label is not None for sample in self.samples),
            "sha256": self._sha256,
            "notes": list(self.notes),
        }

    @cached_property
    def _sha256(self) -> str:
        found = hashlib.sha256()
        for sample in self.samples:
            places = [list(map(float, box)) for box in sample.boxes], [_fingerprint(mask) for mask in sample.masks]
            row = sample.name, sample.label, places, _pixels(sample.image)
            found.update(json.dumps(row).encode() + b"\n")
        return found.hexdigest()


def _fingerprint(mask: MaskSource) -> str:
    """Return a short text that differs between different masks; a caller's own class may have none."""
    found = getattr(mask, "fingerprint", None)
    return str(found()) if found else type(mask).__name__


def _pixels(image: Image) -> str | None:
    """Return a hash of a photo in memory; None for a file."""
    from ortcam.model.pixels import read_pixels

    if isinstance(image, str | PathLike) or hasattr(image, "read"):
        return None
    if isinstance(image, bytes | bytearray | memoryview):
        return hashlib.sha256(image).hexdigest()
    return hash_array(read_pixels(image))


def open_dataset(source: Dataset | Image | Iterable[Image | Sample], labels: Labels | None = None) -> Dataset:
    """Open a data set.

    Args:
        source: a folder (all photos in it and below it), a photo, ``LAYOUT:PATH`` with one of `LAYOUTS`, or several
            paths, other photos and `Sample`\\ s. Photos that are no files are named ``photo 1``, ``photo 2``, ...
        labels: the classes of photos that have none: a CSV with the columns photo and label, or, for photos given one
            by one, a sequence with an index, a label or None for each.

    Raises:
        DatasetError: a file is missing, cannot be read or contradicts another one.
        OptionError: `labels` for a layout that states the classes itself, or of another length than the photos.
    """
    if isinstance(source, Dataset):
        return _labelled(source, labels)
    if isinstance(source, str | PathLike):
        text = os.fspath(source)
        layout, path = _layout_of(text)
        if layout:
            return _open_layout(layout, path, text, labels)
        if Path(text).is_dir():
            return _open_layout("folder", text, text, labels)
        return _labelled(Dataset(text, tuple(_listed([source]).samples), (), "list", text), labels)
    photos = [source] if _is_photo(source) else list(cast("Iterable[Image | Sample]", source))
    content = _listed(cast("list[Image | Sample]", photos))
    dataset = Dataset(f"{len(content.samples)} photos", tuple(content.samples), tuple(content.notes))
    return _labelled(dataset, labels)


def _layout_of(text: str) -> tuple[str, str]:
    """Return the layout and the path of ``LAYOUT:PATH``; no layout for a plain path.

    Raises:
        DatasetError: the layout is unknown, and no file has this name.
    """
    layout, colon, path = text.partition(":")
    if not colon or len(layout) < 2 or exists(Path(text)):  # a single letter is a drive of Windows
        return "", text
    if layout in LAYOUTS or layout.startswith("voc-"):
        return layout, path
    if os.sep in layout:
        return "", text
    raise DatasetError(
        f"layout {layout!r} of {text} is unknown; expected {', '.join(LAYOUTS)}" + nearest(layout, LAYOUTS)
    )


def _open_layout(layout: str, path: str, spec: str, labels: Labels | None) -> Dataset:
    kind, _, split = layout.partition("-")
    if labels is not None and kind not in ("folder", "masks"):
        raise OptionError(f"labels are given, but {spec} states the classes itself; leave labels out")
    folder = Path(path)
    if not path:
        raise DatasetError(f"{spec} names no file or folder; expected {layout}:PATH")
    if layout == "folder":
        content = Content([Sample(p, p.relative_to(folder).as_posix()) for p in find_photos(folder)], [])
    elif kind == "classes":
        content = read_classes(folder, split == "sorted")
    elif kind == "csv":
        content = read_csv(folder)
    elif kind == "cub":
        content = read_cub(folder, cast("Literal['train', 'all']", split) or "test")
    elif kind == "voc":
        content = read_voc(folder, split)
    elif kind == "coco":
        content = read_coco(*_coco_paths(path))
    else:
        content = read_masks(folder)
        own = folder / "labels.csv"
        labels = own if labels is None and own.is_file() else labels
    dataset = Dataset(spec, tuple(content.samples), tuple(content.notes), layout, path, content.classes)
    return _labelled(dataset, labels)


def _coco_paths(path: str) -> tuple[Path, Path]:
    """Return the JSON file and the folder of photos of ``JSON`` or ``JSON,FOLDER``.

    The folder may also be relative to the JSON's.
    """
    file, comma, folder = path.rpartition(",")
    if not comma or exists(Path(path)):
        return Path(path), Path(path).parent
    beside = Path(file).parent / folder
    return Path(file), beside if beside.is_dir() and not Path(folder).is_dir() else Path(folder)


def _listed(photos: Sequence[Image | Sample]) -> Content:
    """Return samples of photos that are given one by one."""
    from ortcam.model.image import read_stream

    found: list[Sample] = []
    paths: dict[Path, None] = {}
    twice = []
    for number, photo in enumerate(photos, 1):
        if isinstance(photo, Sample):
            found.append(photo)
        elif isinstance(photo, str | PathLike):
            path = Path(photo)
            if not exists(path):
                raise DatasetError(f"{path} is missing; expected a photo or a folder with photos")
            for one in find_photos(path) if path.is_dir() else [path]:
                if one in paths:
                    twice.append(str(one))
                    continue
                paths[one] = None
                found.append(Sample(one, ""))
        else:
            stream = hasattr(photo, "read") and not hasattr(photo, "__array__")
            found.append(Sample(read_stream(photo) if stream else photo, f"photo {number}"))
    names = _names(list(paths))
    named = [sample if sample.name else replace(sample, name=names[cast("Path", sample.image)]) for sample in found]
    return Content(named, [f"photos given twice are evaluated once: {and_more(twice)}"] if twice else [])


def _names(paths: Sequence[Path]) -> dict[Path, str]:
    """Return the paths relative to the last folder that all of them share."""
    if not paths:
        return {}
    full = [path.absolute() for path in paths]
    try:
        shared = Path(os.path.commonpath([path.parent for path in full]))
    except ValueError:  # on several drives
        return {path: path.as_posix() for path in paths}
    return {path: one.relative_to(shared).as_posix() for path, one in zip(paths, full, strict=True)}


def _is_photo(source: object) -> bool:
    """Return whether `source` is one photo: bytes, an open file, an array, a tensor or a Pillow image."""
    kinds = ("__array__", "getbands", "read")
    return isinstance(source, bytes | bytearray | memoryview | Sample) or any(hasattr(source, kind) for kind in kinds)


def _labelled(dataset: Dataset, labels: Labels | None) -> Dataset:
    if labels is None:
        return dataset
    if isinstance(labels, str | PathLike):
        content = with_labels(dataset.samples, Path(labels))
        return replace(dataset, samples=tuple(content.samples), notes=(*dataset.notes, *content.notes))
    values = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    if len(values) != len(dataset.samples):
        raise OptionError(f"labels has {len(values)} values; expected one for each of {len(dataset.samples)} photos")
    samples = [replace(sample, label=value) for sample, value in zip(dataset.samples, values, strict=True)]
    return replace(dataset, samples=tuple(samples))
