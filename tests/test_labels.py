"""Labels: the forms in which people keep class names, each read right or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch import nn

from ortcam.errors import ExportError, OptionError
from ortcam.exporters import export
from ortcam.exporters.labels import fit_labels, read_labels

NAMES = ("tench", "cat fish", "dog")


@pytest.mark.parametrize(
    "text",
    [
        "0 tench\n1 cat fish\n2 dog",  # Teachable Machine
        "0: tench\n1: cat fish\n2: dog",
        "0,tench\n1,cat fish\n2,dog",
        "0\ttench\n1\tcat fish\n2\tdog\n",
        "000 tench\r\n001 cat fish\r\n002 dog\r\n",
        "1. tench\n2. cat fish\n3. dog",
        "3 dog\n1 tench\n2 cat fish",
        "2: dog\n0: tench\n1: cat fish",
        "tench,0\ndog,2\ncat fish,1",
        "n01440764 tench\nn02121808 cat fish\nn02084071 dog",
        "n01440764 1 tench\nn02084071 3 dog\nn02121808 2 cat fish",
        "0 n01440764 tench\n1 n02121808 cat fish\n2 n02084071 dog",
        'index,name\n0,tench\n1,"cat fish"\n2,dog',
        "class_id;mid;display_name\n2;/m/0bt9lr;dog\n0;/m/x;tench\n1;/m/y;cat fish",
        "names:\n  0: tench\n  1: cat fish\n  2: dog",
        "0,'tench'\n1,'cat fish'\n2,'dog'",
        "{0: 'tench',\n 1: 'cat fish',\n 2: 'dog',}",
        "item {\n id: 1\n name: 'tench'\n}\nitem {\n id: 3\n name: 'dog'\n}\nitem {\n id: 2\n name: 'cat fish'\n}\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_numbers_before_the_names_are_indices(tmp_path: Path, text: str, encoding: str) -> None:
    (tmp_path / "labels.txt").write_bytes(text.encode(encoding))
    assert read_labels(tmp_path / "labels.txt") == NAMES


@pytest.mark.parametrize(
    "names",
    [
        ["3D printer", "7up", "dog"],
        ["7 up", "3 musketeers", "dog"],
        ["1 euro", "2 euro", "5 euro"],
        ["1 euro", "2 euro"],
        ["0", "1", "2"],  # digits, as MNIST's
        ["1.5 litres", "2.5 litres"],
        ["2019 model", "2020 model"],
        ["0 people", "1 person", "many"],
        ["Boeing 737", "Airbus A320"],
        ["n01440764", "n02121808"],
    ],
)
def test_names_that_begin_with_digits_stay_whole(tmp_path: Path, names: list[str]) -> None:
    (tmp_path / "labels.txt").write_text("\n".join(names))
    assert read_labels(tmp_path / "labels.txt") == tuple(names)


@pytest.mark.parametrize(
    "labels",
    [
        {"dog": 2, "tench": 0, "cat fish": 1},
        {"tench": "0", "dog": "2", "cat fish": "1"},
        {"0": ["n01440764", "tench"], "1": ["n02121808", "cat fish"], "2": ["n02084071", "dog"]},
        {"model_type": "vit", "id2label": {"2": "dog", "0": "tench", "1": "cat fish"}, "label2id": {"tench": 0}},
        {"model_type": "vit", "label2id": {"dog": 2, "tench": 0, "cat fish": 1}},
        {"num_classes": 2, "label_names": list(NAMES)},
        {"label_names": ["n1", "n2", "dog"], "label_descriptions": {"n1": "tench", "n2": "cat fish"}},
        {"categories": [{"id": 3, "name": "dog"}, {"id": 1, "name": "tench"}, {"id": 2, "name": "cat fish"}]},
        [{"label": "tench"}, {"label": "cat fish"}, {"label": "dog"}],
        [["n01440764", "tench"], ["n02121808", "cat fish"], ["n02084071", "dog"]],
    ],
)
def test_json_forms(tmp_path: Path, labels: object) -> None:
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    assert read_labels(tmp_path / "labels.json") == NAMES
    assert read_labels(labels) == NAMES


def test_classes_that_are_called_like_a_section() -> None:
    assert read_labels({"names": 1, "labels": 0}) == ("labels", "names")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"cat": 1, "dog": 2}, "no index 0"),
        ({"cat": 0, "dog": 0}, "have index 0 for cat and dog"),
        ({"0": "cat", "dog": "x"}, "the key 'dog'"),
        ({"architectures": ["ViT"], "hidden_size": 3}, "the key 'architectures'"),
        ([{"colour": "red"}], "without a name"),
        ({"id2label": {"0": 5}}, "not a list of names"),
    ],
)
def test_objects_that_hold_no_labels(labels: object, message: str) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        read_labels(labels)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("extra", ["background", "__background__", "Dummy", "???", "label"])
def test_one_label_too_many_at_the_top_is_left_out(extra: str) -> None:
    labels, notice = fit_labels((extra, *NAMES), 3, given=True)
    assert labels == NAMES
    assert notice is not None
    assert repr(extra) in notice


def test_a_background_above_numbered_lines_is_class_0(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("background\n1 tench\n2 cat fish\n3 dog")
    assert read_labels(tmp_path / "labels.txt") == ("background", *NAMES)
    (tmp_path / "labels.txt").write_text("background\n0 tench\n1 cat fish\n2 dog")
    assert fit_labels(read_labels(tmp_path / "labels.txt"), 3, given=True)[0] == NAMES


def test_imagenet_labels_for_1001_classes() -> None:
    """TensorFlow's networks have a class `background` before ImageNet's 1000."""
    labels, notice = fit_labels(read_labels("imagenet"), 1001, given=True)
    assert labels is not None
    assert (len(labels), labels[0], labels[244]) == (1001, "background", "bull mastiff")
    assert notice is not None


@pytest.mark.parametrize(
    ("count", "advice"), [(9, "is 'background', put it before"), (11, "that the model lacks, remove it")]
)
def test_one_label_too_few_or_too_many_says_what_to_do(count: int, advice: str) -> None:
    with pytest.raises(ExportError, match=advice) as caught:
        fit_labels(tuple(f"name {index}" for index in range(count)), 10, given=True)
    assert f"{count} labels were given, but the model has 10 classes" in str(caught.value)


def test_export_says_that_a_label_was_left_out(tiny: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("background\n" + "\n".join(f"name {index}" for index in range(10)))
    report = export(tiny, tmp_path / "net.onnx", labels=tmp_path / "labels.txt", input_size=32)
    assert report.contract.labels == tuple(f"name {index}" for index in range(10))
    assert any("'background', was left out" in notice for notice in report.notices)


@pytest.mark.parametrize(
    "text",
    ["- ant\n- bee\n- cat\n", "(0) ant\n(1) bee\n(2) cat\n", "[2] cat\n[0] ant\n[1] bee\n", "bee 1\nant 0\ncat 2\n"],
)
def test_lists_and_numbers_in_brackets_or_behind(text: str, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text(text)
    assert read_labels(tmp_path / "names.txt") == ("ant", "bee", "cat")


def test_an_index_given_twice_is_named() -> None:
    with pytest.raises(OptionError, match="have index 1 for b and c"):
        read_labels({"a": 0, "b": 1, "c": 1})
