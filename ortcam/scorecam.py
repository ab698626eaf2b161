"""ScoreCAM: explains what a model sees in photos."""

from __future__ import annotations

import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ortcam.core.budget import Limits, MakePredictor, Method
from ortcam.core.convention import Convention, Floats, resolve_convention
from ortcam.core.provenance import Asked, Origin, Provenance, now
from ortcam.core.scores import Doubt
from ortcam.core.selection import select_distinct
from ortcam.core.targets import Target, for_many, make_targets
from ortcam.errors import ModelError, OrtcamError, whole
from ortcam.model.cam_model import CamModel
from ortcam.model.pixels import read_image
from ortcam.output.explanation import Explanation, warn_of_flat_maps
from ortcam.runtime.binding import ForwardPass, Group, Progress, Rows, Scorer
from ortcam.runtime.process import Reopened
from ortcam.runtime.providers import Provider, resolve_provider
from ortcam.runtime.running import FREE_THE_PROCESSOR, Running, run_model
from ortcam.runtime.session import RUNTIME_VERSION
from ortcam.runtime.threads import calm_blas, thread_count
from ortcam.work import Job, Work, in_turn, prepared_ahead, share_of, shifted, top_classes

MOST_PHOTOS = 16  # in a group
Stage = tuple[int, Work, NDArray[np.intp]]  # the number of a photo, its work, and the masks to run
_GROUPS_ON_DEVICES = 2  # at once: while the device scores one, the processor prepares the other


class ScoreCAM:
    """Score-CAM (Wang et al. 2019, arXiv 1910.01279) of an ONNX model, run by ONNX Runtime.

    >>> cam = ScoreCAM("model.onnx")                               # doctest: +SKIP
    >>> explanation = cam.explain("photo.jpg", targets=["collie"])  # doctest: +SKIP
    >>> explanation.save("out")                                     # doctest: +SKIP

    Attributes:
        model: the model file and its contract.
        convention: the definition of Score-CAM in use.
        provider: the execution provider that runs it.
    """

    def __init__(
        self,
        model: str | PathLike[str] | CamModel,
        provider: str | Provider = "auto",
        preset: str | Convention = "official",
        batch_size: int | Literal["auto"] | None = None,
        threads: int | None = None,
        layer: str | None = None,
    ) -> None:
        """Load a model file.

        Args:
            model: a file that ortcam exported: its path, its bytes, an onnx.ModelProto, or its CamModel.
            provider: ``auto`` (the best that loads), ``cpu``, ``cuda``, ``tensorrt``, ..., or an `ortcam.Provider`
                with options.
            preset: a name in `ortcam.PRESETS`, or a Convention.
            batch_size: masked images a run; None for 8 on CPUs and 16 elsewhere, or the model's own fixed batch;
                ``auto`` for what takes the least time, measured at the first start on this machine and kept in the
                cache directory.
            threads: CPU threads, at most one per processor; None for one per physical core, and for what is done with
                several photos at once between passes one per processor (at most 4 beside a GPU).
            layer: the target layer, where it is another than the file exposes: a module that the file names, or a value
                of its graph (see: ortcam inspect).

        Raises:
            ModelError: the file cannot be used; a LayerError where it has no such layer.
            ProviderError: the provider does not exist or does not load.
            OptionError: the preset does not exist, or a number makes no sense.
        """
        if batch_size is not None and batch_size != "auto":
            batch_size = whole("batch_size", batch_size, ", or 'auto'")
        threads = thread_count(threads)
        self.convention = resolve_convention(preset)
        provider = resolve_provider(provider)
        self.model = model if isinstance(model, CamModel) else CamModel(model)
        if layer is not None and not self.model.exposes(layer):
            from ortcam.runtime.layer import with_layer

            self.model = with_layer(self.model, layer)
        scored = self.convention.scored
        running = run_model(self.model, scored, provider, batch_size, threads)
        self.provider, self._provider = running.provider.name, running.provider
        self._asked_batch_size, self._batch_size = batch_size, running.scorer.batch_size
        reopen = partial(run_model, self.model, scored, running.provider, self._batch_size, threads)
        self._running = Reopened(reopen, running, forks=self.provider == "cpu")
        self._doubt = Doubt(self.model.name)

    @property
    def batch_size(self) -> int:
        """How many masked images a run has at most."""
        return self._batch_size

    @property
    def _scorer(self) -> Scorer:
        return self._running.get().scorer

    def explain(
        self,
        image: Any,
        targets: Any = None,
        top_k: int = 1,
        on_progress: Progress | None = None,
        *,
        budget: int | None = None,
        tolerance: float | None = None,
        selection: Method = "predict",
    ) -> Explanation:
        """Explain one photo.

        Args:
            image: a path, the bytes of a picture, a binary file that is open, an RGB photo uint8 [H,W,3], a Pillow
                image, or a preprocessed input tensor, float [1,C,H,W] (or the model's own layout).
            targets: class indices or labels, one or several, or ``"all"``; all of them come from the same forward
                passes. None for the most probable classes.
            top_k: how many those are.
            on_progress: called with (done, M) after every batch of masked inputs.
            budget: run at most so many masked inputs; None for all, the exact map. The blank input that some presets
                run for constant channels comes on top where all others are run. See docs/budget.md.
            tolerance: run masked inputs until the estimated error (1 - r) of every map is at most this.
            selection: what a budget does: ``predict`` the scores of the other channels, or ``top-std``: run the
                channels with the highest standard deviation and leave the others out (Faster-Score-CAM).

        Raises:
            ImageError: the image cannot be read or does not fit the model.
            TargetError: a class index or label that the model does not have.
            OptionError: a budget or tolerance that makes no sense.
        """
        limits, top_k = Limits(budget, tolerance, selection), whole("top_k", top_k)
        targets = list(targets) if isinstance(targets, Iterator) else targets
        job = self._prepare(image)
        (explanation,) = self._explain_group([job], targets, top_k, limits, on_progress)
        if isinstance(explanation, OrtcamError):
            raise explanation
        warn_of_flat_maps(explanation.targets, explanation.flat, explanation.layer)
        self._doubt.tell()
        return explanation

    def explain_batch(
        self,
        images: Iterable[Any],
        targets: Any = None,
        on_error: Callable[[Any, OrtcamError], None] | None = None,
        top_k: int = 1,
        on_progress: Callable[[float], None] | None = None,
        *,
        budget: int | None = None,
        tolerance: float | None = None,
        selection: Method = "predict",
    ) -> Iterator[Explanation]:
        """Explain many photos: batches are filled across them, and the next are decoded meanwhile.

        At most two groups of photos are held, the one that is scored and the one that is decoded; on CUDA two are
        scored at once. A group has as many photos as it takes to fill a batch: one, unless a budget is small.

        Args:
            images: as for `explain`; may be a generator.
            targets, top_k, budget, tolerance, selection: as for `explain`, the same for every photo.
            on_error: called with an image that failed and its error, and the others go on; None raises it.
            on_progress: called with the number of photos done, those at hand counted by the share that is done; on
                CUDA after every group.

        Yields:
            An Explanation per image that could be explained, in order; `source` tells which.
        """
        targets = for_many(images, targets, self.model.classes, self.model.labels, self.model.name)
        limits, top_k = Limits(budget, tolerance, selection), whole("top_k", top_k)
        done = 0
        on_device, process = self.provider in FREE_THE_PROCESSOR, os.getpid()
        at_once, decoders = (_GROUPS_ON_DEVICES, self._running.get().workers.count) if on_device else (1, 1)

        def explain(group: list[tuple[Any, Job | OrtcamError]]) -> deque[tuple[Any, Explanation | OrtcamError]]:
            ready = [job for _, job in group if not isinstance(job, OrtcamError)]
            report = None if on_progress is None or on_device else share_of(on_progress, done, len(ready))
            explained = self._explain_together(ready, targets, top_k, limits, report)
            return deque((image, job if isinstance(job, OrtcamError) else next(explained)) for image, job in group)

        ahead = prepared_ahead(images, self._prepare, self._group_size(limits), decoders)
        with closing(ahead), closing(in_turn(explain, ahead, at_once)) as groups:
            for group in groups:
                done += len(group)
                if on_progress is not None and on_device:
                    on_progress(done)
                while group:  # what was handed on is not held
                    image, outcome = group.popleft()
                    if isinstance(outcome, Explanation):
                        warn_of_flat_maps(outcome.targets, outcome.flat, outcome.layer)
                        self._doubt.tell()
                        yield outcome
                    elif on_error is None:
                        raise outcome
                    else:
                        on_error(image, outcome)
                    del image, outcome
                    if os.getpid() != process:
                        raise OrtcamError("this explain_batch was begun before a fork; begin another one in the child")

    def _prepare(self, image: Any) -> Job:
        begin = time.perf_counter()
        with calm_blas():
            pixels, origin = read_image(image)
            photo, tensor, crop = self.model.prepare(pixels)
        if origin is None:
            origin = Origin.of_array(tensor if photo is None or pixels.dtype.kind == "f" else photo)
        source = Path(image) if isinstance(image, str | PathLike) else None
        return Job(source, origin, photo, tensor, crop, time.perf_counter() - begin)

    def _group_size(self, limits: Limits) -> int:
        """Return how many photos fill a batch: those whose first stages have as many masked inputs."""
        most = self.model.batch or MOST_PHOTOS
        return min(most, -(-self.batch_size // limits.first_stage(self.model.channels, self.batch_size)))

    def _explain_together(
        self, jobs: list[Job], targets: Any, top_k: int, limits: Limits, on_progress: Progress | None
    ) -> Iterator[Explanation | OrtcamError]:
        """Explain photos, in groups of one input size."""
        for _, group in itertools.groupby(jobs, key=lambda job: job.tensor.shape):
            together = list(group)
            try:
                yield from self._explain_group(together, targets, top_k, limits, on_progress)
            except OrtcamError as error:
                if len(together) == 1:
                    yield error
                else:  # one of them may be to blame, or the memory that all of them need
                    for job in together:
                        yield from self._explain_together([job], targets, top_k, limits, on_progress)

    def _explain_group(
        self, jobs: list[Job], targets: Any, top_k: int, limits: Limits, on_progress: Progress | None = None
    ) -> list[Explanation | OrtcamError]:
        begin = time.perf_counter()
        with calm_blas():
            running = self._running.get()
            group = running.scorer.forward(np.concatenate([job.tensor for job in jobs]))
            surrogate = running.surrogates()

            def start(plain: ForwardPass) -> Work | OrtcamError:
                return self._begin(plain, targets, top_k, limits, surrogate)

            works = running.workers.map(start, group.passes)
            seconds_scoring = self._score(running, group, works, on_progress)
            share = (time.perf_counter() - begin) / len(jobs)

            def finish(job: Job, work: Work | OrtcamError) -> Explanation | OrtcamError:
                if isinstance(work, OrtcamError):
                    return work
                asked = Asked(
                    Asked.targets_of(targets),
                    top_k,
                    limits.budget,
                    limits.tolerance,
                    limits.method,
                    self._asked_batch_size,
                )
                return self._finish(job, work, share, seconds_scoring / len(jobs), asked)

            return running.workers.map(finish, jobs, works)

    def _begin(
        self, plain: ForwardPass, targets: Any, top_k: int, limits: Limits, surrogate: MakePredictor
    ) -> Work | OrtcamError:
        """Return what there is to do for a photo: classes, masks, and the plan of what is run."""
        if not np.isfinite(plain.activations).all() or not np.isfinite(plain.logits).all():
            return self._not_finite("this image")
        if self.model.contract.is_in_doubt(len(plain.logits)):
            self._doubt.see(plain.logits)
        classes = self.model.resolve_targets(targets, len(plain.logits)) or top_classes(plain.logits, top_k)
        masks = self.convention.masks(plain.activations, plain.size)
        selection = select_distinct(plain.activations, masks, self.convention)
        plan = limits.plan(plain.activations, selection, surrogate)
        return Work(plain, classes, masks, selection, plan, limits.most(selection))

    def _not_finite(self, what: str) -> ModelError:
        return ModelError(f"{self.model.name} returns NaN or infinite values for {what}")

    def _score(
        self, running: Running, group: Group, works: list[Work | OrtcamError], on_progress: Progress | None
    ) -> float:
        """Run the stages of all photos, each stage of all photos together; return the seconds of that."""
        begin, done = time.perf_counter(), 0
        total = sum(work.most for work in works if isinstance(work, Work))

        def observe(stage: Stage, seen: Floats) -> None:
            index, work, chosen = stage
            if np.isfinite(seen).all():
                work.plan.observe(seen)
                work.scored += len(chosen)
            else:
                works[index] = self._not_finite("a masked image")

        def go_on(index: int, work: Work | OrtcamError) -> Stage | None:
            return (index, work, work.plan.next()) if isinstance(work, Work) else None

        stages = running.choosers.map(go_on, range(len(works)), works)
        while ready := [stage for stage in stages if stage is not None and len(stage[2])]:
            rows = Rows.join([work.rows(index, chosen) for index, work, chosen in ready])
            report = None if on_progress is None else shifted(on_progress, done, total)
            align_corners = self.convention.mask_align_corners
            logits, log_probabilities = running.scorer.score(group, rows, align_corners, report)
            scores = log_probabilities if self.convention.weight == "probability" else logits
            ends = np.cumsum([len(chosen) for *_, chosen in ready])
            running.choosers.map(observe, ready, np.split(scores, ends[:-1]))  # all, before any goes on
            stages = running.choosers.map(go_on, range(len(works)), works)
            done += len(rows)
        if on_progress is not None and done < total:
            on_progress(total, total)
        return time.perf_counter() - begin

    def _finish(self, job: Job, work: Work, seconds: float, seconds_scoring: float, asked: Asked) -> Explanation:
        begin = time.perf_counter()
        plain = work.plain
        weights = self.convention.weights(work.channel_scores())
        sums = np.tensordot(weights, plain.activations, axes=1)
        if not work.masks.live.any():
            sums[:] = 0  # else the map would show how the sum of constants is rounded
        flat = tuple(bool(self.convention.saliency(one, plain.size).max() <= 0) for one in sums[:, None])
        return Explanation(
            raw_maps=sums,
            weights=weights,
            targets=self._targets(work.classes, plain),
            errors=work.errors(),
            source=job.source,
            photo=job.photo,
            crop=job.crop,
            convention=self.convention,
            input_size=plain.size,
            channels=len(plain.activations),
            live=int(work.masks.live.sum()),
            scored=work.scored,
            layer=self.model.contract.layer,
            provider=self.provider,
            seconds=job.seconds + seconds + time.perf_counter() - begin,
            seconds_scoring=seconds_scoring,
            flat=flat,
            provenance=self._provenance(job.origin, asked),
        )

    def _provenance(self, origin: Origin, asked: Asked) -> Provenance:
        contract = self.model.contract
        return Provenance(
            photo=origin,
            model=self.model.fingerprints,
            packed=False,
            output=contract.output,
            activation=contract.makes_probabilities,
            preprocessing=None if contract.preprocessing is None else contract.preprocessing.to_dict(),
            asked=asked,
            batch_size=self.batch_size,
            provider_options=self._provider.options,
            device_id=self._provider.device_id,
            onnxruntime=RUNTIME_VERSION,
            created=now(),
        )

    def predict(self, image: Any, top_k: int = 1) -> tuple[Target, ...]:
        """Return the most probable classes of an image, as `explain` takes it, without a map; errors as `explain`."""
        plain = self._scorer.forward(self.model.prepare(image)[1]).passes[0]
        if not np.isfinite(plain.logits).all():
            raise self._not_finite("this image")
        return self._targets(top_classes(plain.logits, whole("top_k", top_k)), plain)

    def _targets(self, classes: list[int], plain: ForwardPass) -> tuple[Target, ...]:
        _, probabilities = self.model.contract.read_output(plain.output)
        return make_targets(classes, self.model.labels, plain.logits, probabilities)

    def rehearse(self) -> tuple[int, tuple[int, int, int]]:
        """Run a plain and a masked pass on a grey photo: whether this file can be explained at all.

        Returns:
            How many classes the model has, and the shape (K, h, w) of its target layer.

        Raises:
            OrtcamError: it cannot.
        """
        shape = [dim or 32 for dim in self.model.input_shape]
        known = self.model.contract.preprocessing is not None
        grey = np.full((32, 32, 3), 128, np.uint8) if known else np.zeros((1, *shape), np.float32)
        group = self._scorer.forward(self.model.prepare(grey)[1])
        self._scorer.score(group, Rows.plain(1), self.convention.mask_align_corners)
        plain = group.passes[0]
        channels, height, width = plain.activations.shape
        return len(plain.logits), (channels, height, width)
