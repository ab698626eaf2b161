"""Data sets: each layout on a small tree of packaged photos, and what is said about files that are wrong."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow

from ortcam.errors import DatasetError, OptionError
from ortcam.evaluation.datasets import open_dataset
from ortcam.evaluation.regions import MaskArray, decompress, fill, polygons, run_lengths
from ortcam.evaluation.samples import Box, Sample
from ortcam.model.image import read_photo

SIZE = (512, 512)  # of foolbox's photos of ImageNet
Tree = Callable[..., Path]


@pytest.fixture
def tree(tmp_path: Path, photos: dict[str, Path]) -> Tree:
    """Make a folder: a photo for each path with a photo's suffix, and the given texts or bytes."""

    def make(*names: str, **texts: str | bytes) -> Path:
        root = tmp_path / "set"
        for number, name in enumerate(names):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(photos[f"imagenet_{number:02}"], root / name)
        for name, text in texts.items():
            write(root / name, text)
        return root

    return make


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def names(source: Any, **options: Any) -> list[str]:
    return [sample.name for sample in open_dataset(source, **options).samples]


def labels(source: Any, **options: Any) -> dict[str, int | str | None]:
    return {sample.name: sample.label for sample in open_dataset(source, **options).samples}


def refusal(source: Any, **options: Any) -> str:
    """Return the message of an invalid data set; it is one line."""
    with pytest.raises(DatasetError) as caught:
        open_dataset(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def region(sample: Sample, size: tuple[int, int] = SIZE) -> np.ndarray:
    found = sample.region(size)
    assert found is not None and found.dtype == np.bool_ and found.shape == size
    return found


def area(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    expected = np.zeros(SIZE, bool)
    expected[top:bottom, left:right] = True
    return expected


# Folders and lists


def test_a_folder_gives_the_photos_that_explain_finds(tree: Tree) -> None:
    root = tree("b.jpg", "a/z.JPG", "a/.hidden.jpg", "saved/input.jpg", "out/curves.png", "a/curves.png")
    write(root / "notes.txt", "no photo")
    write(root / "saved" / "explanation.json", "{}")  # a saved explanation is no photo
    write(root / "out" / "results.json", "{}")  # nor are the curves of an evaluation
    assert names(root) == names(str(root)) == names(f"folder:{root}") == ["a/curves.png", "a/z.JPG", "b.jpg"]
    assert open_dataset(root).samples[2].image == root / "b.jpg"


def test_a_photo_and_lists_of_photos_and_folders(tree: Tree) -> None:
    root = tree("x/a.jpg", "y/a.jpg", "y/b.jpg")
    assert names(root / "x/a.jpg") == ["a.jpg"]
    assert names([root / "y/a.jpg", str(root / "x/a.jpg")]) == ["y/a.jpg", "x/a.jpg"]
    found = open_dataset([root / "x/a.jpg", root / "y", root / "x/a.jpg"])
    assert [sample.name for sample in found.samples] == ["x/a.jpg", "y/a.jpg", "y/b.jpg"]
    assert "twice" in found.notes[0] and "x/a.jpg" in found.notes[0]


def test_photos_in_memory_are_numbered(tree: Tree) -> None:
    path = tree("a.jpg") / "a.jpg"
    array = np.zeros((8, 9, 3), np.uint8)
    own = Sample(array, "mine", 3)
    assert names([array, path, array, own]) == ["photo 1", "a.jpg", "photo 3", "mine"]
    assert names(array) == names(path.read_bytes()) == names(Pillow.fromarray(array)) == ["photo 1"]
    assert open_dataset([io.BytesIO(b"data")]).samples[0].image == b"data"  # it can be read only once


def test_missing_and_empty_folders_are_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none") == f"{tmp_path / 'none'} is missing; expected a photo or a folder with photos"
    assert f"{tmp_path} holds no photos" in refusal(tmp_path)
    assert "layout 'coca' of coca:x is unknown" in refusal("coca:x") and "nearest: coco" in refusal("coca:x")
    assert "expected cub:PATH" in refusal("cub:")
    assert "holds no photos" in refusal([])
    assert refusal([Sample("a", "a"), Sample("b", "a")]).endswith("2 samples named 'a'; expected different names")


# Labels


def test_labels_come_from_a_csv(tree: Tree) -> None:
    root = tree("a.jpg", "sub/b.jpg")
    text = "label;photo\r\n243;a.jpg\r\n\r\ntabby cat;sub\\b.jpg\r\n"
    excel = write(root.parent / "labels.csv", b"\xef\xbb\xbf" + text.encode())
    assert labels(root, labels=excel) == {"a.jpg": 243, "sub/b.jpg": "tabby cat"}
    assert labels(root, labels=write(excel, "photo,label\nset/a.jpg,1\nb.jpg,2\n")) == {"a.jpg": 1, "sub/b.jpg": 2}
    more = open_dataset(root, labels=write(excel, "photo,label\na.jpg,1\nb.jpg,2\nc.jpg,3\n"))
    assert more.notes == ("labels.csv names photos that are not in the data set: c.jpg (line 4)",)
    assert labels([root / "a.jpg", root / "sub/b.jpg"], labels=[np.int64(7), None]) == {"a.jpg": 7, "sub/b.jpg": None}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("photo,label\na.jpg,1\n", "has no line for sub/a.jpg; expected one for every photo"),
        ("photo,label\nset/a.jpg,1\nsub/a.jpg,2\na.jpg,3\n", "two classes: 1 in line 2, 3 in line 4"),
        ("photo,class\na.jpg,1\n", "has no column 'label'; expected a first line that names the columns: photo,label"),
        ("a.jpg,1\n", "has no column 'photo'"),
        ("", "has no column 'photo'"),
        ("photo,label\n", "has no lines below its header"),
        ("photo,label\n,1\n", "line 2 names no photo"),
        ('photo,label\n"a.jpg,1\n', "line 2 cannot be read as CSV"),
        ("photo,label\na.jpg,1,5\n", "line 2 has 3 values; expected 2"),
        ("photo,label,label\na.jpg,1,5\n", "has two columns 'label'"),
        (b"photo,label\na.jpg,K\xe4fer\n", "line 2 is not UTF-8"),
        ("photo,label\na.jpg,x\0\n", "line 2 has null bytes"),
    ],
)
def test_invalid_labels_are_one_line(tree: Tree, text: str | bytes, said: str) -> None:
    root = tree("a.jpg", "sub/a.jpg")
    file = write(root.parent / "labels.csv", text)
    assert refusal(root, labels=file).startswith(str(file))
    assert said in refusal(root, labels=file)


def test_labels_must_be_there_and_fit(tree: Tree) -> None:
    root = tree("x/b.jpg", "y/b.jpg")
    file = write(root.parent / "labels.csv", "photo,label\nb.jpg,1\n")
    assert "line 2: b.jpg could be x/b.jpg and y/b.jpg" in refusal(root, labels=file)
    assert refusal(root, labels=root / "no.csv") == f"cannot read {root / 'no.csv'}: no such file"
    assert refusal(root, labels=[1.5, 1]) == "x/b.jpg: label is 1.5; expected a class index, a label or None"
    with pytest.raises(OptionError, match="labels has 1 values; expected one for each of 2 photos"):
        open_dataset(root, labels=[1])
    with pytest.raises(OptionError, match="states the classes itself"):
        open_dataset(f"classes:{root}", labels=file)


# Folders of classes


def test_folders_are_classes(tree: Tree) -> None:
    root = tree("12/a.jpg", "9/b.jpg", "tabby cat/c.jpg", "loose.jpg")
    (root / "9a").mkdir()
    found = open_dataset(f"classes:{root}")
    assert {sample.name: sample.label for sample in found.samples} == {
        "12/a.jpg": 12,
        "9/b.jpg": 9,
        "tabby cat/c.jpg": "tabby cat",
    }
    assert found.notes == (
        "photos outside the folders of classes are left out: loose.jpg",
        "the folder 9a holds no photos",
    )
    # torchvision's ImageFolder numbers the sorted names; here 12, 9, 9a, tabby cat
    assert labels(f"classes-sorted:{root}") == {"12/a.jpg": 0, "9/b.jpg": 1, "tabby cat/c.jpg": 3}
    assert "holds no folders" in refusal(f"classes:{root / '9'}")


# CSV


def test_only_line_ends_end_a_line(tree: Tree) -> None:
    file = write(tree("a.jpg") / "list.csv", '\nlabel,photo\r\n"a\x85b\u2028c",a.jpg\r\n')
    assert labels(f"csv:{file}") == {"a.jpg": "a\x85b\u2028c"}


def test_csv_with_boxes_and_masks(tree: Tree) -> None:
    root = tree("p/a.jpg", "b.jpg", "c.jpg")
    cv2.imwrite(str(root / "m.png"), area(5, 6, 50, 60).astype(np.uint8))
    file = write(
        root / "list.csv",
        "sep=;\nlabel;photo;left;top;right;bottom;mask;by\n"
        "dog;p\\a.jpg;10;20,5;30;40;;me\n1;p/a.jpg;0;0;5;5\n"
        "dog;p/a.jpg;100;100;110;110\n\n2;b.jpg;;;;;m.png\n;c.jpg\n",
    )
    found = open_dataset(f"csv:{file}")
    dog, one, b, c = found.samples
    assert (dog.name, one.name, b.name, c.name) == ("p/a.jpg#dog", "p/a.jpg#1", "b.jpg", "c.jpg")
    assert dog.image is one.image and dog.boxes == (Box(10, 20.5, 30, 40), Box(100, 100, 110, 110))
    assert (dog.label, one.label, b.label, c.label) == ("dog", 1, 2, None)
    # the centre of row 20 is at 20.5, and inside
    assert (region(dog) == area(10, 20, 30, 40) | area(100, 100, 110, 110)).all()
    assert (region(b) == area(5, 6, 50, 60)).all()
    assert c.region(SIZE) is None
    assert found.notes == ("list.csv: columns are ignored: by",)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("none.jpg,1,,,,,", "names photos that are missing in {root}: none.jpg (line 3) and 1 more"),
        ("a.jpg,1,x,2,3,4,", "line 3: left is 'x'; expected a number of pixels"),
        ("a.jpg,1,1,2,3,,", "line 3: bottom is ''; expected a number of pixels"),
        ("a.jpg,1,nan,2,3,4,", "line 3: left is 'nan'"),
        ("a.jpg,0,,,,,m.png", "line 3 names a mask that is missing: m.png"),
        ("a.jpg,1,,,,,", "gives a.jpg two classes: 0 in line 2, 1 in line 3; remove one, or give each line a box"),
    ],
)
def test_invalid_lines_of_a_csv(tree: Tree, line: str, said: str) -> None:
    root = tree("a.jpg")
    more = "none2.jpg,1\n" if "none" in line else ""
    file = write(root / "list.csv", f"photo,label,left,top,right,bottom,mask\na.jpg,0\n{line}\n{more}")
    assert refusal(f"csv:{file}").startswith(str(file))
    assert said.format(root=root) in refusal(f"csv:{file}")


def test_messages_stay_one_line_whatever_the_file_says(tree: Tree) -> None:
    file = write(tree("a.jpg") / "list.csv", 'photo,label\n"a\n' + "b" * 500 + '.jpg",1\n')
    assert refusal(f"csv:{file}").endswith(f"are missing in {file.parent}: a {'b' * 395}...")


def test_a_csv_has_all_sides_of_a_box_or_none(tree: Tree) -> None:
    file = write(tree("a.jpg") / "list.csv", "photo,label,left,top,right\na.jpg,1,1,1,1\n")
    assert "has no column 'bottom'; expected all of left, top, right, bottom, or none" in refusal(f"csv:{file}")


# Regions


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ((10, 10, 10, 20), "box (10, 10, 10, 20) is empty; expected left < right and top < bottom"),
        ((10, 10, 514, 20), "box (10, 10, 514, 20) lies outside the photo, which is 512x512 pixels"),
        ((-2, 10, 20, 20), "lies outside the photo"),
        ((10, 10, float("nan"), 20), "is not four finite numbers"),
        ((10.6, 10, 11.4, 20), "the region of the object has no pixels"),
    ],
)
def test_an_invalid_box_names_sample_and_file(box: tuple[float, ...], said: str) -> None:
    with pytest.raises(DatasetError) as caught:
        Sample("a.jpg", "a.jpg", 0, (Box(*box),), source="boxes.txt").region(SIZE)
    assert str(caught.value).startswith("a.jpg (boxes.txt): ") and said in str(caught.value)


def test_a_box_may_end_a_rounded_pixel_outside() -> None:
    sample = Sample("a.jpg", "a.jpg", 0, (Box(-0.4, 0, 512.9, 512),))
    assert region(sample).all()


def test_masks_come_before_boxes() -> None:
    masks = (area(0, 0, 9, 9), MaskArray(area(5, 5, 20, 20) * 255))
    sample = Sample("a.jpg", "a.jpg", 0, (Box(0, 0, 100, 100),), masks)  # type: ignore[arg-type]
    assert (region(sample) == area(0, 0, 9, 9) | area(5, 5, 20, 20)).all()
    with pytest.raises(DatasetError, match=r"^a.jpg: mask has shape \[512, 512\], the photo is 20x10 pixels"):
        sample.region((10, 20))
    with pytest.raises(DatasetError, match="mask has the type int; expected a PNG's path"):
        Sample("a.jpg", "a.jpg", 0, (), (3,))  # type: ignore[arg-type]


def test_pngs_of_all_kinds_are_masks(tmp_path: Path) -> None:
    expected = area(3, 4, 50, 60)
    for kind, pixels in {
        "0 and 1": Pillow.fromarray(expected.astype(np.uint8)),
        "bits": Pillow.fromarray(expected),
        "colours": Pillow.fromarray(expected[..., None] * np.array([0, 7, 0], np.uint8)),
        "palette": Pillow.fromarray(expected.astype(np.uint8)).convert("P"),
    }.items():
        if kind == "palette":  # as Pascal VOC's: index 0 is black
            pixels.putpalette([0, 0, 0, 128, 0, 0] + [0] * 762)
        pixels.save(tmp_path / f"{kind}.png")
        assert (region(Sample("a", "a", 0, (), (tmp_path / f"{kind}.png",))) == expected).all(), kind  # type: ignore[arg-type]


def test_other_masks_are_refused(tmp_path: Path) -> None:
    grey = np.full((30, 40), 255, np.uint8)
    for name, pixels, said in (
        ("small.png", grey, "mask {path} is 40x30 pixels, the photo is 512x512 pixels; expected the same size"),
        ("alpha.png", np.full((*SIZE, 4), 255, np.uint8), "mask {path} has transparency"),
        ("deep.png", np.ones(SIZE, np.uint16), "mask {path} has 16 bits a pixel; save it with 8"),
        ("mask.jpg", grey, "mask {path} is not a PNG"),
        ("black.png", np.zeros(SIZE, np.uint8), "the region of the object has no pixels"),
        ("none.png", None, "mask: cannot read {path}: no such file"),
    ):
        path = tmp_path / name
        if pixels is not None:
            cv2.imwrite(str(path), pixels)
        with pytest.raises(DatasetError) as caught:
            Sample("a.jpg", "a.jpg", 0, (), (path,)).region(SIZE)  # type: ignore[arg-type]
        assert said.format(path=path) in str(caught.value) and str(caught.value).startswith("a.jpg: ")


# Masks beside photos


def test_masks_in_a_folder(tree: Tree) -> None:
    root = tree("images/x/a.jpg", "images/b.jpg")
    for name in ("x/a", "b", "lost"):
        (root / "masks/x").mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / f"masks/{name}.png"), area(1, 2, 30, 40).astype(np.uint8))
    write(root / "labels.csv", "photo,label\nb.jpg,1\nx/a.jpg,2\n")
    found = open_dataset(f"masks:{root}")
    assert [(sample.name, sample.label) for sample in found.samples] == [("b.jpg", 1), ("x/a.jpg", 2)]
    assert (region(found.samples[1]) == area(1, 2, 30, 40)).all()
    assert found.notes == ("masks without a photo are left out: lost.png",)
    (root / "masks/b.png").unlink()
    assert refusal(f"masks:{root}") == f"no mask for {root / 'images/b.jpg'} (expected {root / 'masks/b.png'})"
    shutil.copy(root / "images/b.jpg", root / "images/b.png")
    assert "have the same mask" in refusal(f"masks:{root}")
    shutil.rmtree(root / "masks")
    assert f"{root / 'masks'} is missing" in refusal(f"masks:{root}")


# CUB-200-2011

CUB = {
    "images.txt": "1 001.Gull/a.jpg\n2 001.Gull/b.jpg\n3 002.Wren/c.jpg\n",
    "image_class_labels.txt": "1 1\n2 1\n3 2\n",
    "train_test_split.txt": "1 0\n2 1\n3 0\n",
    "bounding_boxes.txt": "1 60.0 27.0 100.0 50.0\n2 0.0 0.0 5.0 5.0\n3 10.0 20.0 30.0 40.0\n",
    "classes.txt": "1 001.Gull\n2 002.Wren\n",
}


@pytest.fixture
def cub(tree: Tree) -> Path:
    root = tree(*(f"images/{line.split()[1]}" for line in CUB["images.txt"].splitlines()))
    for name, text in CUB.items():
        write(root / name, text)
    return root


def test_cub(cub: Path) -> None:
    first, last = open_dataset(f"cub:{cub}").samples
    assert (first.name, first.label, first.image) == ("001.Gull/a.jpg", 0, cub / "images/001.Gull/a.jpg")
    assert isinstance(first.image, Path) and read_photo(first.image).shape[:2] == SIZE
    assert (last.name, last.label, last.boxes) == ("002.Wren/c.jpg", 1, (Box(10, 20, 40, 60),))
    assert (region(first) == area(60, 27, 160, 77)).all()
    assert names(f"cub-train:{cub}") == ["001.Gull/b.jpg"]
    assert len(names(f"cub-all:{cub}")) == 3
    assert open_dataset(f"cub:{cub}").classes == 2


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("images.txt", None, "is missing; expected the files of CUB-200-2011"),
        ("images.txt", "1 001.Gull/a.jpg\n2 001.Gull/b.jpg\n3 x.jpg\n", "names photos that are missing: images/x.jpg"),
        ("images.txt", "1 001.Gull/a.jpg\n2 001.Gull/b.jpg\n2 x.jpg\n", "has the id 2 in the lines 2 and 3"),
        ("image_class_labels.txt", "1 1\n3 2\n", "lacks ids of images.txt: 2 (line 2)"),
        ("image_class_labels.txt", "1 1\n2 1\n3 7\n", "line 3: class 7 is not in classes.txt"),
        ("image_class_labels.txt", "1 1\n2 1\n3 x\n", "line 3 has 'x'; expected a whole number"),
        ("train_test_split.txt", "1 0\n2 1\n3 0\n4 0\n", "has ids that images.txt lacks: 4 (line 4)"),
        ("train_test_split.txt", "1 0\n2 1\n3 5\n", "line 3 has 5; expected 0 or 1"),
        ("train_test_split.txt", "1 1\n2 1\n3 1\n", "has no test photos"),
        ("bounding_boxes.txt", "1 1 1 5 5\n2 1 1 5\n3 1 1 5 5\n", "line 2 has '1 1 5'; expected four numbers"),
        ("classes.txt", "", "is empty"),
        ("classes.txt", "one Gull\n", "line 1 is 'one Gull'; expected a number, a space and a value"),
    ],
)
def test_contradictions_in_cub(cub: Path, file: str, text: str | None, said: str) -> None:
    if text is None:
        (cub / file).unlink()
    else:
        write(cub / file, text)
    assert refusal(f"cub:{cub}").startswith(str(cub / file))
    assert said in refusal(f"cub:{cub}")


# Pascal VOC


def voc_object(name: str, box: tuple[float, ...], difficult: int = 0) -> str:
    sides = "".join(f"<{s}>{v}</{s}>" for s, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{sides}</bndbox>{part}</object>"


def voc_file(photo: str, *objects: str, side: int = 512) -> str:
    size = f"<size><width>{side}</width><height>{side}</height><depth>3</depth></size>"
    return f"<annotation><filename>{photo}</filename>{size}{''.join(objects)}</annotation>"


@pytest.fixture
def voc(tree: Tree) -> Path:
    root = tree(*(f"JPEGImages/{name}.jpg" for name in "abcde"))
    files = {
        "a": voc_file("a.jpg", voc_object("dog", (11, 21, 30, 40)), voc_object("cat", (1, 1, 512, 512))),
        "b": voc_file("b.jpg", voc_object("dog", (1, 1, 9, 9), 1), voc_object("dog", (11, 11, 19, 19))),
        "c": voc_file("c.jpg", voc_object("dog", (1, 1, 9, 9), 1), voc_object("cat", (5, 5, 9, 9))),
        "d": voc_file("d.jpg"),
    }
    for name, text in files.items():
        write(root / f"Annotations/{name}.xml", text)
    write(root / "ImageSets/Main/val.txt", "c\na 1\n")
    return root


def test_voc(voc: Path) -> None:
    found = open_dataset(f"voc:{voc}")
    dog, cat, b, c = found.samples
    assert [s.name for s in found.samples] == ["a.jpg#dog", "a.jpg#cat", "b.jpg", "c.jpg"]
    assert [s.label for s in found.samples] == ["dog", "cat", "dog", "cat"]
    assert dog.image is cat.image
    assert dog.boxes == (Box(10, 20, 30, 40),) and region(cat).all()  # pixels count from 1, the last one included
    # TorchRay: a difficult object counts beside one that is not difficult; alone its class is left out
    assert (region(b) == area(0, 0, 9, 9) | area(10, 10, 19, 19)).all()
    assert found.notes == (
        "photos without annotations are left out: e.jpg",
        "photos without objects are left out: d.jpg",
        "classes with difficult objects only are left out: c.jpg#dog",
    )
    assert names(f"voc-val:{voc}") == ["c.jpg", "a.jpg#dog", "a.jpg#cat"]
    with pytest.raises(
        DatasetError, match=r"^c.jpg \(Annotations/c.xml\): the photo is 9x8 pixels, but its annotations"
    ):
        c.region((8, 9))


BOMB = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><annotation><filename>&b;</filename></annotation>'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<annotation><object>", "is not valid XML: no element found"),
        (b"\xff\x00nonsense", "is not valid XML"),
        ('<?xml version="1.0" encoding="x-unknown"?><annotation/>', "is not valid XML"),
        (BOMB, "has a DOCTYPE, which is not read"),
        (BOMB.encode("utf-16"), "has a DOCTYPE, which is not read"),
        ("<html/>", "begins with <html>; expected <annotation>"),
        (voc_file("x.jpg", voc_object("dog", (1, 2, 3, 4))), "is for the photo 'x.jpg', which is missing"),
        ("<annotation><filename>a.jpg</filename><object/></annotation>", "has an object without a <name>"),
        (voc_file("a.jpg", "<object><name>dog</name></object>"), "has an object 'dog' without a <bndbox>"),
        (voc_file("a.jpg", voc_object("dog", (1, 2, float("inf"), 4))), "xmax in <bndbox> of 'dog' is 'inf'"),
    ],
)
def test_invalid_annotations_of_voc(voc: Path, text: str | bytes, said: str) -> None:
    file = write(voc / "Annotations/x.xml", text)
    assert refusal(f"voc:{voc}").startswith(str(file))
    assert said in refusal(f"voc:{voc}")


def test_missing_files_of_voc(voc: Path) -> None:
    write(voc / "ImageSets/Main/bad.txt", "a\nzz\n")
    assert "bad.txt line 2 names zz, which has no file in Annotations" in refusal(f"voc-bad:{voc}")
    assert "none.txt: no such file" in refusal(f"voc-none:{voc}")
    shutil.rmtree(voc / "JPEGImages")
    assert "JPEGImages is missing; expected the photos of Pascal VOC" in refusal(f"voc:{voc}")


# COCO

STAR = [10.2, 5.1, 50.7, 12.4, 30.3, 20.5, 55.9, 38.8, 8.6, 33.3]  # concave
CORNER = [0, 0, 9.5, 0, 0, 9.5]
# pycocotools 2.0.11: mask.merge(mask.frPyObjects(polygons, 40, 60))["counts"]
STAR_RUNS = (
    "i;`0<=O01O000000000010O00000001O00000001O01O000@D4<LE3;LG39MG3:LG39LI46LK35LL44LM34LM33LN42LO31L13OM22NM34MK44LL53"
    "KL64JL73`0O1O00100O00j3"
)
BOTH_RUNS = "09o0O1O1O1O1O1O1O1Ob0?dN=" + STAR_RUNS[6:]


def coco_file(**changes: Any) -> str:
    data: dict[str, Any] = {
        "images": [
            {"id": 7, "file_name": "a.jpg", "height": 512, "width": 512},
            {"id": 9, "file_name": "s\\b.jpg"},
            {"id": 10, "file_name": "empty.jpg"},
            {"id": 11, "file_name": "gone.jpg"},
        ],
        "categories": [{"id": 1, "name": "dog"}, {"id": 90, "name": "cat"}],
        "annotations": [
            {"image_id": 7, "category_id": 90, "bbox": [10, 20.0, 30, 40], "iscrowd": 0},
            {"image_id": 9, "category_id": 1, "bbox": [0, 0, 9, 9], "segmentation": [[10, 10, 30, 10, 30, 30, 10, 30]]},
            {"image_id": 7, "category_id": 1, "segmentation": {"size": [512, 512], "counts": [0, 1024, 261120]}},
            {"image_id": 7, "category_id": 1, "bbox": [100, 100, 10, 10]},
            {"image_id": 7, "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 1},
            {"image_id": 11, "category_id": 1, "bbox": [0, 0, 9, 9]},
        ],
    }
    return json.dumps({**data, **changes})


def test_coco(tree: Tree) -> None:
    root = tree("photos/a.jpg", "photos/s/b.jpg")
    file = write(root / "ann.json", coco_file())
    found = open_dataset(f"coco:{file},photos")
    cat, dog, b = found.samples
    assert [(s.name, s.label) for s in found.samples] == [
        ("a.jpg#cat", "cat"),
        ("a.jpg#dog", "dog"),
        ("s/b.jpg", "dog"),
    ]
    assert cat.image is dog.image
    assert cat.boxes == (Box(10, 20, 40, 60),)
    assert (region(b) == area(10, 10, 30, 30)).all()
    # the first two columns as run lengths, and the box of an object without a mask
    assert (region(dog) == area(0, 0, 2, 512) | area(100, 100, 110, 110)).all()
    assert found.notes == (
        "1 annotations of crowds are left out",
        "photos without objects are left out: empty.jpg",
        "photos that are missing in photos are left out: gone.jpg",
    )
    assert names(f"coco:{file},{root / 'photos'}") == [s.name for s in found.samples]
    assert f"{root} has none of the photos of {file}: a.jpg and 2 more; give their folder" in refusal(f"coco:{file}")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"categories": None}, "has no list 'categories'"),
        ({"images": [{"id": 7}]}, "'file_name' of images[0] is missing; expected a text"),
        ({"images": [{"id": 7, "file_name": "a"}] * 2}, "has 2 images, but 1 different ids"),
        ({"images": ["a.jpg"]}, "'id' of images[0] is missing; expected a whole number"),
        ({"annotations": [{"image_id": 8, "category_id": 1}]}, "annotations[0] is for the image 8, which images lacks"),
        (
            {"annotations": [{"image_id": 7, "category_id": 5}]},
            "annotations[0] has the category 5, which categories lacks",
        ),
        ({"annotations": [{"image_id": 7, "category_id": 1}]}, "'bbox' of annotations[0] is missing; expected a list"),
        ({"bbox": [1, 2, 3]}, "'bbox' of annotations[0] is [1, 2, 3]; expected [x, y, width, height]"),
        ({"bbox": [1, 2, 3, float("nan")]}, "expected [x, y, width, height]"),
        ({"segmentation": [[1, 2, 3, 4]]}, "annotations[0]: segmentation has a polygon of 4 numbers"),
        ({"segmentation": [["a"] * 6]}, "segmentation has a polygon with something other than numbers"),
        ({"segmentation": {"size": [2], "counts": []}}, "segmentation has size [2]; expected [height, width]"),
        ({"segmentation": {"size": [2, 2], "counts": [1, 2]}}, "runs of 3 pixels; expected 2 x 2 = 4"),
        ({"segmentation": {"size": [2, 2], "counts": [5, -1]}}, "runs of 4 pixels"),
        ({"segmentation": {"size": [2, 2], "counts": [None]}}, "has counts other than a list of whole numbers"),
        ({"segmentation": {"size": [2, 2], "counts": "Ü"}}, "invalid characters"),
        ({"segmentation": {"size": [2, 2], "counts": "T"}}, "is cut short"),
    ],
)
def test_invalid_fields_of_coco(tree: Tree, changes: dict[str, Any], said: str) -> None:
    if changes.keys() & {"bbox", "segmentation"}:
        changes = {"annotations": [{"image_id": 7, "category_id": 1, **changes}]}
    file = write(tree("a.jpg") / "ann.json", coco_file(**changes))
    assert refusal(f"coco:{file}").startswith(str(file))
    assert said in refusal(f"coco:{file}")


def test_a_file_that_is_not_json(tree: Tree) -> None:
    file = write(tree("a.jpg") / "ann.json", '{"images": [')
    assert f"{file} is not valid JSON" in refusal(f"coco:{file}")
    assert "is not valid JSON" in refusal(f"coco:{write(file, '[' * 100_000)}")
    assert "has no list 'images'" in refusal(f"coco:{write(file, '[]')}")


@pytest.mark.parametrize(
    ("counts", "size", "expected"),
    [  # pycocotools 2.0.11: mask.encode of masks with these pixels
        ("0181J0003", (4, 6), [(0, 0), (1, 2), (2, 2), (1, 3), (2, 3), (1, 4), (2, 4)]),
        ("0P[2", (40, 60), [(row, column) for row in range(40) for column in range(60)]),
    ],
)
def test_compressed_runs(counts: str, size: tuple[int, int], expected: list[tuple[int, int]]) -> None:
    mask = np.zeros(size, bool)
    mask[tuple(np.transpose(expected))] = True
    for form in (counts, counts.encode(), decompress(counts)):
        assert (run_lengths(list(size), form).read(size) == mask).all()
    with pytest.raises(DatasetError, match=f"mask is {size[1]}x{size[0]} pixels, the photo is 7x5 pixels"):
        run_lengths(list(size), counts).read((5, 7))


@given(st.lists(st.integers(0, 1 << 40), min_size=1, max_size=20))
def test_runs_survive_compression(runs: list[int]) -> None:
    text = ""
    for index, run in enumerate(runs):  # the inverse, by the description of the format
        number = run - runs[index - 2] if index > 2 else run
        more = True
        while more:
            bits, number = number & 31, number >> 5
            more = number != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
    assert decompress(text) == runs


@pytest.mark.parametrize(("outlines", "runs"), [([STAR], STAR_RUNS), ([STAR, CORNER], BOTH_RUNS)])
def test_polygons_are_those_of_pycocotools(outlines: list[list[float]], runs: str) -> None:
    ours = polygons(outlines).read((40, 60))
    theirs = run_lengths([40, 60], runs).read((40, 60))
    assert theirs.sum() > 800
    # pycocotools draws on a grid of a fifth of a pixel: only centres within that distance of an outline may differ
    for row, column in np.argwhere(ours != theirs):
        assert min(distance(np.array([column + 0.5, row + 0.5]), outline) for outline in outlines) < 0.2


def distance(point: np.ndarray, outline: list[float]) -> float:
    """Return the distance of a point from the edges of a polygon."""
    begin = np.reshape(outline, (-1, 2))
    edge = np.roll(begin, -1, axis=0) - begin
    along = np.clip(((point - begin) * edge).sum(1) / (edge**2).sum(1), 0, 1)
    return float(np.linalg.norm(begin + along[:, None] * edge - point, axis=1).min())


def test_a_polygon_of_whole_pixels_is_exact() -> None:
    outline = np.array([[2, 1], [7, 1], [7, 4], [2, 4]], float)
    for corners in (outline, outline[::-1], np.roll(outline, 1, axis=0)):
        found = fill(corners, (6, 9))
        assert found[1:4, 2:7].all() and found.sum() == 15
    bow = fill(np.array([[0, 0], [8, 8], [8, 0], [0, 8]], float), (8, 8))  # crosses itself: two triangles
    assert bow[4, 0] and bow[4, 7] and not bow[0, 4] and not bow[7, 4]


def test_a_polygon_outside_the_photo_names_the_corner() -> None:
    with pytest.raises(DatasetError, match=r"corner \(600, 5\) outside the photo, which is 512x512 pixels"):
        polygons([[0, 0, 600, 5, 10, 10]]).read(SIZE)


# The record


def test_the_record_of_a_data_set(cub: Path) -> None:
    record = open_dataset(f"cub:{cub}").describe()
    assert json.loads(json.dumps(record)) == record
    assert (record["layout"], record["folder"]) == ("cub", str(cub))
    assert (record["samples"], record["photos"], record["labelled"]) == (2, 2, 2)
    moved = cub.rename(cub.with_name("elsewhere"))
    assert open_dataset(f"cub:{moved}").describe()["sha256"] == record["sha256"]
    for file, text in (("bounding_boxes.txt", CUB["bounding_boxes.txt"].replace("60.0", "61.0")), ("classes.txt", "")):
        if text:
            write(moved / file, text)
            assert open_dataset(f"cub:{moved}").describe()["sha256"] != record["sha256"]


def test_the_hash_sees_labels_masks_and_pixels() -> None:
    array = np.zeros((4, 4, 3), np.uint8)
    variants = [
        [Sample(array, "a", 1)],
        [Sample(array, "a", "1")],
        [Sample(array, "b", 1)],
        [Sample(array, "a", 1, (), (np.eye(4),))],  # type: ignore[arg-type]
        [Sample(array, "a", 1, (), (np.ones((4, 4)),))],  # type: ignore[arg-type]
        [Sample(array + 1, "a", 1)],
        [Sample(array, "a", 1), Sample(array, "b", 1)],
    ]
    assert len({open_dataset(samples).describe()["sha256"] for samples in variants}) == len(variants)
    assert open_dataset(variants[0]).describe() == open_dataset(open_dataset(variants[0])).describe()
