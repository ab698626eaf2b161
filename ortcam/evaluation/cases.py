"""Cases: which photos are evaluated, what their maps explain, and whose score is measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ortcam.core.convention import Floats
from ortcam.core.readers import check
from ortcam.core.references import Asked, Embedding, Similarity, refuse
from ortcam.core.targets import Class
from ortcam.core.view import digest
from ortcam.errors import OptionError, whole
from ortcam.evaluation.photo import Case, OpenPhoto, PhotoRun
from ortcam.evaluation.rows import Row
from ortcam.explain.tasks import with_embeddings

if TYPE_CHECKING:
    from ortcam.evaluation.datasets import Dataset
    from ortcam.evaluation.samples import Sample
    from ortcam.model.cam_model import CamModel

WhichTarget = Literal["predicted", "true"] | int | str | Asked
Only = Literal["all", "correct", "misclassified"]


@dataclass(frozen=True)
class Choice:
    """Which photos and targets are evaluated.

    Attributes:
        explain: what the maps explain: the ``predicted`` class, the ``true`` class, an index or a label. For a model
            of another task: its surest box or largest region (``predicted``), the object that the data set states
            (``true``), a label, or another target of `explain`.
        score: what is scored: the target that is ``explained``, or as `explain`.
        only: ``all`` photos, or those whose predicted class is ``correct`` or not (``misclassified``).
        most_per_class: at most this many photos of each true class, in order; None for all.
    """

    explain: WhichTarget
    score: WhichTarget
    only: Only = "all"
    most_per_class: int | None = None

    def __post_init__(self) -> None:
        if self.only not in ("all", "correct", "misclassified"):
            raise OptionError(f"only is {self.only!r}; expected all, correct or misclassified")
        if self.most_per_class is not None:
            whole("most_per_class", self.most_per_class)

    @property
    def needs_label(self) -> bool:
        return "true" in (self.explain, self.score) or self.only != "all" or self.most_per_class is not None

    @property
    def ends(self) -> tuple[WhichTarget, WhichTarget]:
        return self.explain, self.score

    def check(self, model: CamModel) -> None:
        """Refuse what the model's task does not have.

        Raises:
            OptionError: a choice that the task does not have.
            TargetError: a target that no photo has.
        """
        task = model.contract.task
        if model.contract.classifies:
            found = next((end for end in self.ends if isinstance(end, Asked)), None)
            if found is not None:
                raise refuse(task, found, model.name)
            return
        if self.only != "all":
            raise OptionError(f"only is {self.only!r}, and {model.name} is not a classifier; expected all")
        if "all" in self.ends:
            raise OptionError("the target to evaluate is 'all'; expected one target")
        if task == "embed" and not all(isinstance(end, Similarity) for end in self.ends):
            raise OptionError(
                f"{model.name} returns an embedding, to compare with a reference; expected "
                "--like reference.jpg, in Python explain=ortcam.Similarity('reference.jpg')"
            )
        if task == "value" and "predicted" in self.ends and model.classes != 1:
            raise OptionError(
                f"{model.name} returns several values; expected the number of one (--explain), and --sign -1 for what "
                "lowers it (in Python ortcam.Output(0, -1))"
            )
        for end in self.ends:
            if end not in ("predicted", "true"):
                check(task, end, model.classes, model.labels, model.name)

    def with_embeddings(self, embed: Callable[[Any], Floats]) -> Choice:
        """Return the choice with the embeddings of reference pictures: `ortcam.explain.tasks.with_embeddings`."""
        explain, score = (
            with_embeddings([end], embed)[0] if isinstance(end, Similarity) else end  # type: ignore[index]
            for end in self.ends
        )
        return replace(self, explain=explain, score=score)


def describe_end(end: WhichTarget) -> Any:
    """Return what is explained or scored as JSON knows it."""
    if not isinstance(end, Asked):
        return end
    more = {}
    if isinstance(end, Similarity) and isinstance(end.like, Embedding):
        more = {"sha256": digest(end.like.vector)}
    return {**end.to_json(), **more}


class Cases:
    """Finds the targets of each sample, and leaves out samples that the choice leaves out."""

    def __init__(self, run: PhotoRun, choice: Choice, dataset: Dataset) -> None:
        """Resolve all labels before the first photo.

        Raises:
            TargetError, DatasetError: a label is unknown to the model. For a model of another task, an unknown
                label of a sample is an error of this sample.
        """
        self._run, self._choice = run, choice
        self._labels = {sample.name: sample.label for sample in dataset.samples}
        self._taken: Counter[int] = Counter()
        for end in choice.ends:
            if end not in ("predicted", "true") and not isinstance(end, Asked):
                run.resolve(end, "the class to explain or to score")
        if choice.needs_label and run.model.contract.classifies:
            for sample in dataset.samples:  # a detector may not know all classes of a data set
                run.resolve(sample.label, f"the label of {sample.name}")

    def find(self, sample: Sample, photo: OpenPhoto) -> Case | None:
        """Return the case of a sample; None if it is left out.

        Raises:
            TargetError: the photo has no such box, region or the like.
            DatasetError: a box or mask of the sample does not fit the photo.
        """
        choice = self._choice
        true = None
        if choice.needs_label:
            true = self._true(sample.name)
            if choice.only != "all" and (true.index == photo.predicted) != (choice.only == "correct"):
                return None
            if not self.has_room(sample.name):
                return None
        if photo.references is not None:
            explained = photo.references.find(choice.explain, sample)
            same = choice.score is choice.explain
            scored = explained if same else photo.references.find(choice.score, sample)
            return Case(sample, explained, scored, choice.explain == "true")
        explained_class, scored_class = (self._class(end, photo.predicted, true) for end in choice.ends)
        return Case(sample, explained_class, scored_class)

    def has_room(self, name: str) -> bool:
        """Return whether fewer samples of this sample's true class than the most were counted."""
        most = self._choice.most_per_class
        return most is None or self._taken[self._true(name).index] < most

    def count(self, name: str, rows: Sequence[Row]) -> None:
        """Count a sample that was evaluated."""
        if rows and self._choice.most_per_class is not None:
            self._taken[self._true(name).index] += 1

    def _true(self, name: str) -> Class:
        return self._run.resolve(self._labels[name], f"the label of {name}")

    def _class(self, end: WhichTarget, predicted: int, true: Class | None) -> Class:
        if end == "predicted":
            return Class(predicted)
        if end == "true":
            assert true is not None
            return true
        return self._run.resolve(end, "the class")
