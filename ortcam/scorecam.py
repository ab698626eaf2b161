"""ScoreCAM: explains what a model sees in photos."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from os import PathLike
from typing import Any

import numpy as np

from ortcam.convention import Convention, Floats, resolve_convention
from ortcam.errors import OptionError, OrtcamError, OrtcamWarning
from ortcam.explanation import Explanation, Target
from ortcam.graph.scoring import build_scoring_graph
from ortcam.model import CamModel
from ortcam.preprocessing import Crop
from ortcam.render import resize_map
from ortcam.runtime.binding import ForwardPass, Progress, Scorer
from ortcam.runtime.providers import open_on_provider
from ortcam.runtime.session import create_session
from ortcam.selection import select_distinct

DEFAULT_BATCH = 16


class ScoreCAM:
    """Score-CAM (Wang et al. 2019, arXiv 1910.01279) of an ONNX model, run by ONNX Runtime.

    >>> cam = ScoreCAM("model.onnx")                               # doctest: +SKIP
    >>> explanation = cam.explain("photo.jpg", targets=["collie"])  # doctest: +SKIP
    >>> explanation.save("out")                                     # doctest: +SKIP

    Attributes:
        model: the model file and its contract.
        convention: the definition of Score-CAM in use.
        provider: the execution provider that runs it.
        batch_size: masked images a run.
    """

    def __init__(
        self,
        model: str | PathLike[str] | CamModel,
        provider: str = "auto",
        preset: str | Convention = "official",
        batch_size: int | None = None,
        threads: int | None = None,
    ) -> None:
        """Load a model file.

        Args:
            model: a file that ortcam exported, or its CamModel.
            provider: ``auto`` (the best that loads), ``cpu``, ``cuda``, ``tensorrt``, ...
            preset: a name in `ortcam.PRESETS`, or a Convention.
            batch_size: masked images a run; None for 16, or the model's own fixed batch.
            threads: CPU threads; None for one per physical core.

        Raises:
            ModelError: the file cannot be used.
            ProviderError: the provider does not exist or does not load.
            OptionError: the preset does not exist, or a number makes no sense.
        """
        batch_size = None if batch_size is None else _whole("batch_size", batch_size)
        threads = None if threads is None else _whole("threads", threads)
        self.convention = resolve_convention(preset)
        self.model = model if isinstance(model, CamModel) else CamModel(model)
        self.batch_size = self.model.batch or batch_size or DEFAULT_BATCH
        graph = build_scoring_graph(self.model.take_proto(), self.model.contract, self.convention.scored)
        session, chosen = open_on_provider(
            provider,
            lambda providers, log_severity: create_session(
                graph,
                providers,
                str(self.model.path),
                self.model.external_data_directory,
                threads,
                log_severity,
            ),
        )
        self.provider = chosen.name
        self._scorer = Scorer(
            session, self.model, chosen.device, self.batch_size, chosen.fixed_batch or bool(self.model.batch)
        )

    def explain(
        self, image: Any, targets: Any = None, top_k: int = 1, on_progress: Progress | None = None
    ) -> Explanation:
        """Explain one photo.

        Args:
            image: a path, an RGB photo uint8 [H,W,3], a Pillow image, or a preprocessed input tensor, float
                [1,C,H,W] (or the model's own layout).
            targets: class indices or labels, one or several; all of them come from the same forward passes.
                None for the most probable classes.
            top_k: how many those are.
            on_progress: called with (done, M) after every batch of masked inputs.

        Raises:
            ImageError: the image cannot be read or does not fit the model.
            TargetError: a class index or label that the model does not have.
        """
        begin = time.perf_counter()
        photo, tensor, crop = self.model.prepare(image)
        plain = self._scorer.forward(tensor)
        classes = self.model.resolve_targets(targets, len(plain.logits)) or _top(plain.logits, top_k)

        masks = self.convention.masks(plain.activations, plain.size)
        selection = select_distinct(plain.activations, masks, self.convention)
        begin_scoring = time.perf_counter()
        logits, log_probabilities = self._scorer.score(
            plain,
            selection.channels,
            selection.affine,
            classes,
            self.convention.mask_align_corners,
            on_progress,
        )
        seconds_scoring = time.perf_counter() - begin_scoring

        weights = self.convention.weights(selection.spread(logits), selection.spread(log_probabilities))
        sums = np.tensordot(weights, plain.activations, axes=1)
        input_maps = self.convention.saliency(sums, plain.size)
        maps = _place(input_maps, crop, photo.shape[:2] if photo is not None else (crop.bottom, crop.right))

        explained = tuple(self._target(index, plain) for index in classes)
        flat = tuple(bool(saliency.max() <= 0) for saliency in input_maps)
        self._warn_of_flat_maps(explained, flat)
        return Explanation(
            maps=maps,
            input_maps=input_maps,
            raw_maps=sums,
            weights=weights,
            targets=explained,
            photo=photo,
            crop=crop,
            channels=len(plain.activations),
            live=int(masks.live.sum()),
            scored=selection.scored,
            layer=self.model.contract.layer,
            preset=self.convention.name,
            provider=self.provider,
            seconds=time.perf_counter() - begin,
            seconds_scoring=seconds_scoring,
            flat=flat,
        )

    def rehearse(self) -> None:
        """Run a plain and a masked pass on a grey photo: whether this file can be explained at all.

        Raises:
            OrtcamError: it cannot.
        """
        shape = [dim or 32 for dim in self.model.input_shape]
        known = self.model.contract.preprocessing is not None
        grey = np.full((32, 32, 3), 128, np.uint8) if known else np.zeros((1, *shape), np.float32)
        plain = self._scorer.forward(self.model.prepare(grey)[1])
        affine = np.array([[0, 0, 1]], np.float32)
        self._scorer.score(plain, np.zeros(1, np.int64), affine, [0], self.convention.mask_align_corners)

    def explain_batch(
        self,
        images: Iterable[Any],
        targets: Any = None,
        on_error: Callable[[Any, OrtcamError], None] | None = None,
    ) -> Iterator[Explanation]:
        """Explain many photos one after the other; nothing is held but the photo in hand.

        Args:
            images: as for `explain`; may be a generator.
            targets: as for `explain`, the same for every photo.
            on_error: called with an image that failed and its error, and the others go on; None raises it.

        Yields:
            An Explanation per image that could be explained, in order.
        """
        if isinstance(images, str | PathLike):
            raise OptionError(f"images is the one path {str(images)!r}; expected several, or use explain")
        if isinstance(targets, Iterator):
            targets = list(targets)
        for image in images:
            try:
                explanation = self.explain(image, targets)
            except OrtcamError as error:
                if on_error is None:
                    raise
                on_error(image, error)
            else:
                yield explanation

    def _warn_of_flat_maps(self, explained: tuple[Target, ...], flat: tuple[bool, ...]) -> None:
        names = [target.name for target, is_flat in zip(explained, flat, strict=True) if is_flat]
        if names:
            layer = self.model.contract.layer
            message = f"the map of {', '.join(names)} is flat (all zero): nothing in layer {layer} speaks for it"
            warnings.warn(message, OrtcamWarning, stacklevel=3)

    def _target(self, index: int, plain: ForwardPass) -> Target:
        labels = self.model.labels
        logits = plain.logits.astype(np.float64)
        kind = self.model.contract.output
        if self.convention.scored == "output" and kind != "logits":
            probability = float(plain.output[index])
        elif kind == "sigmoid":
            probability = float(1 / (1 + np.exp(-logits[index])))
        else:
            exponentials = np.exp(logits - logits.max())
            probability = float(exponentials[index] / exponentials.sum())
        label = labels[index] if labels is not None and index < len(labels) else None
        return Target(index, label, float(plain.logits[index]), probability)


def _top(logits: Floats, count: int) -> list[int]:
    """Return the classes with the highest logits, best first; the lower index first among equals."""
    return [int(index) for index in np.argsort(-logits, kind="stable")[: _whole("top_k", count)]]


def _whole(name: str, number: Any) -> int:
    """Return a whole number from 1 of any integer type."""
    if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 1:
        raise OptionError(f"{name} is {number!r}; expected a whole number from 1")
    return int(number)


def _place(input_maps: Floats, crop: Crop, size: tuple[int, ...]) -> Floats:
    """Put maps [T,h,w] of the crop into maps [T,H,W] of the photo; 0 where the model did not look."""
    maps = np.zeros((len(input_maps), *size), np.float32)
    for row, saliency in enumerate(input_maps):
        maps[row, crop.top : crop.bottom, crop.left : crop.right] = resize_map(saliency, crop.height, crop.width)
    return maps
