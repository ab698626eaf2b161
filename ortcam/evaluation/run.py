"""Evaluate maps on photos: which photos, which classes, which maps, and the run of them all."""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import ortcam
from ortcam.core.convention import default_preset
from ortcam.core.provenance import now
from ortcam.core.references import Detecting
from ortcam.errors import DatasetError, ModelError, OptionError, OrtcamError, OrtcamWarning, TargetError, whole
from ortcam.evaluation.cases import Cases, Choice, Only, WhichTarget, describe_end
from ortcam.evaluation.datasets import Dataset, open_dataset
from ortcam.evaluation.fingerprints import hash_files_of
from ortcam.evaluation.journal import Journal
from ortcam.evaluation.maps import AT_THE_DOOR, CONTROLS, Contestant, Given, GivenMaps, parse_method
from ortcam.evaluation.metrics import Chosen, choose_metrics
from ortcam.evaluation.photo import Case, PhotoRun
from ortcam.evaluation.result import Result
from ortcam.evaluation.rows import Column, Failure, Row
from ortcam.evaluation.statistics import RESAMPLES
from ortcam.explain.ahead import prepared_ahead
from ortcam.explain.jobs import Job, prepare
from ortcam.model.cam_model import CamModel, ModelLike
from ortcam.runtime.providers import ProviderLike, resolve_provider
from ortcam.runtime.session import RUNTIME_VERSION
from ortcam.runtime.threads import thread_count

if TYPE_CHECKING:
    from ortcam.evaluation.samples import Sample


def evaluate(
    model: ModelLike,
    photos: Any,
    methods: Sequence[str | Contestant] | str | Contestant = ("score-cam",),
    metrics: Sequence[Any] | str = ("insertion", "deletion"),
    *,
    labels: str | PathLike[str] | None = None,
    maps: Mapping[str, Given] | None = None,
    explain: WhichTarget | None = None,
    score: WhichTarget = "explained",
    only: Only = "all",
    most_per_class: int | None = None,
    budget: int | None = None,
    layer: str | None = None,
    controls: Sequence[str] = tuple(CONTROLS),
    seed: int = 0,
    folder: str | PathLike[str] | None = None,
    overwrite: bool = False,
    provider: ProviderLike = "auto",
    batch_size: int | Literal["auto"] | None = None,
    threads: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    on_error: Callable[[str, OrtcamError], None] | None = None,
    detecting: Detecting | None = None,
) -> Result:
    """Evaluate maps on photos.

    For a model of another task, the score that is measured is that of its target (docs/tasks.md). The place of a
    box or of a region is the target itself; that of another target is what the data set states.

    Args:
        model: a file that ortcam exported: its path, its bytes, an onnx.ModelProto, or its CamModel.
        photos: a folder, a LAYOUT:PATH such as ``cub:CUB_200_2011``, or photos: see `open_dataset`.
        methods: texts such as ``score-cam:budget=32`` (`parse_method`), or Contestants.
        metrics: texts such as ``insertion:rise`` (`choose_metrics`), or conventions.
        labels: a CSV file with the columns photo and label.
        maps: maps that were made elsewhere, by a name for each set: a folder of .npy files, a mapping from the names of
            the photos, or a function of name and class.
        explain: the class that maps explain: ``predicted``, ``true``, an index or a label. None for the true class if
            a metric compares the map with a box or a mask, else the predicted class. For a model of another task:
            ``predicted`` for its surest box or largest region, ``true`` for the object that the data set states (of
            several boxes of a class, the one that scores highest), a label, or a target of `ModelExplainer.explain`;
            None for ``predicted``.
        score: the class or target whose score is measured: ``explained``, or as `explain`.
        only: all photos, or the ``correct`` or ``misclassified`` ones alone.
        most_per_class: at most this many photos of each true class, in order.
        budget: the budget of methods whose text states none.
        layer: the target layer; None for the first that the file exposes.
        controls: some of ``random``, ``centre``, ``activations``.
        seed: of the random control.
        folder: keeps finished photos, and goes on where an interrupted run with the same options ended; receives
            results.json, per-photo.csv and curves.png. A photo is evaluated again if its file, its masks or its given
            maps have changed since; maps that a function makes count as unchanged. None keeps nothing.
        overwrite: replace the results of a run with other options.
        provider, batch_size, threads: as for `ModelExplainer`.
        on_progress: called with (done, total) after every photo.
        on_error: called with the name of each photo that fails, and its error; the others go on.
        detecting: which boxes of a detector count, as for `ModelExplainer`.

    Raises:
        DatasetError: photos, labels, boxes, masks or maps are missing, or contradict each other.
        OptionError: an option is invalid.
        TargetError: a label is unknown to the model.
        ModelError, LayerError, ProviderError: as for `ModelExplainer`.
        OccupiedError: the folder holds other results.
    """
    if batch_size is not None and batch_size != "auto":
        batch_size = whole("batch_size", batch_size, ", or 'auto'")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise OptionError(f"seed is {seed!r}; expected a whole number from 0")
    chosen = choose_metrics(metrics)
    opened = model if isinstance(model, CamModel) else CamModel(model)
    task = opened.contract.task
    contestants = _contestants(methods, budget, None if task == "classify" else default_preset(task))
    if maps is not None and not isinstance(maps, Mapping):
        raise OptionError(f"maps is a {type(maps).__name__}; expected a mapping from a name to a set of maps")
    given = tuple(GivenMaps(name, source) for name, source in (maps or {}).items())
    _check_names([*(one.name for one in contestants), *(one.name for one in given)], controls)
    _check_metrics(opened, chosen)
    placed = [one.name for one in chosen if one.needs_place]
    usual: WhichTarget = "true" if placed and task == "classify" else "predicted"
    explained = usual if explain is None else explain
    choice = Choice(explained, explained if score == "explained" else score, only, most_per_class)
    choice.check(opened)
    dataset = open_dataset(photos, labels)
    _check_dataset(dataset, choice, () if task in ("detect", "segment") else placed)
    check_preprocessing(opened, dataset, chosen)
    run = PhotoRun(
        opened, contestants, given, tuple(controls), chosen, seed,
        resolve_provider(provider), batch_size, thread_count(threads), layer, detecting or Detecting(),
    )  # fmt: skip
    with ExitStack() as stack:
        stack.callback(run.close)
        choice = choice.with_embeddings(run.embed)
        dataset = _with_class_note(dataset, choice, run)
        if explain is None and placed and task in ("detect", "segment"):
            dataset = _with_place_note(dataset, opened)
        cases = Cases(run, choice, dataset)
        header = _header(run, dataset, choice, score == "explained")
        journal = None
        if folder is not None:
            journal = Journal(Path(folder), header, overwrite)
            stack.callback(journal.close)
        rows, failures, columns = _run(run, cases, dataset, journal, on_progress, on_error)
        names = (*(one.name for one in contestants), *(one.name for one in given), *controls)
        record = {**header, "created": now(), "photos": [sample.name for sample in dataset.samples]}
        result = Result(columns, names, tuple(controls), tuple(rows), tuple(failures), record)
        note = None if folder is None else result.save(folder)  # while the journal's lock holds
    run.doubt.tell()
    if note is not None:
        warnings.warn(note, OrtcamWarning, stacklevel=2)
    return result


def _run(
    run: PhotoRun,
    cases: Cases,
    dataset: Dataset,
    journal: Journal | None,
    on_progress: Callable[[int, int], None] | None,
    on_error: Callable[[str, OrtcamError], None] | None,
) -> tuple[list[Row], list[Failure], tuple[Column, ...]]:
    """Evaluate all photos. Return their rows in the order of the photos, the photos that failed, and the columns."""
    done = {} if journal is None else {name: journal.done[name] for name in _unchanged(run, dataset, journal)}
    groups = [tuple(group) for _, group in itertools.groupby(dataset.samples, key=lambda sample: id(sample.image))]
    rows, failures = list[Row](), list[Failure]()
    samples = {sample.name: sample for sample in dataset.samples}
    waiting = [group for group in groups if not all(sample.name in done for sample in group)]
    images = [group[0].image for group in waiting]
    with closing(prepared_ahead(images, lambda image: prepare(run.model, image), 1, 1)) as ahead:
        for number, group in enumerate(groups, 1):
            if all(sample.name in done for sample in group):
                made: dict[str, Sequence[Row] | OrtcamError] = {
                    sample.name: done[sample.name] if cases.has_room(sample.name) else () for sample in group
                }
            else:
                ((_, job),) = next(ahead)
                made = _evaluate_photo(run, cases, job, group)
            for name, outcome in made.items():
                if isinstance(outcome, OrtcamError):
                    failures.append(Failure(name, str(outcome)))
                    if on_error is not None:
                        on_error(name, outcome)
                    continue
                if journal is not None and name not in done:
                    journal.add(name, tuple(outcome), _inputs(run, samples[name]))
                cases.count(name, outcome)
                rows.extend(outcome)
            if on_progress is not None:
                on_progress(number, len(groups))
    return rows, failures, run.columns()


def _unchanged(run: PhotoRun, dataset: Dataset, journal: Journal) -> list[str]:
    """Return the names of the photos that are done and whose files and given maps are still the same."""
    done = [sample for sample in dataset.samples if sample.name in journal.done]
    return [sample.name for sample in done if journal.inputs[sample.name] == _inputs(run, sample)]


def _inputs(run: PhotoRun, sample: Sample) -> str:
    """Return a hash of the sample's files and of the maps that are given for it."""
    parts = [hash_files_of(sample), *(f"{one.name}: {one.fingerprint(sample.name)}" for one in run.given)]
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def _evaluate_photo(
    run: PhotoRun, cases: Cases, job: Job | OrtcamError, group: Sequence[Sample]
) -> dict[str, Sequence[Row] | OrtcamError]:
    """Return the rows, or the error, of each sample of one photo."""
    if isinstance(job, OrtcamError):
        return dict.fromkeys((sample.name for sample in group), job)
    try:
        with run.open(job) as photo:
            outcome, wanted = dict[str, Sequence[Row] | OrtcamError](), dict[str, Case]()
            for sample in group:
                try:
                    case = cases.find(sample, photo)
                except (TargetError, DatasetError) as error:  # another sample of the photo may have its target
                    outcome[sample.name] = error
                    continue
                if case is None:
                    outcome[sample.name] = ()
                else:
                    wanted[sample.name] = case
            return {**outcome, **photo.measure(wanted)}
    except OrtcamError as error:
        return dict.fromkeys((sample.name for sample in group), error)


def _contestants(methods: Any, budget: int | None, preset: str | None) -> tuple[Contestant, ...]:
    given: Iterable[Any] = [methods] if isinstance(methods, str | Contestant) else methods
    made = []
    for one in given:
        if not isinstance(one, str | Contestant):
            raise OptionError(f"method is {one!r}; expected a name such as 'score-cam:budget=32', or a Contestant")
        made.append(parse_method(one, budget, preset) if isinstance(one, str) else one)
    return tuple(made)


def _check_metrics(model: CamModel, metrics: Sequence[Chosen]) -> None:
    """Refuse metrics of a class's logit, or of its probability, for models that have none."""
    task = model.contract.task
    for one in metrics:
        if not model.contract.classifies and getattr(one.metric, "score", None) == "logit":
            raise OptionError(f"metric {one.name!r} takes logits, and {model.name} has none; leave score=logit out")
        if task == "value" and one.metric.metric in ("gain", "adcc"):
            raise OptionError(
                f"metric {one.name!r} needs a score between 0 and 1, and {model.name} returns plain values; expected "
                "another, such as insertion, deletion or drop"
            )


def _check_names(names: Sequence[str], controls: Sequence[str]) -> None:
    unknown = [control for control in controls if control not in CONTROLS]
    if unknown:
        raise OptionError(f"control {unknown[0]!r} is unknown; expected {', '.join(CONTROLS)}")
    both = [*names, *controls]
    if not both:
        raise OptionError("there is nothing to evaluate; expected a method, maps or a control")
    twice = next((name for name in both if both.count(name) > 1), None)
    if twice is not None:
        raise OptionError(f"two methods or maps have the name {twice!r}; give each its own name")


def _check_dataset(dataset: Dataset, choice: Choice, placed: Sequence[str]) -> None:
    """Refuse a data set that lacks labels or places that are needed."""
    bare = [sample.name for sample in dataset.samples if sample.label is None]
    if choice.needs_label and bare:
        raise DatasetError(
            f"{len(bare)} of {len(dataset.samples)} photos have no label, such as {bare[0]}; a true class is needed "
            "for this evaluation: give --labels, or a data set with labels"
        )
    if placed and all(not sample.boxes and not sample.masks for sample in dataset.samples):
        raise DatasetError(
            f"the photos of {dataset.name} have neither boxes nor masks, which the metric {placed[0]!r} needs; "
            "give a data set that has them (cub:, voc:, coco:, masks:, csv:)"
        )


def check_preprocessing(model: CamModel, dataset: Dataset, metrics: Sequence[Chosen]) -> None:
    """Refuse what needs the preprocessing of a model that states none at once, not photo by photo."""
    if model.contract.preprocessing is not None:
        return
    if all(isinstance(sample.image, str | PathLike) for sample in dataset.samples):
        raise ModelError(
            f"{model.name} does not say how to preprocess a photo; export it with --preprocess (to compare the "
            f"choices: ortcam preprocessing {model.name} photos/), or give preprocessed input tensors float32 [1,C,H,W]"
        )
    for one in metrics:
        if one.replacement is not None:
            one.replacement.check(model.contract, model.name)


def _with_class_note(dataset: Dataset, choice: Choice, run: PhotoRun) -> Dataset:
    """Return the data set; with a note if it numbers its classes, and the model has another number of them."""
    if dataset.classes is None or not choice.needs_label or dataset.classes == run.count_classes():
        return dataset
    note = (
        f"{dataset.name} has {dataset.classes} classes, {run.model.name} has {run.count_classes()}: values are wrong "
        "unless both number their classes alike"
    )
    return replace(dataset, notes=(*dataset.notes, note))


def _with_place_note(dataset: Dataset, model: CamModel) -> Dataset:
    """Return the data set; with a note if it states objects, and the model's own boxes or regions are taken."""
    if not any(sample.boxes or sample.masks for sample in dataset.samples):
        return dataset
    what = "boxes" if model.contract.task == "detect" else "regions"
    note = f"maps are compared with the {what} of {model.name} itself; --explain true takes the objects of the data set"
    return replace(dataset, notes=(*dataset.notes, note))


def _header(run: PhotoRun, dataset: Dataset, choice: Choice, same: bool) -> dict[str, Any]:
    """Return what decides the values: a run that was interrupted goes on only if all of it is the same."""
    return {
        "ortcam": ortcam.__version__,
        "onnxruntime": RUNTIME_VERSION,
        **run.describe(),
        "dataset": dataset.describe(),
        "explained_class": describe_end(choice.explain),
        "scored_class": "explained" if same else describe_end(choice.score),
        "only": choice.only,
        "most_per_class": choice.most_per_class,
        "controls": CONTROLS,
        "method_maps": "made at the layer's size, then brought to the model's input size by the convention's steps",
        "given_maps": AT_THE_DOOR,
        "localisation": "compares the map at the photo's size, resized bilinearly (half-pixel centres); 0 where the "
        "model did not see the photo",
        "ties": "of pixels with equal values, the first or the last, row by row, comes first; where a metric states no "
        "rule, the first",
        "scores": "probabilities and logits of the file's output, in the sense that `model.output` states"
        if run.model.contract.classifies
        else "the scores of the targets, which docs/tasks.md defines for the task that `model.output` states",
        "flat_maps": "a flat map has no values; it is counted, and its photo is left out of the means of all methods",
        "means": "means of the values of each photo (means of ratios), over the photos on which every method has one",
        "intervals": f"95 %, BCa bootstrap over photos, {RESAMPLES} resamples, seed 0",
    }
