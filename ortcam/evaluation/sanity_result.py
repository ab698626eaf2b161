"""SanityResult: how much maps change when the weights of the model are randomised, as data."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ortcam.core.files import only, replace_directory, replace_files
from ortcam.core.pictures import Photo
from ortcam.errors import OccupiedError, OutputError
from ortcam.evaluation.earlier import Question, why_other
from ortcam.evaluation.rows import Failure
from ortcam.evaluation.similarity import Similarity

MEASURES = tuple(one.name for one in fields(Similarity))
FILES = ("sanity.json", "per-photo.csv", "curve.png", "strip.png")
FLAT, FLAT_ORIGINAL = "flat map", "flat map of the original model"
Mode = Literal["cascading", "independent"]
MODES: tuple[Mode, ...] = ("cascading", "independent")


@dataclass(frozen=True)
class Summary:
    """Values of several photos.

    Attributes:
        mean, low, high: the mean, the smallest and the largest value.
        count: the number of photos.
    """

    mean: float
    low: float
    high: float
    count: int


def summarise(values: Iterable[float | None]) -> Summary | None:
    """Return the summary of the values that are numbers; None if there is none."""
    known = [value for value in values if value is not None]
    return Summary(float(np.mean(known)), min(known), max(known), len(known)) if known else None


@dataclass(frozen=True)
class PhotoStage:
    """A photo explained by the model of one stage.

    Attributes:
        photo: the name of the photo.
        stage: the number of the stage, from 1.
        explained: the index of the explained class.
        probability: the probability of that class in the randomised model; None if the model gave no finite scores.
        top: the index of the most probable class of the randomised model; None as above, and for a model that is no
            classifier.
        similarity: of the map to the map of the original model; None if one of them is flat or missing.
        control: the similarity of the plain sum of the activations to that of the original model; None as above.
        problem: the reason why there is no similarity, such as ``flat map``; empty if there is one.
    """

    photo: str
    stage: int
    explained: int
    probability: float | None
    top: int | None
    similarity: Similarity | None
    control: Similarity | None
    problem: str = ""


@dataclass(frozen=True)
class Stage:
    """A randomised model, and how similar its maps are to those of the original model.

    Attributes:
        number: from 1.
        layers: the names of the layers that this stage randomises; in cascading mode, beside those of earlier stages.
        count: the number of layers that are randomised in total.
        parameters: the number of values that are randomised in total.
        changes_activations: whether a randomised layer lies below the target layer. Else only the scores change.
        measures: the similarities of the maps over all photos, by the names in `MEASURES`; None without any value.
        control: the same of the plain sum of the activations, which depends on no class and on no layer above.
        probability: the mean probability of the explained class.
        same_class: the number of photos whose most probable class is still the explained one; None for
            a model of another task.
        flat: the number of photos without similarity because the stage's map is flat.
        flat_original: the number of photos without similarity because the original model's map is flat.
        failed: the number of photos without similarity because of an error, such as scores that are not finite.
    """

    number: int
    layers: tuple[str, ...]
    count: int
    parameters: int
    changes_activations: bool
    measures: Mapping[str, Summary | None]
    control: Mapping[str, Summary | None]
    probability: float | None
    same_class: int | None
    flat: int
    flat_original: int
    failed: int

    @property
    def label(self) -> str:
        """A short name: the last of its layers."""
        return self.layers[-1]


@dataclass(frozen=True)
class Verdict:
    """What the similarities say about a method, in one line.

    Attributes:
        kind: ``changes``, ``partly`` or ``unchanged``; ``unknown`` without any similarity.
        text: the line.
        above: a line on the layers above the target layer; empty if no stage randomises only such layers.
    """

    kind: Literal["changes", "partly", "unchanged", "unknown"]
    text: str
    above: str = ""


@dataclass(frozen=True)
class Strip:
    """The pictures of one photo.

    Attributes:
        name: the photo's name.
        explained: the name of the explained class.
        photo: uint8 [H,W,3] RGB, at most 320 pixels long.
        overlays: the map over the photo, uint8 [H,W,3] RGB: of the original model, then of each stage. A stage without
            a map has the reason instead.
    """

    name: str
    explained: str
    photo: Photo
    overlays: tuple[Photo | str, ...]


@dataclass(frozen=True)
class SanityResult:
    """The result of `ortcam.evaluation.sanity`.

    Attributes:
        settings: everything that is needed to repeat it: model and its hash, method, mode, draw, seed, layers, ....
        stages: the randomised models, in order.
        rows: every photo of every stage.
        unrelated: the similarity of the original maps of different photos, by the names in `MEASURES`; None with fewer
            than two photos. Maps that depend on nothing but the weights reach it when all weights are random.
        verdict: what the similarities say.
        failures: the photos that could not be explained.
        strips: the maps of the first photos.
    """

    settings: Mapping[str, Any]
    stages: tuple[Stage, ...]
    rows: tuple[PhotoStage, ...] = field(repr=False)
    unrelated: Mapping[str, Summary | None]
    verdict: Verdict
    failures: tuple[Failure, ...]
    strips: tuple[Strip, ...] = field(repr=False)

    def __str__(self) -> str:
        return self.table()

    def table(self) -> str:
        """Return a table of the stages as text, with the verdict below it."""
        heads, rows = self.cells()
        widths = [max(len(row[at]) for row in (heads, *rows)) for at in range(len(heads))]
        lines = [
            "  ".join(cell.ljust(width) if at == 1 else cell.rjust(width) for at, (cell, width) in enumerate(pairs))
            for pairs in (list(zip(row, widths, strict=True)) for row in (heads, *rows))
        ]
        return "\n".join([*(line.rstrip() for line in lines), "", *self.lines()])

    def cells(self, wide: bool = True) -> tuple[list[str], list[list[str]]]:
        """Return the heads and the rows of the table, as text.

        Args:
            wide: whether the table has the range of Spearman's correlation, and HOG.
        """
        share = self.settings["model"].get("task", "classify") not in ("embed", "value")
        columns: dict[str, Callable[[Stage], str]] = {
            "stage": lambda stage: str(stage.number),
            "randomised": lambda stage: stage.layers[-1] + _more(len(stage.layers) - 1),
            "changes": lambda stage: "map" if stage.changes_activations else "scores",
            "Spearman": lambda stage: _mean(stage.measures["spearman"]),
            "range": lambda stage: _range(stage.measures["spearman"]),
            "SSIM": lambda stage: _mean(stage.measures["ssim"]),
            "HOG": lambda stage: _mean(stage.measures["hog"]),
            "control": lambda stage: _mean(stage.control["spearman"]),
            "P" if share else "score": lambda stage: (
                "-" if stage.probability is None else format(stage.probability, ".1%" if share else ".3g")
            ),
            "flat": lambda stage: str(stage.flat + stage.flat_original),
            "failed": lambda stage: str(stage.failed),
        }
        unneeded = set() if wide else {"range", "HOG"}
        unneeded |= set() if any(stage.flat or stage.flat_original for stage in self.stages) else {"flat"}
        unneeded |= set() if any(stage.failed for stage in self.stages) else {"failed"}
        chosen = {head: cell for head, cell in columns.items() if head not in unneeded}
        return list(chosen), [[cell(stage) for cell in chosen.values()] for stage in self.stages]

    def lines(self) -> list[str]:
        """Return the lines below the table: the verdict, and the similarity of unrelated maps."""
        apart, more = self.unrelated["spearman"], []
        if apart is not None:
            more = [f"maps of different photos: Spearman {apart.mean:.2f}, SSIM {_mean(self.unrelated['ssim'])}"]
        control = "control: Spearman of the plain sum of the layer's channels, which depends on no class"
        return [line for line in (self.verdict.text, self.verdict.above, *more, control) if line]

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the pictures as plain JSON."""
        return {
            **self.settings,
            "verdict": asdict(self.verdict),
            "unrelated": _plain(self.unrelated),
            "stages": [
                {**asdict(stage), "measures": _plain(stage.measures), "control": _plain(stage.control)}
                for stage in self.stages
            ],
            "per_photo": [asdict(row) for row in self.rows],
            "failures": [asdict(failure) for failure in self.failures],
        }

    def to_json(self, path: str | PathLike[str]) -> Path:
        """Write `to_dict` to a file, whole or not at all.

        Raises:
            OutputError: it cannot be written.
        """
        path = Path(path)
        with replace_files(path) as folder:
            _write_json(self.to_dict(), folder / path.name)
        return path

    def save(self, directory: str | PathLike[str], overwrite: bool = False) -> Path:
        """Write sanity.json, per-photo.csv, curve.png and strip.png to a directory, whole or not at all.

        An earlier result of the same model, photos and options is replaced.

        Args:
            directory: the directory to write.
            overwrite: replace any earlier result. Other files are never deleted.

        Raises:
            OccupiedError: the directory holds another result, or other files.
            OutputError: it cannot be written.
            OptionError: matplotlib is missing.
        """
        from ortcam.evaluation import sanity_pictures

        question = None if overwrite else question_of(self.to_dict())
        with replace_directory(Path(directory), lambda folder: _why_occupied(folder, question)) as folder:
            _write_json(self.to_dict(), folder / "sanity.json")
            _write_rows(self.rows, folder / "per-photo.csv")
            sanity_pictures.draw_curve(self, folder / "curve.png")
            sanity_pictures.draw_strip(self, folder / "strip.png")
        return Path(directory)

    def plot(self, path: str | PathLike[str]) -> Path:
        """Draw the similarities of all stages as curves, to a picture.

        Raises:
            OutputError: it cannot be written.
            OptionError: matplotlib is missing.
        """
        from ortcam.evaluation import sanity_pictures

        path = Path(path)
        with replace_files(path) as folder:
            sanity_pictures.draw_curve(self, folder / path.name)
        return path


def _more(count: int) -> str:
    return f" and {count} more" if count else ""


def _range(summary: Summary | None) -> str:
    return "-" if summary is None or summary.count < 2 else f"{summary.low:.2f} to {summary.high:.2f}"


def _mean(summary: Summary | None) -> str:
    return "-" if summary is None else f"{summary.mean:.2f}"


def check_directory(directory: str | PathLike[str], question: Question | None = None) -> None:
    """Raise the error that `SanityResult.save` would raise after the run.

    Args:
        directory: the directory to write.
        question: that of the run; None if any earlier result may be replaced.

    Raises:
        OccupiedError: the directory holds the result of another question, or other files.
        OutputError: the name is a file.
        OptionError: matplotlib is missing.
    """
    from ortcam.evaluation import sanity_pictures

    sanity_pictures.require_matplotlib()
    path = Path(directory)
    if path.is_dir():
        reason = _why_occupied(path, question) if any(path.iterdir()) else None
        if reason is not None:
            raise OccupiedError(f"cannot write {directory}: {reason}")
    elif path.exists():
        raise OutputError(f"cannot write {directory}: it is a file; give the name of a directory")


def options_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides the values of a result, from its settings."""
    keys = ("method", "budget", "detecting", "mode", "draw", "seed", "steps", "target", "provider")
    return {"model": record["model"]["sha256"], "layer": record["model"]["layer"], **{key: record[key] for key in keys}}


def question_of(record: Mapping[str, Any]) -> Question:
    """Return the question of a record."""
    photos = {one["name"]: one["sha256"] for one in record["photos"]}
    return Question(options_of(record), {**photos, **{one["photo"]: None for one in record["failures"]}})


def _why_occupied(folder: Path, question: Question | None) -> str | None:
    refused = only(lambda path: path.name in FILES)(folder)
    if refused is not None or question is None:
        return refused
    return why_other(folder / FILES[0], question, question_of)


def _plain(measures: Mapping[str, Summary | None]) -> dict[str, Any]:
    return {name: None if summary is None else asdict(summary) for name, summary in measures.items()}


def _write_json(value: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _write_rows(rows: Sequence[PhotoStage], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        heads = [*MEASURES, *(f"activations_{name}" for name in MEASURES)]
        writer.writerow(["photo", "stage", "explained", "probability", "top", *heads, "problem"])
        for row in rows:
            values = [
                None if found is None else getattr(found, name)
                for found in (row.similarity, row.control)
                for name in MEASURES
            ]
            writer.writerow([row.photo, row.stage, row.explained, row.probability, row.top, *values, row.problem])
