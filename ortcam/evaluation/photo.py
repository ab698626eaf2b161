"""Run an evaluation on one photo: its maps by all methods and controls, and all metrics of them together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ortcam.core.convention import Floats
from ortcam.core.forward import Forward
from ortcam.core.query import Change, Channels
from ortcam.core.references import Detecting, Reference
from ortcam.core.scores import Doubt
from ortcam.core.targets import Class, Wanted
from ortcam.errors import DatasetError, OrtcamError, TargetError
from ortcam.evaluation.asks import Measured, Score, View, run_together
from ortcam.evaluation.localisation import Place
from ortcam.evaluation.maps import Contestant, GivenMaps, control_map
from ortcam.evaluation.metrics import Chosen
from ortcam.evaluation.photo_references import PhotoReferences
from ortcam.evaluation.replacements import Replacements
from ortcam.evaluation.rows import Column, Row
from ortcam.explain import scheduler
from ortcam.explain.jobs import Job
from ortcam.explain.scheduler import InWork, not_finite
from ortcam.explain.tasks import view_of
from ortcam.model.cam_model import CamModel
from ortcam.output.render import place_map
from ortcam.runtime.classifier import Classifier, Setup
from ortcam.runtime.layer import for_method
from ortcam.runtime.providers import Provider
from ortcam.runtime.scorer import Group
from ortcam.runtime.threads import calm_blas

if TYPE_CHECKING:
    from ortcam.evaluation.samples import Sample

FLAT = "flat map"


@dataclass(frozen=True, eq=False)
class Case:
    """A sample, the target that its maps explain, and the target whose score is measured.

    Attributes:
        sample: the sample.
        explained, scored: classes; of a model of another task, references among those of the photo.
        is_true: the explained target is the object that the data set states; of a classifier it does not matter.
    """

    sample: Sample
    explained: Wanted
    scored: Wanted
    is_true: bool = False


class PhotoRun:
    """Holds the open model, and evaluates photos one by one.

    Attributes:
        model: the model file, with the chosen layer.
        doubt: has seen the scores of all photos, if nothing says whether they are a softmax's.
    """

    def __init__(
        self,
        model: CamModel,
        contestants: Sequence[Contestant],
        given: Sequence[GivenMaps],
        controls: Sequence[str],
        metrics: Sequence[Chosen],
        seed: int,
        provider: Provider,
        batch_size: int | Literal["auto"] | None,
        threads: int | None,
        layer: str | None,
        detecting: Detecting = Detecting(),
    ) -> None:
        """Open the model; the arguments are those of `evaluate`."""
        self.model = for_method(model, layer, 0, "image")
        self.contestants, self.given, self.controls = contestants, given, controls
        self.metrics, self.seed, self.detecting = metrics, seed, detecting
        self._size = _usual_size(self.model)
        self._classes = self.model.classes
        self._opening = provider, batch_size, threads
        self._open: dict[tuple[str, str | None], Classifier] = {}
        self.classifier = self.classifier_of("logits", None)
        self.doubt = Doubt(self.model.name)
        for one in contestants:
            # Now, so that an unknown layer, or a layer that does not suit the method, is an error at once.
            self.classifier_of(one.method.scored, one.layer).open(one.method.change)

    def classifier_of(self, scored: Any, layer: str | None) -> Classifier:
        """Return the open model that takes its scores from a tensor, with a layer; methods share it."""
        key = scored, layer
        if key not in self._open:
            sharing = [one.method for one in self.contestants if one.method.scored == scored and one.layer == layer]
            stages = max((one.stages for one in sharing), default=0)
            at = "layer" if any(one.change.at == "layer" for one in sharing) else "image"
            model = for_method(self.model, layer, stages, at)
            provider, batch_size, threads = self._opening
            self._open[key] = Classifier(Setup(model, scored, provider, batch_size, threads, Change(Channels())))
        return self._open[key]

    def close(self) -> None:
        """Release the sessions."""
        for classifier in self._open.values():
            classifier.close()

    def resolve(self, label: Any, what: str) -> Class:
        """Return the class of an index or label; `what` names it in messages.

        Raises:
            TargetError: the model has no such class.
        """
        try:
            found = self.model.resolve_targets([label], self.count_classes())
        except TargetError as error:
            raise TargetError(f"{what}: {error}") from error
        assert found is not None
        return found[0]

    def embed(self, image: Any) -> Floats:
        """Return the embedding [D] of a reference picture, of a model that returns embeddings."""
        (vector,) = self.classifier.forward(self.model.prepare(image)[1]).passes[0].results
        return vector

    def columns(self) -> tuple[Column, ...]:
        """Return the columns of all metrics."""
        columns = [column for one in self.metrics for column in one.metric.columns(one.name, self._size)]
        metrics = {one.name: one.metric for one in self.metrics}
        for both in _differences(self.metrics):
            first, second = both.split(" - ")
            columns.append(Column(both, f"{metrics[first].metric} - {metrics[second].metric}", "higher"))
        return tuple(columns)

    def describe(self) -> dict[str, Any]:
        """Return what the record says of model, methods and metrics."""
        contract, provider = self.model.contract, self.classifier.provider
        return {
            "model": {
                "name": self.model.name,
                "sha256": self.model.sha256,
                "layer": contract.layer,
                "output": contract.output if contract.classifies else contract.task,
                **({"detections": asdict(self.detecting)} if contract.task == "detect" else {}),
                "preprocessing": None if contract.preprocessing is None else contract.preprocessing.to_dict(),
            },
            "provider": provider.name,
            "methods": {one.name: one.describe() for one in self.contestants}
            | {one.name: one.describe() for one in self.given},
            "used_controls": list(self.controls),
            "metrics": {one.name: one.describe() for one in self.metrics},
            "seed": self.seed,
        }

    @contextmanager
    def open(self, job: Job) -> Iterator[OpenPhoto]:
        """Run the plain pass of a photo."""
        with calm_blas():
            group = self.classifier.forward(job.tensor)
            plain = group.passes[0]
            if not all(np.isfinite(one).all() for one in (plain.logits, plain.activations, *plain.results)):
                raise not_finite(self.model.name, "this image")
            if self.model.contract.is_in_doubt(len(plain.logits)):
                self.doubt.see(plain.logits)
            yield OpenPhoto(self, job, group)

    def count_classes(self) -> int:
        """Return the number of classes that the model scores; of plain values, their number."""
        if not self.model.contract.classifies:
            length, classes = self.model.reference_sizes
            return length if self.model.contract.task == "value" else classes
        if self._classes is None:
            shape = [dim or 224 for dim in self.model.input_shape]
            self._classes = len(self.classifier.forward(np.zeros((1, *shape), np.float32)).passes[0].logits)
        return self._classes


class OpenPhoto:
    """A photo after its plain pass.

    Attributes:
        references: the targets of a model of another task; None of a classifier.
    """

    def __init__(self, run: PhotoRun, job: Job, group: Group) -> None:
        self._run, self._job, self._group = run, job, group
        self._plain = group.passes[0]
        self._replacements = Replacements(job.tensor, run.model.contract, run.model.name)
        photo = job.photo
        self._photo_size = (job.crop.bottom, job.crop.right) if photo is None else (photo.shape[0], photo.shape[1])
        self.references: PhotoReferences | None = None
        if not run.model.contract.classifies:
            view = view_of(run.model, photo, job.crop, self._plain.size, run.detecting)
            self.references = PhotoReferences(run.model.contract.task, self._plain, view)

    @property
    def predicted(self) -> int:
        """The class with the highest logit."""
        return int(self._plain.logits.argmax())

    def measure(self, cases: Mapping[str, Case]) -> dict[str, tuple[Row, ...] | OrtcamError]:
        """Return the rows of each case, or its error."""
        outcome: dict[str, tuple[Row, ...] | OrtcamError] = {}
        views: list[tuple[Case, str, View]] = []
        targets = tuple({case.explained.index: case.explained for case in cases.values()}.values())
        made = {one.name: self._explain(one, targets) for one in self._run.contestants} if targets else {}
        for name, case in cases.items():
            try:
                place = self._place(case)
                maps = self._maps(case, {method: of[case.explained.index] for method, of in made.items()})
            except DatasetError as error:
                outcome[name] = error
                continue
            views.extend((case, method, self._view(case, method, saliency, place)) for method, saliency in maps.items())
        rows = self._measure(views)
        for name in cases:
            if name not in outcome:
                outcome[name] = tuple(row for row in rows if row.photo == name)
        return outcome

    def _measure(self, views: Sequence[tuple[Case, str, View]]) -> list[Row]:
        """Run all metrics of all maps together."""
        metrics = self._run.metrics
        ready = [(case, method, view) for case, method, view in views if not is_flat(view.saliency)]
        running = [(case.scored, one.metric.measure(one.name, view)) for case, _, view in ready for one in metrics]
        group = self._group
        if self.references is not None and running:
            group = self._run.classifier.with_references(group, [self.references.all])
        measured = iter(run_together(self._run.classifier, group, running, self._score))
        columns = self._run.columns()
        rows = []
        for case, method, view in views:
            if is_flat(view.saliency):
                names = [column.name for column in columns]
                whole = Measured(dict.fromkeys(names), dict.fromkeys(names, FLAT))
            else:
                whole = _joined([next(measured) for _ in metrics], _differences(metrics))
            rows.append(
                Row(
                    case.sample.name, method, _number_of(case.explained), _number_of(case.scored),
                    whole.values, whole.reasons, whole.curves, self._name_of(case.explained),
                )
            )  # fmt: skip
        return rows

    def _maps(self, case: Case, made: Mapping[str, Floats]) -> dict[str, Floats]:
        maps = dict(made)
        name = case.sample.name
        for given in self._run.given:
            maps[given.name] = given.find(
                name, _number_of(case.explained), self._job.crop, self._plain.size, self._photo_size
            )
        for control in self._run.controls:
            maps[control] = control_map(control, self._plain, name, self._run.seed)
        return maps

    def _view(self, case: Case, method: str, saliency: Floats, place: Place | None) -> View:
        contestant = next((one for one in self._run.contestants if one.name == method), None)
        explain = None
        if contestant is not None:
            explain = partial(self._explain_again, contestant, case.explained)
        elif method in self._run.controls:
            explain = partial(self._control_again, method, case.sample.name)
        return View(
            saliency=saliency,
            on_photo=partial(place_map, saliency, self._job.crop, self._photo_size),
            tensor=self._job.tensor,
            channels_last=self._run.model.contract.image_layout == "NHWC",
            clean=self._score(self._plain, case.scored),
            replacements=self._replacements,
            place=place,
            explain=explain,
        )

    def _name_of(self, target: Wanted) -> str:
        """Return the name of a reference; of a class its number is enough."""
        return self.references.name_of(target) if self.references and isinstance(target, Reference) else ""

    def _score(self, plain: Forward, target: Wanted) -> Score:
        if self.references is not None and isinstance(target, Reference):
            value = self.references.score_of(plain, target)
            return Score(value, value)
        _, probabilities = self._run.model.contract.read_output(plain.output)
        return Score(float(plain.logits[target.index]), float(probabilities[target.index]))

    def _place(self, case: Case) -> Place | None:
        if not any(one.needs_place for one in self._run.metrics):
            return None
        if self.references is not None and isinstance(case.explained, Reference):
            return self.references.place_of(case.explained, case.sample, case.is_true)
        region = case.sample.region(self._photo_size)
        return None if region is None else Place(region, case.sample.boxes)

    def _explain(self, one: Contestant, targets: Sequence[Wanted]) -> dict[int, Floats]:
        """Return the maps of a method by class, at the model's input size."""
        classifier = self._run.classifier_of(one.method.scored, one.layer)
        own = classifier is self._run.classifier
        group = self._group if own else classifier.forward(self._job.tensor)
        return _explain(classifier, group, one, targets, self.references)

    def _explain_again(self, one: Contestant, target: Wanted, tensor: Floats) -> Floats:
        classifier = self._run.classifier_of(one.method.scored, one.layer)
        return _explain(classifier, classifier.forward(tensor), one, [target], self.references)[target.index]

    def _control_again(self, control: str, photo: str, tensor: Floats) -> Floats:
        return control_map(control, self._run.classifier.forward(tensor).passes[0], photo, self._run.seed)


def _explain(
    classifier: Classifier,
    group: Group,
    one: Contestant,
    targets: Sequence[Wanted],
    references: PhotoReferences | None,
) -> dict[int, Floats]:
    predictors = classifier.predictors()

    def begin(_: int, forward: Forward) -> InWork:
        if references is None:
            return InWork(forward, targets, one.method.begin(forward, targets, one.limits, predictors))
        scored = references.scored(forward)
        run = one.method.begin(scored, targets, one.limits, predictors)
        return InWork(scored, targets, run, references.all)

    ((work,), _) = scheduler.run_together(classifier, group, begin, None)
    if isinstance(work, OrtcamError):
        raise work
    assert work.result is not None
    maps = one.method.convention.saliency(work.result.sums, group.size)
    return {target.index: saliency for target, saliency in zip(targets, maps, strict=True)}


def _number_of(target: Wanted) -> int:
    """Return the class index; of a similarity, its place among the references of the photo."""
    return target.index if isinstance(target, Class) or target.class_index is None else target.class_index


def _usual_size(model: CamModel) -> tuple[int, int]:
    """Return the input size (H, W) that the file or its preprocessing states, else 224 x 224."""
    preprocessing, shape = model.contract.preprocessing, model.input_shape
    stated = shape[1:] if model.contract.image_layout == "NCHW" else shape[:2]
    usual = (224, 224) if preprocessing is None else (preprocessing.height, preprocessing.width)
    return stated[0] or usual[0], stated[1] or usual[1]


def is_flat(saliency: Floats) -> bool:
    """Return whether a map has one value everywhere, so that it has no order."""
    return bool(saliency.max() <= saliency.min())


def _differences(metrics: Sequence[Chosen]) -> list[str]:
    """Return the names of the differences of insertion and deletion with the same preset and options."""
    names = [one.name for one in metrics]
    pairs = [(name, "deletion" + name.removeprefix("insertion")) for name in names if name.startswith("insertion")]
    return [f"{first} - {second}" for first, second in pairs if second in names]


def _joined(parts: Sequence[Measured], differences: Sequence[str]) -> Measured:
    values, reasons, curves = dict[str, float | None](), dict[str, str](), dict[str, tuple[float, ...]]()
    for part in parts:
        values |= part.values
        reasons |= part.reasons
        curves |= part.curves
    for name in differences:
        first, second = (values[end] for end in name.split(" - "))
        values[name] = None if first is None or second is None else first - second
        if values[name] is None:
            reasons[name] = "insertion or deletion is undefined"
    return Measured(values, reasons, curves)
