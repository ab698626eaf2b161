"""Run a packed explainer from Python, with the files and labels of `ScoreCAM`."""

from __future__ import annotations

import json
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
from ortcam.core.scores import Doubt
from ortcam.core.selection import ErrorEstimate
from ortcam.core.targets import Class, Target, Targets, describe_targets, resolve_targets, top_targets
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
from ortcam.model.contract import EXPLAINER, EXPLAINER_FORMAT, Contract
from ortcam.model.image import as_photo
from ortcam.model.pixels import read_image
from ortcam.model.source import ModelSource, read_proto
from ortcam.output.explanation import Pictures, warn_of_flat_maps
from ortcam.output.render import place_map
from ortcam.runtime.process import Reopened
from ortcam.runtime.providers import Provider, ProviderLike, create_on, open_on_provider, resolve_provider
from ortcam.runtime.scorer import Progress
from ortcam.runtime.session import RUNTIME_ERRORS, RUNTIME_VERSION, Opened, make_options
from ortcam.runtime.threads import thread_count

if TYPE_CHECKING:
    from ortcam.core.pictures import Image

# The facts in the metadata entry `ortcam.explainer`.
_FACTS: dict[str, type | tuple[type, ...]] = {
    "method": dict,
    "preset": str,
    "budget": (int, type(None)),
    "batch_size": int,
    "raw": bool,
    "default_target": (int, type(None)),
    "input_shape": list,
    "classes": int,
    "scores": str,
    "source": dict,
    "ortcam": str,
}
_MOST_MAP_BYTES = 2 << 30


@dataclass(frozen=True, repr=False)
class PackedExplanation(Pictures):
    """The maps of a packed explainer for one photo.

    Attributes:
        maps: float32 [T,H,W] in [0,1] at the photo's size; 0 where preprocessing cut the photo off.
        targets: the T classes, in the order of the maps.
        errors: the estimated error of each map; None if it is unknown: with fewer than 8 masked images, in a file that
            an older ortcam packed, or with another method than Score-CAM.
        source, photo, crop, provenance: as in `Explanation`.
        scored: the number of masked images that were run; with a method of one pass, of runs of the model's tail.
        layer, preset, provider: the target layer, the preset and the execution provider.
        convention: the definition of Score-CAM, or the last steps of another method's maps; None if an older ortcam
            packed the file with a convention that is not a preset.
        seconds: wall time of the explanation.
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
    """

    def __init__(self, path: str | PathLike[str], provider: ProviderLike = "auto", threads: int | None = None) -> None:
        """Load a packed explainer.

        Args:
            path: the file.
            provider: as for `ScoreCAM`.
            threads: the number of CPU threads, at most one per processor; None for one per physical core.

        Raises:
            ModelError: the file cannot be used.
            ProviderError: the provider does not load.
        """
        self.path = Path(path)
        source = ModelSource(self.path)
        self._fingerprint = source.fingerprint
        self.contract, self.facts = read_facts(self.path)
        threads = thread_count(threads)
        opened = _Session(source, resolve_provider(provider), threads)
        self._provider = opened.provider
        self._running = Reopened(partial(_Session, source, self._provider, threads), opened, self.provider == "cpu")
        names = [output.name for output in opened.session.get_outputs()]
        self._scores, self._states_error = names[0], "error" in names
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
            targets: class indices or labels, one or several, or ``"all"``; None for the most probable classes.
            top_k: the number of classes, if `targets` is None. More than one class takes a second run, because the file
                finds only the top class.
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
        words = list(words) if isinstance(words, Iterator) else words
        wanted = resolve_targets(words, self.facts["classes"], self.contract.labels, self.path.name)
        classes = [-1] if wanted is None else [one.index for one in wanted]
        pixels, origin = read_image(image)
        photo, feed, crop = self._prepare(pixels)
        if origin is None:
            origin = Origin.of_array(feed if photo is None or pixels.dtype.kind == "f" else photo)
        self._check_size(len(classes), feed)
        scores, found, maps, scored, errors = self._run(feed, classes)
        if wanted is None and top_k > 1:
            best = top_targets(scores, top_k)
            self._check_size(len(best), feed)
            scores, found, maps, scored, errors = self._run(feed, [one.index for one in best])
        if self.contract.is_in_doubt(len(scores)):
            self._doubt.see(scores)
        if not self.facts["raw"]:
            size = (crop.bottom, crop.right) if photo is None else photo.shape[:2]
            maps = np.stack([place_map(one, crop, size) for one in maps])
        explained = [Class(int(index)) for index in found]
        return PackedExplanation(
            maps=maps,
            targets=describe_targets(explained, self.contract.labels, *self.contract.read_output(scores)),
            errors=tuple(map(_as_estimate, errors)),
            source=Path(image) if isinstance(image, str | PathLike) else None,
            photo=photo,
            crop=crop,
            scored=int(scored[0]),
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
        known = self.contract.preprocessing
        return Provenance(
            photo=origin,
            model=(self._fingerprint,),
            packed=True,
            output=self.contract.output,
            activation=self.contract.makes_probabilities,
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
        targets = list(targets) if isinstance(targets, Iterator) else targets
        resolve_targets(targets, self.facts["classes"], self.contract.labels, self.path.name)
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

    def _run(self, feed: NDArray[Any], targets: list[int]) -> tuple[NDArray[Any], ...]:
        """Return scores [N], target_class [T], saliency [T,H,W], scored [1] and error [T,3]."""
        names = [self._scores, "target_class", "saliency", "scored", *(["error"] if self._states_error else [])]
        inputs = {"image": np.ascontiguousarray(feed), "target": np.array(targets, np.int64)}
        try:
            made = self._running.get().session.run(names, inputs)
        except RUNTIME_ERRORS as error:
            said = re.search(r"Name:'ortcam: ([^']*)'", str(error))
            if said is None:
                raise ModelError(f"ONNX Runtime cannot run {self.path.name}: {one_line(error)}") from error
            raise ModelError(f"{self.path.name}: {said[1]}") from error
        unknown = [] if self._states_error else [np.full((len(made[1]), 3), np.nan, np.float32)]
        return (*made, *unknown)


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


def describe_run(facts: dict[str, Any]) -> str:
    """Return a few words for the method of a packed explainer: its options, or the preset and budget of Score-CAM."""
    method = dict(facts["method"])
    name = method.pop("name")
    if name == "score-cam":
        passes = "every channel" if facts["budget"] is None else f"a budget of {facts['budget']} masked images"
        return f"{facts['preset']} Score-CAM with {passes}"
    options = ", ".join(f"{option} {value}" for option, value in method.items())
    return f"{name} ({options})" if options else str(name)


def read_facts(path: Path) -> tuple[Contract, dict[str, Any]]:
    """Return the contract and the facts in the metadata of a packed explainer.

    Raises:
        ModelError: the file is missing, is not a packed explainer, or has a newer format.
    """
    return parse_facts({entry.key: entry.value for entry in read_proto(path).metadata_props}, path)


def parse_facts(entries: dict[str, str], path: Path) -> tuple[Contract, dict[str, Any]]:
    """Return the contract and the facts from metadata entries; see `read_facts`."""
    if EXPLAINER not in entries:
        raise ModelError(f"{path} is not a packed explainer; expected a file that `ortcam pack` wrote")
    try:
        facts = json.loads(entries[EXPLAINER])
        found = facts["format"]
        if found != EXPLAINER_FORMAT:
            raise ModelError(f"{path} has format {found!r}; this ortcam reads format {EXPLAINER_FORMAT}: pack it again")
        facts.setdefault("method", {"name": "score-cam"})  # an older ortcam packed no other method
        wrong = [name for name, kinds in _FACTS.items() if not isinstance(facts[name], kinds)]
        if wrong or not {"file", "sha256"} <= facts["source"].keys() or "name" not in facts["method"]:
            raise ValueError(f"{EXPLAINER} lacks {(wrong or ['source'])[0]}")
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{path} has metadata that cannot be read: {one_line(error)}; pack it again") from error
    return Contract.from_metadata(entries, str(path)), facts
