"""Pascal VOC (Everingham et al., 2010; its development kit): an XML file of objects for each photo."""

from __future__ import annotations

import math
from pathlib import Path, PureWindowsPath
from typing import NoReturn
from xml.etree import ElementTree

from ortcam.errors import DatasetError, one_line
from ortcam.evaluation.dataset_files import (
    Content,
    Item,
    and_more,
    as_label,
    exists,
    is_photo,
    need_folder,
    numbered_lines,
    read_bytes,
    samples_of,
)
from ortcam.evaluation.regions import Box, cut
from ortcam.evaluation.samples import Sample


def read_voc(folder: Path, split: str = "") -> Content:
    """Read photos with boxes; each class of a photo is a sample.

    VOC counts pixels from 1 and includes the last: a box is (xmin - 1, ymin - 1, xmax, ymax). A class of a photo is
    left out if all its objects are `difficult`; otherwise its difficult objects count. TorchRay's pointing game does
    the same (torchray/benchmark/pointing_game.py).

    Args:
        folder: the folder with Annotations/ and JPEGImages/.
        split: the name of a list in ImageSets/Main/, such as ``val``; empty for all photos with annotations.

    Raises:
        DatasetError: a file is missing or invalid.
    """
    need_folder(folder)
    annotations = need_folder(folder / "Annotations", "the XML files of Pascal VOC")
    images = need_folder(folder / "JPEGImages", "the photos of Pascal VOC")
    photos = {path.name: path for path in sorted(images.iterdir()) if is_photo(path)}
    files = _files(folder, annotations, split)
    samples: list[Sample] = []
    empty, difficult, rest = [], [], set(photos)
    for file in files:
        root = _parse(file)
        photo = _photo(file, root, photos)
        rest.discard(photo.name)
        objects = root.findall("object")
        if not objects:
            empty.append(photo.name)
        items = [_item(file, one) for one in objects]
        flags = [_text(one, "difficult") == "1" for one in objects]
        seen = {item.label for item, flag in zip(items, flags, strict=True) if not flag}
        difficult += [f"{photo.name}#{label}" for label in dict.fromkeys(i.label for i in items) if label not in seen]
        kept = [item for item in items if item.label in seen]
        samples += samples_of(photo, photo.name, kept, f"Annotations/{file.name}", _size(file, root))
    notes = []
    if rest and not split:
        notes.append(f"photos without annotations are left out: {and_more(sorted(rest))}")
    notes += [f"photos without objects are left out: {and_more(empty)}"] if empty else []
    notes += [f"classes with difficult objects only are left out: {and_more(difficult)}"] if difficult else []
    if not samples:
        raise DatasetError(f"{annotations} has no objects that count in {len(files)} files; expected at least one")
    return Content(samples, notes)


def _files(folder: Path, annotations: Path, split: str) -> list[Path]:
    """Return the annotations of a list, or all of them."""
    if not split:
        found = sorted(path for path in annotations.glob("*.xml") if not path.name.startswith("."))
        if not found:
            raise DatasetError(f"{annotations} holds no XML files; expected one for each photo")
        return found
    chosen = folder / "ImageSets" / "Main" / f"{split}.txt"
    files: dict[Path, int] = {}
    for number, line in numbered_lines(chosen):
        file = annotations / f"{line.split()[0]}.xml"
        if not exists(file):
            raise DatasetError(f"{chosen} line {number} names {cut(line)}, which has no file in Annotations")
        files.setdefault(file, number)
    if not files:
        raise DatasetError(f"{chosen} is empty; expected a photo's name in each line")
    return list(files)


class _NoDoctype(ElementTree.TreeBuilder):
    """Refuses a document type, before an entity of it can be read: entities can fill the memory or read files."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> NoReturn:
        raise DatasetError("has a DOCTYPE, which is not read; remove it")


def _parse(file: Path) -> ElementTree.Element:
    parser = ElementTree.XMLParser(target=_NoDoctype())
    try:
        parser.feed(read_bytes(file))
        root: ElementTree.Element = parser.close()
    except DatasetError as error:
        raise DatasetError(f"{file} {error}" if "DOCTYPE" in str(error) else str(error)) from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # damaged; an unknown encoding
        raise DatasetError(f"{file} is not valid XML: {one_line(error)}") from error
    if root.tag != "annotation":
        raise DatasetError(f"{file} begins with <{cut(root.tag)}>; expected <annotation>, as in Pascal VOC")
    return root


def _text(element: ElementTree.Element, name: str) -> str:
    return (element.findtext(name) or "").strip()


def _photo(file: Path, root: ElementTree.Element, photos: dict[str, Path]) -> Path:
    """Return the photo that the annotation names; if it is missing, the one that is named like the annotation."""
    name = PureWindowsPath(_text(root, "filename")).name
    found = photos.get(name) or next((path for path in photos.values() if path.stem == file.stem), None)
    if found is None:
        raise DatasetError(f"{file} is for the photo {cut(name or file.stem)!r}, which is missing in JPEGImages")
    return found


def _item(file: Path, element: ElementTree.Element) -> Item:
    name = _text(element, "name")
    if not name:
        raise DatasetError(f"{file} has an object without a <name>")
    box = element.find("bndbox")
    if box is None:
        raise DatasetError(f"{file} has an object {cut(name)!r} without a <bndbox>")
    sides = [_number(file, box, f"<bndbox> of {cut(name)!r}", side) for side in ("xmin", "ymin", "xmax", "ymax")]
    return Item(as_label(name), Box(sides[0] - 1, sides[1] - 1, sides[2], sides[3]))


def _number(file: Path, element: ElementTree.Element, where: str, name: str) -> float:
    text = _text(element, name)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DatasetError(f"{file}: {name} in {where} is {cut(text, 40)!r}; expected a number of pixels")
    return value


def _size(file: Path, root: ElementTree.Element) -> tuple[int, int] | None:
    """Return the photo's (H, W) as the annotation states it; None if it does not, or states 0."""
    element = root.find("size")
    if element is None:
        return None
    height, width = (int(_number(file, element, "<size>", name)) for name in ("height", "width"))
    return (height, width) if height > 0 and width > 0 else None
