"""ModelExplainer: explain photos with a model file and any method."""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import numpy as np

from ortcam.core.budget import Limits, Predictors, Selecting
from ortcam.core.convention import Convention, Floats
from ortcam.core.forward import Forward
from ortcam.core.query import Rows
from ortcam.core.references import Detecting
from ortcam.core.scores import Doubt
from ortcam.core.targets import Class, Target, Targets, describe_references, describe_targets, top_targets
from ortcam.errors import OptionError, OrtcamError, TargetError, whole
from ortcam.explain.ahead import in_turn, prepared_ahead
from ortcam.explain.jobs import Job, prepare
from ortcam.explain.recording import Request, provenance_of
from ortcam.explain.scheduler import InWork, not_finite, run_together
from ortcam.explain.signatures import BEHIND_THE_NAMES, OnError, check_images, names_from_the_third
from ortcam.explain.tasks import check_targets, describe_asked, find_references, view_of, with_embeddings
from ortcam.model.cam_model import CamModel, ModelLike
from ortcam.output.explanation import Explanation, warn_of_flat_maps
from ortcam.runtime.classifier import Classifier, Setup
from ortcam.runtime.layer import for_method
from ortcam.runtime.process import Reopened
from ortcam.runtime.providers import ProviderLike, resolve_provider
from ortcam.runtime.scorer import Progress
from ortcam.runtime.threads import calm_blas, thread_count

if TYPE_CHECKING:
    from ortcam.core.method import Method
    from ortcam.core.pictures import Image

MOST_PHOTOS = 16  # in a group
_GROUPS_AT_ONCE = 2  # if the processor is free: it prepares one group while a device scores another
_log = logging.getLogger("ortcam")


class ModelExplainer:
    """Explains the scores of a model file in photos, with ONNX Runtime. It can be pickled, and is a context manager.

    Attributes:
        model: the model file and its contract.
        method: the method of explanation.
        provider: the execution provider that runs it.
        detecting: which boxes of a detector count.
    """

    def __init__(
        self,
        model: ModelLike,
        method: Method,
        provider: ProviderLike = "auto",
        batch_size: int | Literal["auto"] | None = None,
        threads: int | None = None,
        layer: str | Sequence[str] | None = None,
        detecting: Detecting | None = None,
    ) -> None:
        """Load a model file.

        Args:
            model: a file that ortcam exported: its path, its bytes, an onnx.ModelProto, or its CamModel.
            method: the method of explanation.
            provider: ``auto`` (the best that loads), ``cpu``, ``cuda``, ``tensorrt``, ..., or an `ortcam.Provider`
                with options.
            batch_size: the number of masked inputs per run. None for 8 on CPUs and 16 elsewhere, or the model's own
                fixed batch. ``auto`` for the fastest size, measured at the first start on this machine and kept in the
                cache directory.
            threads: the number of CPU threads, at most one per processor. None for one per physical core; work on
                several photos between passes then has one per processor (at most 4 beside a GPU).
            layer: the target layer: an exposed layer, a module that the file names, or a value of its graph (see:
                ortcam inspect). None for the first exposed layer. For a method that needs earlier stages too, a list:
                the target layer and the stages. Stages that are not named are found: the last feature map of each
                larger size that leads to all scores, as far as there are any.
            detecting: which boxes of a detector count; None for a score of 0.25 and an overlap of 0.45.

        Raises:
            ModelError: the file cannot be used.
            LayerError: the layer is unknown or does not suit the method.
            ProviderError: the provider is unknown or does not load.
            OptionError: a number is invalid.
        """
        if batch_size is not None and batch_size != "auto":
            batch_size = whole("batch_size", batch_size, ", or 'auto'")
        threads = thread_count(threads)
        if isinstance(method, type) or not hasattr(method, "first_query"):
            shown = f"the class {method.__name__}" if isinstance(method, type) else repr(method)
            raise OptionError(f"method is {shown}; expected an object such as ortcam.RISE(masks=1000)")
        self.method, self.detecting = method, detecting or Detecting()
        wanted = resolve_provider(provider)
        self.model = model if isinstance(model, CamModel) else CamModel(model)
        self.model = for_method(self.model, layer, method.stages, method.change.at)
        begin, setup = time.perf_counter(), Setup(self.model, method.scored, wanted, batch_size, threads, method.change)
        classifier = Classifier(setup)
        self._provider = classifier.provider
        self._asked_batch_size, self._batch_size = batch_size, classifier.batch_size
        again = replace(setup, provider=classifier.provider, batch_size=classifier.batch_size)
        self._running = Reopened(partial(Classifier, again), classifier, forks=self.provider == "cpu")
        self._doubt = Doubt(self.model.name)
        _log.info(
            "%s: %s on %s, batches of %d, opened in %.2f s",
            self.model.name, method.name, self.provider, self._batch_size, time.perf_counter() - begin,
        )  # fmt: skip

    @property
    def provider(self) -> str:
        """The execution provider that runs the model."""
        return self._provider.name

    @property
    def convention(self) -> Convention:
        """The definition of Score-CAM in use; for another method, the last steps of its maps."""
        return self.method.convention

    @property
    def batch_size(self) -> int:
        """The largest number of masked inputs per run."""
        return self._batch_size

    def close(self) -> None:
        """End the threads and release the sessions. After that, nothing can be explained."""
        self._running.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @names_from_the_third("top_k", "on_progress")
    def explain(
        self,
        image: Image,
        targets: Targets = None,
        *,
        top_k: int = 1,
        on_progress: Progress | None = None,
        budget: int | None = None,
        tolerance: float | None = None,
        selection: Selecting = "predict",
    ) -> Explanation:
        """Explain one photo.

        Args:
            image: a path, the bytes of a picture, an open binary file, an RGB photo uint8 [H,W,3], a Pillow
                image, or a preprocessed input tensor, float [1,C,H,W] (or the model's own layout).
            targets: class indices or labels, one or several, or ``"all"``; all of them come from the same forward
                passes. None for the most probable classes.
            top_k: the number of classes, if `targets` is None.
            on_progress: called with (done, M) after every batch of masked inputs.
            budget: run at most this many masked inputs; None for all, the exact map. The blank input that some presets
                run for constant channels does not count if all others are run. See docs/budget-inside.md.
            tolerance: run masked inputs until the estimated error (1 - r) of every map is at most this.
            selection: what a budget does: ``predict`` the scores of the other channels, or ``top-std``: run the
                channels with the highest standard deviation and leave the others out (Faster-Score-CAM).

        Raises:
            ImageError: the image cannot be read or does not fit the model.
            TargetError: a class index or label is unknown.
            OptionError: a budget or tolerance is invalid, or the method does not support it.
        """
        request = self._request(targets, top_k, budget, tolerance, selection)
        (explanation,) = self._explain_group([prepare(self.model, image)], request, on_progress)
        if isinstance(explanation, OrtcamError):
            raise explanation
        warn_of_flat_maps(explanation, BEHIND_THE_NAMES)
        self._doubt.tell(BEHIND_THE_NAMES)
        return explanation

    @names_from_the_third("on_error", "top_k", "on_progress")
    def explain_batch(
        self,
        images: Iterable[Image],
        targets: Targets = None,
        *,
        top_k: int = 1,
        on_error: OnError | None = None,
        on_progress: Callable[[float], None] | None = None,
        budget: int | None = None,
        tolerance: float | None = None,
        selection: Selecting = "predict",
    ) -> Iterator[Explanation]:
        """Explain many photos: their masked inputs share batches, and the next photos are decoded meanwhile.

        Memory holds one group of photos that is scored, and one group that is decoded; on CUDA, two groups are scored
        at once. A group fills a batch: one photo, unless a budget is small.

        Args:
            images: as for `explain`; may be a generator.
            targets, top_k, budget, tolerance, selection: as for `explain`, the same for every photo.
            on_error: called with each failed image and its error; processing continues. If None, the error is raised.
            on_progress: called with the number of photos done; photos in progress count with the share of their inputs
                that were run. On CUDA it is called after every group.

        Yields:
            An Explanation for each image without an error, in order; `source` names the image.
        """
        check_images(images)
        request = self._request(targets, top_k, budget, tolerance, selection)
        check_targets(self.model, request.targets)
        done, process, classifier = 0, os.getpid(), self._running.get()
        beside = classifier.frees_processor
        at_once, decoders = (_GROUPS_AT_ONCE, classifier.workers.count) if beside else (1, 1)

        def explain(group: list[tuple[Any, Job | OrtcamError]]) -> deque[tuple[Any, Explanation | OrtcamError]]:
            ready = [job for _, job in group if not isinstance(job, OrtcamError)]
            report = None if on_progress is None or beside else _share_of(on_progress, done, len(ready))
            explained = self._explain_together(ready, request, report)
            return deque((image, job if isinstance(job, OrtcamError) else next(explained)) for image, job in group)

        ahead = prepared_ahead(images, partial(prepare, self.model), self._group_size(request.limits), decoders)
        with closing(ahead), closing(in_turn(explain, ahead, at_once)) as groups:
            for group in groups:
                done += len(group)
                if on_progress is not None and beside:
                    on_progress(done)
                while group:  # an explanation that was yielded is not held here
                    image, outcome = group.popleft()
                    if isinstance(outcome, Explanation):
                        warn_of_flat_maps(outcome)
                        self._doubt.tell()
                        yield outcome
                    elif on_error is None:
                        raise outcome
                    else:
                        on_error(image, outcome)
                    del image, outcome
                    if os.getpid() != process:
                        raise OrtcamError(
                            "this explain_batch began before a fork; call explain_batch again in the child"
                        )

    def predict(self, image: Image, top_k: int = 1, *, targets: Targets = None) -> tuple[Target, ...]:
        """Return the targets of an image without a map; if they are None, the `top_k` most probable classes; of a
        detector, segmenter or plain values, the surest boxes, regions or all values. Images, targets and errors are
        those of `explain`.
        """
        asked = self._request(targets, top_k, None, None, "predict")
        photo, tensor, crop = self.model.prepare(image)
        plain = self._running.get().forward(tensor).passes[0]
        if not all(np.isfinite(one).all() for one in (plain.logits, *plain.results)):
            raise not_finite(self.model.name, "this image")
        if self.model.contract.classifies:
            found = self.model.resolve_targets(asked.targets, len(plain.logits))
            return self._describe(found or top_targets(plain.logits, asked.top_k), plain)
        view = view_of(self.model, photo, crop, plain.size, self.detecting)
        return describe_asked(self.model.contract.task, asked.targets, asked.top_k, plain, view)

    def rehearse(self) -> tuple[int, tuple[int, int, int]]:
        """Run a plain and a masked pass on a grey photo, to check that this file can be explained.

        Returns:
            The number of classes, and the shape (K, h, w) of the target layer.

        Raises:
            OrtcamError: the file cannot be explained.
        """
        shape = [dim or 32 for dim in self.model.input_shape]
        known = self.model.contract.preprocessing is not None
        grey = np.full((32, 32, 3), 128, np.uint8) if known else np.zeros((1, *shape), np.float32)
        classifier = self._running.get()
        group = classifier.forward(self.model.prepare(grey)[1])
        classifier.score(group, Rows.plain(1), self.method.change)
        plain = group.passes[0]
        channels, height, width = plain.activations.shape
        return len(plain.logits), (channels, height, width)

    def _request(
        self, targets: Targets, top_k: int, budget: int | None, tolerance: float | None, selection: Selecting
    ) -> Request:
        limits = Limits(budget, tolerance, selection)
        self.method.check(limits)
        targets = list(targets) if isinstance(targets, Iterator) else targets
        if self.model.contract.task == "embed":
            targets = with_embeddings(targets, self._embed)
        return Request(targets, whole("top_k", top_k), limits)

    def _embed(self, image: Image) -> Floats:
        """Return the embedding [D] of a reference picture."""
        (vector,) = self._running.get().forward(self.model.prepare(image)[1]).passes[0].results
        return vector

    def _group_size(self, limits: Limits) -> int:
        """Return the number of photos whose first queries fill a batch."""
        most = self.model.batch or MOST_PHOTOS
        first = self.method.first_query(limits, self.model.channels, self.batch_size)
        return min(most, -(-self.batch_size // first))

    def _explain_together(
        self, jobs: list[Job], request: Request, on_progress: Progress | None
    ) -> Iterator[Explanation | OrtcamError]:
        """Explain photos, in groups of one input size."""
        for _, group in itertools.groupby(jobs, key=lambda job: job.tensor.shape):
            together = list(group)
            try:
                yield from self._explain_group(together, request, on_progress)
            except OrtcamError as error:
                if len(together) == 1:
                    yield error
                else:  # a single photo may be the cause, or the memory for all of them
                    _log.info("%d photos failed together (%s); each is tried alone", len(together), error)
                    for job in together:
                        yield from self._explain_together([job], request, on_progress)

    def _explain_group(
        self, jobs: list[Job], request: Request, on_progress: Progress | None = None
    ) -> list[Explanation | OrtcamError]:
        started = time.perf_counter()
        with calm_blas():
            classifier = self._running.get()
            group = classifier.forward(np.concatenate([job.tensor for job in jobs]))
            begin = partial(self._begin, jobs=jobs, request=request, predictors=classifier.predictors())
            works, seconds_scoring = run_together(classifier, group, begin, on_progress)
            seconds = time.perf_counter() - started
            shares = seconds / len(jobs), seconds_scoring / len(jobs)
            return classifier.workers.map(partial(self._describe_maps, request=request, shares=shares), jobs, works)

    def _begin(
        self, number: int, forward: Forward, jobs: Sequence[Job], request: Request, predictors: Predictors
    ) -> InWork | OrtcamError:
        """Begin the `number`-th photo of a group: find its targets, and begin the method's run."""
        if not all(np.isfinite(one).all() for one in (forward.activations, forward.logits, *forward.results)):
            return not_finite(self.model.name, "this image")
        if not self.model.contract.classifies:
            return self._begin_with_references(jobs[number], forward, request, predictors)
        count = len(forward.logits)
        if self.model.contract.is_in_doubt(count):
            self._doubt.see(forward.logits)
        targets = self.model.resolve_targets(request.targets, count) or top_targets(forward.logits, request.top_k)
        return InWork(forward, targets, self.method.begin(forward, targets, request.limits, predictors))

    def _begin_with_references(
        self, job: Job, forward: Forward, request: Request, predictors: Predictors
    ) -> InWork | OrtcamError:
        try:
            view = view_of(self.model, job.photo, job.crop, forward.size, self.detecting)
            forward, found = find_references(self.model.contract.task, request.targets, request.top_k, forward, view)
        except TargetError as error:  # of this photo; others may have the target
            return error
        return InWork(forward, found, self.method.begin(forward, found, request.limits, predictors), found)

    def _describe_maps(
        self, job: Job, work: InWork | OrtcamError, request: Request, shares: tuple[float, float]
    ) -> Explanation | OrtcamError:
        """Return the explanation of a photo whose run has finished."""
        if isinstance(work, OrtcamError):
            return work
        begin = time.perf_counter()
        forward, result = work.forward, work.result
        assert result is not None
        saliency = self.convention.saliency
        flat = tuple(bool(saliency(one, forward.size).max() <= 0) for one in result.sums[:, None])
        return Explanation(
            raw_maps=result.sums,
            weights=result.weights,
            targets=describe_references(work.references, forward.logits)
            if work.references
            else self._describe(cast("Sequence[Class]", work.targets), forward),
            errors=result.errors,
            source=job.source,
            photo=job.photo,
            crop=job.crop,
            convention=self.convention,
            input_size=forward.size,
            channels=len(forward.activations),
            live=result.live,
            scored=work.scored,
            layer=self.model.contract.layer,
            provider=self.provider,
            seconds=job.seconds + shares[0] + time.perf_counter() - begin,
            seconds_scoring=shares[1],
            flat=flat,
            provenance=provenance_of(
                self.model,
                self.method,
                job.origin,
                request.asked(self._asked_batch_size),
                self.batch_size,
                self._provider,
            ),
        )

    def _describe(self, targets: Iterable[Class], forward: Forward) -> tuple[Target, ...]:
        _, probabilities = self.model.contract.read_output(forward.output)
        return describe_targets(targets, self.model.labels, forward.logits, probabilities)


def _share_of(on_progress: Callable[[float], None], done: int, photos: int) -> Progress:
    """Return a callback for masked inputs that reports photos."""
    return lambda now, total: on_progress(done + photos * now / total)
