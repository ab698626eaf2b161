"""Debug a classifier: predict all photos, explain the misclassified ones, and say what is suspicious."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from os import PathLike, fspath
from typing import Any, Literal

import numpy as np

import ortcam
from ortcam.core.convention import Floats
from ortcam.core.measures import mass_in_common
from ortcam.core.provenance import now
from ortcam.errors import DatasetError, OptionError, OrtcamError, OrtcamWarning, TargetError, whole
from ortcam.evaluation import mistakes as definitions
from ortcam.evaluation.curves import DELETION
from ortcam.evaluation.datasets import Dataset, open_dataset
from ortcam.evaluation.localisation import ENERGY, Place
from ortcam.evaluation.maps import Contestant, parse_method
from ortcam.evaluation.mistakes import Debugging, Evidence, MeanMap, Mistake, Prediction, Without
from ortcam.evaluation.regions import cut
from ortcam.evaluation.replacements import MEANINGS
from ortcam.evaluation.rows import Failure
from ortcam.evaluation.run import check_preprocessing
from ortcam.evaluation.samples import Sample
from ortcam.explain.ahead import prepared_ahead
from ortcam.explain.explainer import ModelExplainer
from ortcam.explain.jobs import Job, prepare
from ortcam.model.cam_model import CamModel, ModelLike
from ortcam.output.explanation import Explanation
from ortcam.runtime.providers import ProviderLike
from ortcam.runtime.session import RUNTIME_VERSION
from ortcam.runtime.threads import calm_blas

BUDGET = 32  # masked inputs of Score-CAM a photo
_LISTED = 10  # photos without a label that a message names
OnExplained = Callable[[Mistake, Explanation], None]
Group = tuple[Sample, ...]  # the samples of one photo, one for each of its classes


def debug(
    model: ModelLike,
    photos: Any,
    labels: str | PathLike[str] | Sequence[int | str | None] | None = None,
    *,
    method: str | Contestant = "score-cam",
    budget: int | None = None,
    layer: str | None = None,
    most: int = 100,
    most_correct: int = 100,
    provider: ProviderLike = "auto",
    batch_size: int | Literal["auto"] | None = None,
    threads: int | None = None,
    on_explained: OnExplained | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    on_error: Callable[[str, OrtcamError], None] | None = None,
) -> Debugging:
    """Explain the mistakes of a classifier.

    All photos are predicted. Then the misclassified photos are explained for the predicted and the true class, both
    from the same passes. Correctly classified photos are explained for the mean map alone.

    Args:
        model: a classifier that ortcam exported: its path, its bytes, an onnx.ModelProto, or its CamModel.
        photos: a folder, a LAYOUT:PATH such as ``cub:CUB_200_2011``, or photos: see `open_dataset`.
        labels: the true classes of photos that have none: a CSV file with the columns photo and label, or, for photos
            given one by one, a sequence with an index or a label for each.
        method: a text such as ``score-cam:budget=64`` (`parse_method`), or a Contestant.
        budget: the budget of a method whose text states none; None for 32 masked inputs of Score-CAM, and for all
            passes of another method.
        layer: the target layer; None for the first that the file exposes.
        most: explain at most this many misclassified photos: those whose predicted class is furthest ahead of the true
            class in probability.
        most_correct: explain at most this many correctly classified photos, spread evenly over the data set; 0 for
            none.
        provider, batch_size, threads: as for `ModelExplainer`.
        on_explained: called with each explained mistake and its explanation, which has two targets: the predicted and
            the true class. Explanations are not kept.
        on_progress: called with (done, total) after each photo that was predicted or explained.
        on_error: called with the name of each photo that fails, and its error; the others go on.

    Raises:
        DatasetError: photos or labels are missing, or contradict each other.
        OptionError: an option is invalid, or the model is not a classifier.
        TargetError: a label is unknown to the model.
        ModelError, LayerError, ProviderError: as for `ModelExplainer`.
    """
    most = whole("most", most)
    most_correct = 0 if most_correct == 0 else whole("most_correct", most_correct)
    contestant = _contestant(method, budget)
    opened = model if isinstance(model, CamModel) else CamModel(model)
    if not opened.contract.classifies:
        raise OptionError(
            f"{opened.name} is made for the task {opened.contract.task!r}; expected a classifier, whose predictions "
            "are right or wrong"
        )
    dataset = open_dataset(photos, labels)
    _need_labels(dataset)
    check_preprocessing(opened, dataset, ())
    where = contestant.layer or layer
    with ModelExplainer(opened, contestant.method, provider, batch_size, threads, where) as explainer, calm_blas():
        run = _Run(explainer, contestant, dataset, on_progress, on_error)
        predictions = run.predict()
        wrong = sorted((one for one in predictions if not one.is_correct), key=lambda one: -one.lead)[:most]
        right = _spread([one for one in predictions if one.is_correct], most_correct)
        run.total += len(wrong) + len(right)
        found = sorted(run.explain_mistakes(wrong, on_explained), key=lambda one: one.suspicion)
        run.explain_correct(right)
        record = {**_header(explainer, contestant, dataset, run), "most": most, "most_correct": most_correct}
    return Debugging(
        predictions, tuple(found), tuple(run.failures), run.means[False].take(), run.means[True].take(), record
    )


class _Run:
    """The open model, what was done, and what failed."""

    def __init__(
        self,
        explainer: ModelExplainer,
        contestant: Contestant,
        dataset: Dataset,
        on_progress: Callable[[int, int], None] | None,
        on_error: Callable[[str, OrtcamError], None] | None,
    ) -> None:
        """Resolve all labels before the first photo.

        Raises:
            TargetError: a label is unknown to the model.
        """
        self._explainer, self._limits = explainer, contestant.limits
        self._on_progress, self._on_error = on_progress, on_error
        self._groups = [tuple(of) for _, of in itertools.groupby(dataset.samples, key=lambda one: id(one.image))]
        self.classes = explainer.model.classes or explainer.rehearse()[0]
        self._true = {sample.name: self._resolve(sample) for sample in dataset.samples}
        self._samples = {sample.name: sample for sample in dataset.samples}
        self.failures: list[Failure] = []
        self.means = {False: _Mean(), True: _Mean()}
        self.total, self._done = len(self._groups), 0

    def _resolve(self, sample: Sample) -> int:
        try:
            found = self._explainer.model.resolve_targets([sample.label or 0], self.classes)
        except TargetError as error:
            raise TargetError(f"the label of {sample.name}: {error}") from error
        assert found is not None
        return found[0].index

    def predict(self) -> tuple[Prediction, ...]:
        """Return the prediction of each photo."""
        found = []
        images = (group[0].image for group in self._groups)
        with closing(prepared_ahead(images, partial(prepare, self._explainer.model), 1, 1)) as ahead:
            for group, ((_, job),) in zip(self._groups, ahead, strict=True):
                try:
                    found.append(self._predict(group, job))
                except OrtcamError as error:
                    self._fail(group[0].name, error)
                self._advance()
        return tuple(found)

    def _predict(self, group: Group, job: Job | OrtcamError) -> Prediction:
        if isinstance(job, OrtcamError):
            raise job
        ranked = self._explainer.predict(job.tensor, self.classes)
        names = {self._true[sample.name]: sample.name for sample in reversed(group)}
        true = next(one for one in ranked if one.index in names)  # the most probable true class
        path = fspath(group[0].image) if isinstance(group[0].image, str | PathLike) else None
        return Prediction(names[true.index], path, true, ranked[0])

    def explain_mistakes(self, wrong: Sequence[Prediction], on_explained: OnExplained | None) -> Iterator[Mistake]:
        """Yield the mistakes; a photo that fails is left out."""
        for one in wrong:
            try:
                explanation = self._explain(one, [one.predicted.index, one.true.index])
                mistake = self._describe(one, explanation)
            except OrtcamError as error:
                self._fail(one.photo, error)
            else:
                self.means[False].add(explanation.map_at(0))
                if on_explained is not None:
                    on_explained(mistake, explanation)
                yield mistake
            self._advance()

    def explain_correct(self, right: Sequence[Prediction]) -> None:
        """Explain correctly classified photos, for their mean map."""
        for one in right:
            try:
                self.means[True].add(self._explain(one, [one.predicted.index]).map_at(0))
            except OrtcamError as error:
                self._fail(one.photo, error)
            self._advance()

    def _explain(self, one: Prediction, targets: list[int | str]) -> Explanation:
        limits = self._limits
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the map of .* is flat", OrtcamWarning)  # it is a flag
            return self._explainer.explain(
                self._samples[one.photo].image,
                targets,
                budget=limits.budget,
                tolerance=limits.tolerance,
                selection=limits.selection,
            )

    def _describe(self, one: Prediction, explanation: Explanation) -> Mistake:
        sample, size, crop = self._samples[one.photo], explanation.photo_size, explanation.crop
        region = sample.region(size)
        place = None if region is None else Place(region, sample.boxes)
        maps = [explanation.map_at(at) for at in (0, 1)]
        predicted, true = (_evidence(explanation, at, saliency, place) for at, saliency in enumerate(maps))
        return Mistake(
            prediction=one,
            predicted=predicted,
            true=true,
            in_common=mass_in_common(*maps),
            without=None if predicted.is_flat else self._without(one, explanation),
            object_box=None if region is None else definitions.box_around(region),
            cut=None if region is None else definitions.cut_off(region, crop),
            unseen=1 - crop.height * crop.width / (size[0] * size[1]),
            size=size,
            error=None if explanation.error is None else explanation.error.expected,
            sha256=explanation.provenance.photo.sha256,
        )

    def _without(self, one: Prediction, explanation: Explanation) -> Without:
        """Predict the photo without the top region of the predicted class's map."""
        model = self._explainer.model
        region = top_region(explanation)
        tensor = model.prepare(self._samples[one.photo].image)[1].copy()
        if model.contract.image_layout == "NHWC":
            tensor[:, region] = 0
        else:
            tensor[:, :, region] = 0
        ranked = self._explainer.predict(tensor, self.classes)
        of = {target.index: target.probability for target in ranked}
        winner = ranked[0]
        return Without(
            float(region.mean()),
            of[one.predicted.index],
            of[one.true.index],
            winner,
            winner.index == one.true.index,
        )

    def _fail(self, name: str, error: OrtcamError) -> None:
        self.failures.append(Failure(name, str(error)))
        if self._on_error is not None:
            self._on_error(name, error)

    def _advance(self) -> None:
        self._done += 1
        if self._on_progress is not None:
            self._on_progress(self._done, self.total)


class _Mean:
    """The mean of maps on a grid."""

    def __init__(self) -> None:
        self._count, self._sum = 0, np.zeros((definitions.GRID, definitions.GRID))

    def add(self, saliency: Floats) -> None:
        if saliency.max() > 0:
            self._sum += definitions.on_grid(saliency, definitions.GRID)
            self._count += 1

    def take(self) -> MeanMap:
        return MeanMap(self._count, self._sum / max(1, self._count))


def top_region(explanation: Explanation) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return where the first map, at the model's input size, has at least half of its maximum, bool [h_in,w_in]."""
    saliency = explanation.input_maps[0]
    return np.asarray(saliency >= saliency.max() / 2)


def _evidence(explanation: Explanation, at: int, saliency: Floats, place: Place | None) -> Evidence:
    measures = explanation.measures[at]
    if measures.maximum is None:
        return Evidence(measures)
    part, share = definitions.largest_part(saliency)
    inside = None if place is None else ENERGY["quantus"].measure(saliency, place)
    return Evidence(measures, part, share, None if inside is None else 1 - inside)


def _contestant(method: str | Contestant, budget: int | None) -> Contestant:
    if isinstance(method, Contestant):
        return method
    if not isinstance(method, str):
        raise OptionError(f"method is {method!r}; expected a name such as 'score-cam:budget=32', or a Contestant")
    if budget is None and method.partition(":")[0].strip() == "score-cam" and "tolerance=" not in method:
        budget = BUDGET
    return parse_method(method, budget)


def _need_labels(dataset: Dataset) -> None:
    """Refuse a data set with photos whose true class is unknown; the message lists them."""
    bare = [sample.name for sample in dataset.samples if sample.label is None]
    if not bare:
        return
    shown = ", ".join(map(cut, bare[:_LISTED])) + (f" and {len(bare) - _LISTED} more" if len(bare) > _LISTED else "")
    raise DatasetError(
        f"{len(bare)} of {len(dataset.samples)} photos have no label: {shown}; expected the true class of every photo: "
        "give --labels, or a data set with labels"
    )


def _spread(found: Sequence[Prediction], most: int) -> list[Prediction]:
    """Return at most `most` of the predictions, spread evenly."""
    count = min(most, len(found))
    return [found[(2 * place + 1) * len(found) // (2 * count)] for place in range(count)]


def _header(explainer: ModelExplainer, contestant: Contestant, dataset: Dataset, run: _Run) -> dict[str, Any]:
    """Return what decides the values."""
    model = explainer.model
    contract = model.contract
    notes = list(dataset.notes)
    if dataset.classes is not None and dataset.classes != run.classes:
        notes.append(
            f"{dataset.name} has {dataset.classes} classes, {model.name} has {run.classes}: the true classes are wrong "
            "unless both number their classes alike"
        )
    return {
        "format": 1,
        "kind": "ortcam debug",
        "created": now(),
        "ortcam": ortcam.__version__,
        "onnxruntime": RUNTIME_VERSION,
        "model": {
            "name": model.name,
            "sha256": model.sha256,
            "layer": contract.layer,
            "output": contract.output,
            "classes": run.classes,
            "preprocessing": None if contract.preprocessing is None else contract.preprocessing.to_dict(),
        },
        "provider": explainer.provider,
        "method": {"spec": contestant.name, **contestant.describe()},
        "dataset": {"name": dataset.name, **dataset.describe(), "notes": notes},
        "order": definitions.ORDER,
        "flags": definitions.FLAGS,
        "explained_photos": "the misclassified photos whose predicted class is furthest ahead of the true class",
        "in_common": "the sum of the minimum of both maps at the photo's size, each divided by its sum",
        "outside": "1 - energy: the share of the map's sum outside the object's masks, or boxes where it has no masks",
        "region": "pixels where the predicted class's map, at the model's input size, has at least half of its maximum",
        "baseline": {"name": DELETION["ortcam"].baseline, "meaning": MEANINGS["zero"]},
        "grid": f"{definitions.GRID} x {definitions.GRID} cells over the photo",
    }
