"""Run a packed explainer from Python, with the files and labels of `ScoreCAM`."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from ortcam.core.budget import Selecting
from ortcam.core.convention import PRESETS, Convention
from ortcam.core.pictures import Crop, Photo
from ortcam.core.provenance import Asked, Origin, Provenance, now
from ortcam.core.references import Detecting
from ortcam.core.scores import Doubt
from ortcam.core.selection import ErrorEstimate
from ortcam.core.targets import Target, Targets
from ortcam.core.view import View
from ortcam.deploy.facts import describe_run, read_facts
from ortcam.deploy.questions import ClassQuestions, Questions, TaskQuestions
from ortcam.errors import (
    ImageError,
    ModelError,
    OptionError,
    OrtcamError,
    TargetError,
    one_line,
    whole,
)
from ortcam.explain.signatures import BEHIND_THE_NAMES, OnError, check_images, names_from_the_third
from ortcam.model.image import as_photo
from ortcam.model.pixels import read_image
from ortcam.model.source import ModelSource
from ortcam.output.explanation import Pictures, warn_of_flat_maps
from ortcam.output.render import place_map
from ortcam.runtime.process import Reopened
from ortcam.runtime.providers import Provider, ProviderLike, create_on, open_on_provider, resolve_provider
from ortcam.runtime.scorer import Progress
from ortcam.runtime.session import RUNTIME_ERRORS, RUNTIME_VERSION, Opened, make_options
from ortcam.runtime.threads import thread_count

if TYPE_CHECKING:
    from ortcam.core.pictures import Image

_MOST_MAP_BYTES = 2 << 30


@dataclass(frozen=True, repr=False)
class PackedExplanation(Pictures):
    """The maps of a packed explainer for one photo.

    Attributes:
        maps: float32 [T,H,W] in [0,1] at the photo's size; 0 where preprocessing cut the photo off.
        targets: the T classes or other targets, in the order of the maps.
        errors: the estimated error of each map; None if it is unknown: with fewer than 8 masked images, in a file that
            an older ortcam packed, or with another method than Score-CAM.
        source, photo, crop, provenance: as in `Explanation`.
        scored: the number of masked images that were run; with a method of one pass, of runs of the model's tail.
        layer, preset, provider: the target layer, the preset and the execution provider.
        convention: the definition of Score-CAM, or the last steps of another method's maps; None if an older ortcam
            packed the file with a convention that is not a preset.
        seconds: wall time of the explanation.
        input_maps: float32 [T,h_in,w_in], the maps at the model's input size; None for a file that takes photos, whose
            maps have the photo's size.
        channels, live, seconds_scoring: None; a packed explainer does not return them.
    """

    maps: NDArray[np.float32]
    targets: tuple[Target, ...]
    errors: tuple[ErrorEstimate | None, ...]
    source: Path | None
    photo: Photo | None
    crop: Crop
    scored: int
    layer: str
    preset: str
    convention: Convention | None
    provider: str
    seconds: float
    provenance: Provenance
    input_maps: NDArray[np.float32] | None = None
    channels: None = None
    live: None = None
    seconds_scoring: None = None

    @property
    def flat(self) -> tuple[bool, ...]:
        """Whether each of the T maps is flat (the layer shows no evidence for the class)."""
        return tuple(bool(one.max() <= 0) for one in self.maps)

    def map_at(self, place: int) -> NDArray[np.float32]:
        one: NDArray[np.float32] = self.maps[self._checked_place(place)]
        return one


class PackedExplainer:
    """A packed explainer (`ortcam pack`), run by ONNX Runtime. It can be pickled, and is a context manager.

    Attributes:
        path: the file.
        contract: the contract of the model, from the metadata.
        facts: the facts of the packing, from the metadata: method, preset, budget, ...
        provider: the execution provider that runs the file.
        detecting: which boxes of a detector count.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        provider: ProviderLike = "auto",
        threads: int | None = None,
        detecting: Detecting | None = None,
    ) -> None:
        """Load a packed explainer.

        Args:
            path: the file.
            provider: as for `ScoreCAM`.
            threads: the number of CPU threads, at most one per processor; None for one per physical core.
            detecting: which boxes of a detector count; None for a score of 0.25 and an overlap of 0.45.

        Raises:
            ModelError: the file cannot be used.
            ProviderError: the provider does not load.
        """
        self.path, self.detecting = Path(path), detecting or Detecting()
        source = ModelSource(self.path)
        self._fingerprint = source.fingerprint
        self.contract, self.facts = read_facts(self.path)
        threads = thread_count(threads)
        opened = _Session(source, resolve_provider(provider), threads)
        self._provider = opened.provider
        self._running = Reopened(partial(_Session, source, self._provider, threads), opened, self.provider == "cpu")
        self._outputs = [output.name for output in opened.session.get_outputs()]
        self._questions: Questions
        if self.contract.classifies:
            self._questions = ClassQuestions(self.contract, self.facts, self.path.name)
        else:
            self._questions = TaskQuestions(self.contract, self.facts, self._embed, self.path.name)
        self._doubt = Doubt(self.facts["source"]["file"])

    @property
    def provider(self) -> str:
        """The execution provider that runs the file."""
        return self._provider.name

    def close(self) -> None:
        """Release the session. After that, nothing can be explained."""
        self._running.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @names_from_the_third("top_k")
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
    ) -> PackedExplanation:
        """Explain one photo.

        Args:
            image: a path, an RGB photo uint8 [H,W,3], or a Pillow image; for a file that takes tensors, a preprocessed
                input tensor float32 [1,C,H,W] (or the model's own layout).
            targets: as for `ScoreCAM`: class indices or labels, one or several, or ``"all"``; None for the most
                probable classes. Of other models boxes, similarities or outputs too; a region is named by its class.
            top_k: the number of targets, if `targets` is None. More than one takes a second run, because the file finds
                only the surest; so does the number of a detection. A reference picture takes a run too.
            on_progress: called once, with (M, M), after the M masked inputs were run.
            budget, tolerance, selection: the values in the file. Other values are refused.

        Raises:
            ImageError: the image cannot be read or does not fit the model.
            TargetError: a class index or label is unknown.
            OptionError: the budget, tolerance or selection differs from the file.
        """
        self._check_limits(budget, tolerance, selection)
        explanation = self._explain(image, targets, top_k)
        if on_progress is not None:
            on_progress(explanation.scored, explanation.scored)
        warn_of_flat_maps(explanation, BEHIND_THE_NAMES)
        self._doubt.tell(BEHIND_THE_NAMES)
        return explanation

    def _check_limits(self, budget: int | None, tolerance: float | None, selection: str) -> None:
        packed = self.facts["budget"]
        if budget not in (None, packed) or tolerance is not None or selection != "predict":
            raise OptionError(
                f"{self.path.name} is packed with its layer and method ({describe_run(self.facts)}); leave budget, "
                "tolerance and selection out, or explain with the model file"
            )

    def _explain(self, image: Image, words: Targets, top_k: int) -> PackedExplanation:
        begin = time.perf_counter()
        top_k = whole("top_k", top_k)
        words = self._questions.check(list(words) if isinstance(words, Iterator) else words)
        pixels, origin = read_image(image)
        photo, feed, crop = self._prepare(pixels)
        if origin is None:
            origin = Origin.of_array(feed if photo is None or pixels.dtype.kind == "f" else photo)
        view = self._view(photo, crop)
        answer = self._questions.answer(words, top_k, partial(self._run, feed), view)
        made = answer.made
        if self.contract.classifies and self.contract.is_in_doubt(self.facts["classes"]):
            self._doubt.see(made[self.facts["scores"]])
        maps, input_maps = made["saliency"], None
        if not self.facts["raw"]:
            input_maps, maps = maps, np.stack([place_map(one, crop, view.photo_size) for one in maps])
        return PackedExplanation(
            maps=maps,
            input_maps=input_maps,
            targets=answer.targets,
            errors=tuple(map(_as_estimate, made["error"])),
            source=Path(image) if isinstance(image, str | PathLike) else None,
            photo=photo,
            crop=crop,
            scored=int(made["scored"][0]),
            layer=self.contract.layer,
            preset=self.facts["preset"],
            convention=self._convention,
            provider=self.provider,
            seconds=time.perf_counter() - begin,
            provenance=self._provenance(origin, Asked(Asked.targets_of(words), top_k, self.facts["budget"])),
        )

    @cached_property
    def _convention(self) -> Convention | None:
        try:
            return Convention.from_dict(self.facts["convention"])
        except (KeyError, OptionError):  # an older or a newer ortcam packed it
            return PRESETS.get(self.facts["preset"])

    def _provenance(self, origin: Origin, asked: Asked) -> Provenance:
        known, classifies = self.contract.preprocessing, self.contract.classifies
        return Provenance(
            photo=origin,
            model=(self._fingerprint,),
            packed=True,
            output=self.contract.output if classifies else self.contract.task,
            activation=self.contract.makes_probabilities if classifies else None,
            preprocessing=None if known is None else known.to_dict(),
            asked=asked,
            method=self.facts["method"],
            batch_size=self.facts["batch_size"],
            provider_options=self._provider.options,
            device_id=self._provider.device_id,
            onnxruntime=RUNTIME_VERSION,
            created=now(),
        )

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
    ) -> Iterator[PackedExplanation]:
        """Explain photos one after the other; otherwise as `ScoreCAM.explain_batch`."""
        check_images(images)
        self._check_limits(budget, tolerance, selection)
        targets = self._questions.check(list(targets) if isinstance(targets, Iterator) else targets)
        for done, image in enumerate(images, 1):
            try:
                explanation = self._explain(image, targets, top_k)
            except OrtcamError as error:
                if on_error is None:
                    raise
                on_error(image, error)
                continue
            finally:
                if on_progress is not None:
                    on_progress(done)
            warn_of_flat_maps(explanation)
            self._doubt.tell()
            yield explanation

    def _check_size(self, targets: int, feed: NDArray[Any]) -> None:
        """Refuse too many maps for the memory, because the file makes all maps at once."""
        photo = self.facts["raw"]
        pixels = feed.shape[0] * feed.shape[1] if photo else int(np.prod(feed.shape[1:]))
        if 4 * targets * pixels > _MOST_MAP_BYTES:
            raise TargetError(
                f"{targets} maps of this image take {4e-9 * targets * pixels:.0f} GB at once; ask for fewer classes, "
                "or explain with the model file, which draws one at a time"
            )

    def _prepare(self, pixels: NDArray[Any]) -> tuple[Photo | None, NDArray[Any], Crop]:
        """Return the photo, the input of the file, and the part of the photo that the model sees."""
        preprocessing = self.contract.preprocessing
        if not self.facts["raw"] or preprocessing is None:
            return self.contract.prepare(pixels, self.facts["input_shape"], self.path.name)
        if np.issubdtype(pixels.dtype, np.floating):
            raise ImageError(
                f"image has dtype {pixels.dtype}; {self.path.name} takes photos, uint8 [H,W,3]; "
                "for preprocessed tensors, pack it with --no-raw"
            )
        photo = as_photo(pixels)
        return photo, photo, preprocessing.crop(*photo.shape[:2])

    def _view(self, photo: Photo | None, crop: Crop) -> View:
        shape = self.facts["input_shape"]
        size = (shape[1], shape[2]) if self.contract.image_layout == "NCHW" else (shape[0], shape[1])
        photo_size = (crop.bottom, crop.right) if photo is None else photo.shape[:2]
        return View(crop, size, photo_size, self.contract.labels, self.path.name, self.detecting)

    def _embed(self, image: Image) -> NDArray[np.float32]:
        """Return the embedding [D] of a reference picture, from a run with an arbitrary reference."""
        _, feed, _ = self._prepare(read_image(image)[0])
        embedding: NDArray[np.float32] = self._run(feed, {"like": np.ones((1, self.facts["classes"]), np.float32)})[
            "embedding"
        ]
        return embedding

    def _run(self, feed: NDArray[Any], targets: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the outputs by name; `targets` holds the inputs beside the image."""
        self._check_size(max(map(len, targets.values())), feed)
        try:
            values = self._running.get().session.run(self._outputs, {"image": np.ascontiguousarray(feed), **targets})
        except RUNTIME_ERRORS as error:
            said = re.search(r"Name:'ortcam: ([^']*)'", str(error))
            if said is None:
                raise ModelError(f"ONNX Runtime cannot run {self.path.name}: {one_line(error)}") from error
            raise ModelError(f"{self.path.name}: {said[1]}") from error
        made = dict(zip(self._outputs, values, strict=True))
        made.setdefault("error", np.full((len(made["saliency"]), 3), np.nan, np.float32))  # an older ortcam's file
        return made


def _as_estimate(values: NDArray[np.float32]) -> ErrorEstimate | None:
    return None if np.isnan(values).any() else ErrorEstimate(*map(float, values))


class _Session:
    """A session of a packed explainer, and the provider that it runs on."""

    def __init__(self, source: ModelSource, wanted: Provider, threads: int | None) -> None:
        source.check_unchanged()
        path = source.path
        assert path is not None

        def create(provider: Provider, devices: list[Any], log_severity: int) -> Opened:
            options = make_options(threads)
            return Opened(create_on(provider, devices, path, source.shown, source.folder, options, log_severity))

        (self.session, _), self.provider = open_on_provider(wanted, create)

    def close(self) -> None:
        """Do nothing: the session ends with its last reference."""
