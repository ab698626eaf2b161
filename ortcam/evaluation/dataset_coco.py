"""COCO (Lin et al., 2014; cocodataset.org, "Data format"): one JSON file with boxes and masks of many photos."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from ortcam.errors import DatasetError, one_line
from ortcam.evaluation.dataset_files import (
    Content,
    Item,
    and_more,
    as_label,
    exists,
    need_folder,
    read_text,
    samples_of,
)
from ortcam.evaluation.regions import Box, MaskSource, cut, polygons, run_lengths
from ortcam.evaluation.samples import Sample

_FARTHEST = 1e9  # pixels; larger numbers, infinite ones and NaN are mistakes


def read_coco(file: Path, folder: Path) -> Content:
    """Read photos with boxes and masks; each class of a photo is a sample, its label the category's name.

    A box ``x, y, width, height`` becomes (x, y, x + width, y + height). Crowds (`iscrowd`) are left out, as well as
    photos that have no objects or are not in the folder.

    Args:
        file: the JSON file with images, annotations and categories.
        folder: the folder of the photos; an image's `file_name` is relative to it.

    Raises:
        DatasetError: a file is missing, no photo is in the folder, a field is missing or invalid, or an annotation
            names an image or a category that the file lacks.
    """
    data = _load(file)
    need_folder(folder, "the photos")
    categories = {
        _get(file, "categories", index, one, "id", int): _get(file, "categories", index, one, "name", str)
        for index, one in enumerate(data["categories"])
    }
    images: dict[int, tuple[str, Any]] = {}
    for index, one in enumerate(data["images"]):
        key = _get(file, "images", index, one, "id", int)
        images[key] = _get(file, "images", index, one, "file_name", str), one
    if len(images) < len(data["images"]):
        raise DatasetError(
            f"{file} has {len(data['images'])} images, but {len(images)} different ids; expected an id for each"
        )
    items: dict[int, list[Item]] = {key: [] for key in images}
    crowds = 0
    for index, one in enumerate(data["annotations"]):
        image = _get(file, "annotations", index, one, "image_id", int)
        category = _get(file, "annotations", index, one, "category_id", int)
        if image not in images:
            raise DatasetError(f"{file}: annotations[{index}] is for the image {cut(image)}, which images lacks")
        if category not in categories:
            raise DatasetError(f"{file}: annotations[{index}] has the category {cut(category)}, which categories lacks")
        if one.get("iscrowd"):
            crowds += 1
            continue
        items[image].append(_item(file, index, one, as_label(categories[category])))
    return _content(file, folder, images, items, crowds)


def _content(
    file: Path, folder: Path, images: Mapping[int, tuple[str, Any]], items: Mapping[int, list[Item]], crowds: int
) -> Content:
    samples: list[Sample] = []
    empty, missing = [], []
    for key, (name, one) in images.items():
        path = folder / name
        if "\\" in name and not exists(path):
            name = PureWindowsPath(name).as_posix()
            path = folder / name
        if not items[key]:
            empty.append(name)
        elif not (exists(path) and path.is_file()):
            missing.append(name)
        else:
            height, width = one.get("height"), one.get("width")
            size = (height, width) if type(height) is int and type(width) is int and min(height, width) > 0 else None
            samples += samples_of(path, name, items[key], file.name, size)
    if missing and not samples:
        raise DatasetError(
            f"{folder} has none of the photos of {file}: {and_more(missing)}; give their folder: coco:JSON,FOLDER"
        )
    if not samples:
        raise DatasetError(f"{file} has no objects that count in {len(images)} images; expected at least one")
    notes = [f"{crowds} annotations of crowds are left out"] if crowds else []
    notes += [f"photos without objects are left out: {and_more(empty)}"] if empty else []
    notes += [f"photos that are missing in {folder.name} are left out: {and_more(missing)}"] if missing else []
    return Content(samples, notes)


def _load(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{file} is not valid JSON: {one_line(error)}") from error
    for field in ("images", "annotations", "categories"):
        if not isinstance(data, dict) or not isinstance(data.get(field), list):
            raise DatasetError(f"{file} has no list {field!r}; expected COCO's images, annotations and categories")
    return {field: data[field] for field in ("images", "annotations", "categories")}


def _get(file: Path, field: str, index: int, one: Any, name: str, kind: type) -> Any:
    value = one.get(name) if isinstance(one, dict) else None
    if type(value) is not kind or value == "":
        what = {int: "a whole number", str: "a text", list: "a list"}[kind]
        found = "missing" if value is None else cut(repr(value), 50)
        raise DatasetError(f"{file}: {name!r} of {field}[{index}] is {found}; expected {what}")
    return value


def _item(file: Path, index: int, one: dict[str, Any], label: int | str | None) -> Item:
    """Return the object of an annotation: its box, its mask, or both."""
    box, mask, outline = None, None, one.get("segmentation")
    if "bbox" in one or not outline:
        sides = _get(file, "annotations", index, one, "bbox", list)
        if len(sides) != 4 or not all(type(side) in (int, float) and abs(side) < _FARTHEST for side in sides):
            raise DatasetError(
                f"{file}: 'bbox' of annotations[{index}] is {cut(sides, 50)}; expected [x, y, width, height]"
            )
        x, y, width, height = map(float, sides)
        box = Box(x, y, x + width, y + height)
    if outline:
        try:
            mask = _mask(outline)
        except DatasetError as error:
            raise DatasetError(f"{file}: annotations[{index}]: {error}") from error
    return Item(label, box, mask)


def _mask(outline: Any) -> MaskSource:
    if isinstance(outline, dict):
        return run_lengths(outline.get("size"), outline.get("counts"))
    return polygons(outline)
