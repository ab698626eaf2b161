"""CSV files with the classes, boxes and masks of photos."""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

from ortcam.errors import DatasetError, nearest, one_line
from ortcam.evaluation.dataset_files import Content, Item, and_more, as_label, exists, read_text, samples_of
from ortcam.evaluation.regions import Box, MaskFile, cut
from ortcam.evaluation.samples import Sample

_SIDES = ("left", "top", "right", "bottom")
_COLUMNS = ("photo", "label", *_SIDES, "mask")


class Line(NamedTuple):
    """A line of the file: the photo and mask as written, the class and the box, and the line's number."""

    photo: str
    label: int | str | None
    box: Box | None
    mask: str
    number: int


def read_csv(path: Path) -> Content:
    """Read a CSV with the columns photo and label, and perhaps left, top, right and bottom (pixels), and mask (a PNG).

    Paths are relative to the CSV. A photo with several objects has several lines.

    Raises:
        DatasetError: a column, photo or mask is missing, a value is invalid, or a photo has several classes without
            boxes or masks that tell them apart.
    """
    lines, notes = read_lines(path)
    photos: dict[Path, list[Line]] = {}
    missing = []
    for line in lines:
        photo = _below(path.parent, line.photo)
        if photo not in photos and not _is_file(photo):
            missing.append(f"{line.photo} (line {line.number})")
        photos.setdefault(photo, []).append(line)
    if missing:
        raise DatasetError(f"{path} names photos that are missing in {path.parent}: {and_more(missing)}")
    samples = []
    for photo, of_photo in photos.items():
        full, folder = photo.absolute(), path.parent.absolute()
        name = full.relative_to(folder).as_posix() if full.is_relative_to(folder) else full.as_posix()
        samples.extend(samples_of(photo, name, _items(path, of_photo), path.name))
    return Content(samples, notes)


def _items(path: Path, lines: Sequence[Line]) -> Iterator[Item]:
    """Yield the objects of a photo's lines."""
    first = lines[0]
    for line in lines:
        if line.label != first.label and not all(one.box or one.mask for one in (first, line)):
            raise DatasetError(f"{path} {_two_classes(first, line)}, or give each line a box or a mask")
        mask = None
        if line.mask:
            file = _below(path.parent, line.mask)
            if not _is_file(file):
                raise DatasetError(f"{path} line {line.number} names a mask that is missing: {cut(line.mask)}")
            mask = MaskFile(file, line.mask.replace("\\", "/"))
        yield Item(line.label, line.box, mask)


def _two_classes(one: Line, other: Line) -> str:
    classes = f"{cut(one.label)} in line {one.number}, {cut(other.label)} in line {other.number}"
    return f"gives {cut(one.photo)} two classes: {classes}; remove one"


def with_labels(samples: Sequence[Sample], path: Path) -> Content:
    """Return the samples with the classes of a CSV with the columns photo and label.

    The file names a photo by its name in the data set, by its path relative to the CSV, or by its file name alone.

    Raises:
        DatasetError: a photo has no line or two different classes, or the file cannot be read.
    """
    lines, notes = read_lines(path)
    photos: tuple[dict[str, list[int]], ...] = ({}, {}, {})
    for index, sample in enumerate(samples):
        for kind, name in zip(photos, _names(sample, path.parent), strict=True):
            kind.setdefault(name, []).append(index)
    found: dict[int, Line] = {}
    lost = []
    for line in lines:
        indices = _find(photos, path.parent, line.photo)
        if len(indices) > 1:
            names = cut(" and ".join(samples[index].name for index in indices[:2]), 300)
            raise DatasetError(
                f"{path} line {line.number}: {cut(line.photo)} could be {names}; give the path in the folder"
            )
        if not indices:
            lost.append(f"{line.photo} (line {line.number})")
            continue
        known = found.setdefault(indices[0], line)
        if known.label != line.label:
            raise DatasetError(f"{path} {_two_classes(known, line)}")
    without = [sample.name for index, sample in enumerate(samples) if index not in found]
    if without:
        raise DatasetError(f"{path} has no line for {and_more(without)}; expected one for every photo")
    if lost:
        notes.append(f"{path.name} names photos that are not in the data set: {and_more(lost)}")
    return Content([replace(sample, label=found[index].label) for index, sample in enumerate(samples)], notes)


def _names(sample: Sample, folder: Path) -> tuple[str, str, str]:
    """Return the names that a CSV in `folder` may call a sample by: its own, its path, its file's; the first counts."""
    if not isinstance(sample.image, Path):
        return sample.name, sample.name, sample.name
    return sample.name, _full(folder, sample.image.absolute()), sample.image.name


def _full(folder: Path, path: str | Path) -> str:
    return os.path.normpath(os.path.join(folder.absolute(), path))  # noqa: PTH118 - pathlib keeps ".."


def _find(photos: Sequence[Mapping[str, list[int]]], folder: Path, written: str) -> list[int]:
    """Return the samples that a CSV in `folder` calls `written`."""
    for name in dict.fromkeys((written, written.replace("\\", "/").removeprefix("./"))):
        for kind, key in zip(photos, (name, _full(folder, name), name), strict=True):
            if found := kind.get(key):
                return found
    return []


def read_lines(path: Path) -> tuple[list[Line], list[str]]:
    """Return the lines of a CSV, and what is left out of it.

    The columns are named in the first line, in any order. Commas, semicolons (Excel in many languages) or tabs separate
    them.

    Raises:
        DatasetError: the file cannot be read, a column is missing, or a value is invalid.
    """
    text = read_text(path)
    begin, mark = 0, re.match(r"sep=(.)\r?\n", text, re.IGNORECASE)  # Excel writes and reads such a line
    if mark:
        text, begin = text[mark.end() :], 1
    header = next(filter(str.strip, io.StringIO(text)), "")
    separator = mark[1] if mark else max(",;\t", key=header.count)
    rows = _rows(path, text, separator, begin)
    _, names = next(rows, (1, []))
    names = [name.strip().lower() for name in names]
    _check_columns(path, names)
    lines = [_line(path, number, dict(zip(names, row, strict=True)), separator) for number, row in rows]
    if not lines:
        raise DatasetError(f"{path} has no lines below its header; expected one for every photo")
    ignored = [name or "(without a name)" for name in names if name not in _COLUMNS]
    return lines, [f"{path.name}: columns are ignored: {', '.join(ignored)}"] if ignored else []


def _rows(path: Path, text: str, separator: str, begin: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not blank, each with the number of its line; all are as long as the first."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=True)
    expected = None
    while True:
        number = reader.line_num + begin + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise DatasetError(f"{path} line {number} cannot be read as CSV: {one_line(error)}") from error
        if row is None:
            return
        if not any(cell.strip() for cell in row):
            continue
        expected = expected or len(row)
        row += [""] * (expected - len(row))  # Excel leaves empty cells at the end away
        if any(cell.strip() for cell in row[expected:]):
            raise DatasetError(f"{path} line {number} has {len(row)} values; expected {expected}, as in the first line")
        yield number, row[:expected]


def _check_columns(path: Path, names: Sequence[str]) -> None:
    for name in ("photo", "label"):
        if name not in names:
            raise DatasetError(
                f"{path} has no column {name!r}; expected a first line that names the columns: photo,label"
                + nearest(name, names)
            )
    twice = [name for name in _COLUMNS if names.count(name) > 1]
    if twice:
        raise DatasetError(f"{path} has two columns {twice[0]!r}; remove one")
    absent = [side for side in _SIDES if side not in names]
    if 0 < len(absent) < 4:
        raise DatasetError(f"{path} has no column {absent[0]!r}; expected all of left, top, right, bottom, or none")


def _line(path: Path, number: int, cells: Mapping[str, str], separator: str) -> Line:
    photo, label = cells["photo"].strip(), as_label(cells["label"])
    if not photo:
        raise DatasetError(f"{path} line {number} names no photo")
    written = [cells.get(side, "").strip() for side in _SIDES]
    box = None
    if any(written):
        sides = []
        for side, text in zip(_SIDES, written, strict=True):
            try:
                value = float(text.replace(",", ".") if separator != "," else text)
            except ValueError:
                value = math.nan
            if not math.isfinite(value):
                raise DatasetError(f"{path} line {number}: {side} is {cut(repr(text))}; expected a number of pixels")
            sides.append(value)
        box = Box(*sides)
    return Line(photo, label, box, cells.get("mask", "").strip(), number)


def _below(folder: Path, written: str) -> Path:
    """Return the path of a file that a CSV in `folder` names; a Windows path counts if no file has that very name."""
    path = folder / written
    if "\\" in written and not exists(path):
        path = folder / PureWindowsPath(written).as_posix()
    return path


def _is_file(path: Path) -> bool:
    return exists(path) and path.is_file()
