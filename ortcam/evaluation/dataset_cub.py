"""CUB-200-2011 (Wah et al., The Caltech-UCSD Birds-200-2011 dataset, 2011): its text files and photos."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from ortcam.errors import DatasetError
from ortcam.evaluation.dataset_files import Content, and_more, exists, need_folder, numbered_lines
from ortcam.evaluation.regions import Box, cut
from ortcam.evaluation.samples import Sample

_FILES = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "bounding_boxes.txt", "classes.txt")


def read_cub(folder: Path, split: Literal["test", "train", "all"]) -> Content:
    """Read photos with one class and one box each.

    The class is its number in the files minus 1. A box ``x y width height`` becomes (x, y, x + width, y + height).

    Args:
        folder: the folder with images.txt, image_class_labels.txt, train_test_split.txt, bounding_boxes.txt,
            classes.txt and images/.
        split: ``train`` for photos with a 1 in train_test_split.txt, ``test`` for those with a 0, or ``all``.

    Raises:
        DatasetError: a file or a photo is missing, a line is invalid, or an id stands in one file and not in another.
    """
    need_folder(folder)
    for name in _FILES:
        if not exists(folder / name):
            raise DatasetError(f"{folder / name} is missing; expected the files of CUB-200-2011: {', '.join(_FILES)}")
    images = need_folder(folder / "images", "the photos of CUB-200-2011")
    table = {name: _read_table(folder / name) for name in _FILES}
    paths = table["images.txt"]
    for name in _FILES[1:4]:
        _same_ids(folder, paths, name, table[name])
    samples, missing = [], []
    for key, (number, path) in paths.items():
        label, training = (_whole(folder / name, *table[name][key]) for name in _FILES[1:3])
        if str(label) not in table["classes.txt"]:
            line = table["image_class_labels.txt"][key][0]
            raise DatasetError(f"{folder / 'image_class_labels.txt'} line {line}: class {label} is not in classes.txt")
        if training not in (0, 1):
            line = table["train_test_split.txt"][key][0]
            raise DatasetError(f"{folder / 'train_test_split.txt'} line {line} has {training}; expected 0 or 1")
        box = _box(folder / "bounding_boxes.txt", *table["bounding_boxes.txt"][key])
        if split != "all" and training != (split == "train"):
            continue
        if not exists(images / path):
            missing.append(f"images/{path} (line {number})")
        samples.append(Sample(images / path, path, label - 1, (box,), source="bounding_boxes.txt"))
    if missing:
        raise DatasetError(f"{folder / 'images.txt'} names photos that are missing: {and_more(missing)}")
    if not samples:
        raise DatasetError(f"{folder / 'train_test_split.txt'} has no {split} photos; use cub-all for all photos")
    return Content(samples, [], len(table["classes.txt"]))


def _read_table(path: Path) -> dict[str, tuple[int, str]]:
    """Return the lines ``id value`` by id, each with its number and value."""
    table: dict[str, tuple[int, str]] = {}
    for number, line in numbered_lines(path):
        key, _, value = line.partition(" ")
        if not (key.isascii() and key.isdigit() and value.strip()):
            raise DatasetError(f"{path} line {number} is {cut(line, 60)!r}; expected a number, a space and a value")
        key = key.lstrip("0") or "0"
        if key in table:
            raise DatasetError(f"{path} has the id {cut(key)} in the lines {table[key][0]} and {number}; remove one")
        table[key] = number, value.strip()
    if not table:
        raise DatasetError(f"{path} is empty; expected lines of a number, a space and a value")
    return table


def _same_ids(folder: Path, paths: dict[str, tuple[int, str]], name: str, values: dict[str, tuple[int, str]]) -> None:
    without = [f"{cut(key)} (line {paths[key][0]})" for key in paths if key not in values]
    if without:
        raise DatasetError(f"{folder / name} lacks ids of images.txt: {and_more(without)}")
    lost = [f"{cut(key)} (line {values[key][0]})" for key in values if key not in paths]
    if lost:
        raise DatasetError(f"{folder / name} has ids that images.txt lacks: {and_more(lost)}")


def _whole(path: Path, line: int, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise DatasetError(f"{path} line {line} has {cut(text, 60)!r}; expected a whole number")
    return int(text)


def _box(path: Path, line: int, text: str) -> Box:
    try:
        x, y, width, height = map(float, text.split())
    except ValueError:
        x = y = width = height = math.nan
    if not all(map(math.isfinite, (x, y, width, height))):
        raise DatasetError(f"{path} line {line} has {cut(text, 60)!r}; expected four numbers: x y width height")
    return Box(x, y, x + width, y + height)
