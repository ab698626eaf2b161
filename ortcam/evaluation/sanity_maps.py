"""Explain the photos of a sanity check with the original model and with randomised models."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import numpy as np

from ortcam.core.budget import Limits, Predictors
from ortcam.core.convention import Convention, Floats, upsample
from ortcam.core.forward import Forward
from ortcam.core.pictures import Photo
from ortcam.core.references import Detecting, Reference
from ortcam.core.targets import Target, Wanted, top_targets
from ortcam.errors import DatasetError, OrtcamError, OrtcamWarning
from ortcam.evaluation.rows import Failure
from ortcam.evaluation.similarity import Similarity, compare, is_flat
from ortcam.explain.explainer import ModelExplainer
from ortcam.model.cam_model import ModelLike
from ortcam.output.explanation import Explanation
from ortcam.output.render import draw_overlay, place_map, shrink_photo
from ortcam.runtime.providers import ProviderLike

if TYPE_CHECKING:
    from ortcam.core.method import Method, Run
    from ortcam.core.provenance import Origin

_LONGEST = 320  # pixels of a picture that is kept


class Watched:
    """A method that keeps the plain pass and the target of the photo that was explained last; else itself."""

    def __init__(self, method: Method) -> None:
        self._method = method
        self.forward: Forward | None = None
        self.target: Wanted | None = None

    def begin(self, forward: Forward, targets: Sequence[Wanted], limits: Limits, predictors: Predictors) -> Run:
        self.forward, self.target = forward, targets[0]
        return self._method.begin(forward, targets, limits, predictors)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method, name)


@dataclass(frozen=True)
class PhotoMaps:
    """The map of one photo by one model, and the plain sum of the target layer's channels.

    Attributes:
        raw: float32 [h,w], the map before the last steps of the convention.
        summed: float32 [h,w], the sum of the channels: a map that depends on no class.
        size: the size (H, W) of the model's input.
        convention: the last steps.
        wanted: the target of the map.
        explained: its description, with its score.
        top: the index of the most probable class; None for a model of another task.
        overlay: uint8 [H',W',3] RGB, the map over the photo, at most 320 pixels long; None if it is not kept.
    """

    raw: Floats
    summed: Floats
    size: tuple[int, int]
    convention: Convention
    wanted: Wanted
    explained: Target
    top: int | None
    overlay: Photo | None

    @property
    def score(self) -> float:
        """The probability of the class; the score of another target by the model that made the map."""
        return self.explained.probability if self.explained.place is None else self.explained.logit

    @property
    def is_flat(self) -> bool:
        """Whether the drawn map is the same everywhere."""
        return is_flat(self.convention.saliency(self.raw[None], self.size)[0])

    def compare(self, other: PhotoMaps) -> Similarity | None:
        """Return the similarity of the two maps; None if one of them is flat."""
        return self._compare(other, self.raw, other.raw)

    def compare_sums(self, other: PhotoMaps) -> Similarity | None:
        """Return the similarity of the sums of the channels; None if one of them is flat."""
        return self._compare(other, self.summed, other.summed)

    def _compare(self, other: PhotoMaps, one_raw: Floats, other_raw: Floats) -> Similarity | None:
        # Maps of photos of several sizes are compared at the size of the first.
        raws, size = (one_raw, other_raw), self.size
        drawn = [self.convention.saliency(raw[None], size)[0] for raw in raws]
        signed = [upsample(raw, size, self.convention.map_align_corners) for raw in raws]
        return compare(drawn[0], drawn[1], (signed[0], signed[1]))


@dataclass(frozen=True)
class Known:
    """A photo and the map of the original model.

    Attributes:
        name: the photo's name, unique in a run.
        image: the image as it was given.
        maps: the maps.
        origin: the photo's hash.
        picture: uint8 [H',W',3] RGB, the photo, at most 320 pixels long; None if it is not kept.
    """

    name: str
    image: Any
    maps: PhotoMaps
    origin: Origin
    picture: Photo | None


@dataclass(frozen=True)
class Explaining:
    """How every model of a run is explained. The attributes are those of `ortcam.evaluation.sanity`."""

    method: Method
    budget: int | None
    layer: str | None
    provider: ProviderLike
    batch_size: int | Literal["auto"] | None
    threads: int | None
    detecting: Detecting | None = None

    def open(self, model: ModelLike) -> ModelExplainer:
        """Load a model."""
        return ModelExplainer(
            model, cast("Method", Watched(self.method)), self.provider, self.batch_size, self.threads, self.layer,
            self.detecting,
        )  # fmt: skip

    def explain(self, explainer: ModelExplainer, image: Any, target: Any, draws: bool) -> _Explained:
        """Explain one photo. A flat map gives no warning: it is counted.

        Args:
            explainer: from `open`.
            image: the photo.
            target: the class; None for the top class; or a target, or references, as `ortcam.core.readers.resolve`.
            draws: whether an overlay is kept.

        Raises:
            OrtcamError: as `ModelExplainer.explain`.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OrtcamWarning)
            explanation = explainer.explain(image, target, budget=self.budget)
        watched = cast("Watched", explainer.method)
        forward, wanted = watched.forward, watched.target
        assert forward is not None and wanted is not None
        maps = PhotoMaps(
            raw=explanation.raw_maps[0],
            summed=forward.activations.sum(axis=0),
            size=explanation.input_size,
            convention=explanation.convention,
            wanted=wanted,
            explained=explanation.targets[0],
            top=None if isinstance(wanted, Reference) else top_targets(forward.logits, 1)[0].index,
            overlay=_draw(explanation) if draws else None,
        )
        return _Explained(maps, explanation)


class _Explained(NamedTuple):
    maps: PhotoMaps
    explanation: Explanation


def explain_original(
    explaining: Explaining,
    explainer: ModelExplainer,
    photos: Sequence[tuple[str, Any]],
    target: Any,
    pictures: int,
    on_error: Callable[[Any, OrtcamError], None] | None,
    on_photo: Callable[[], None],
) -> tuple[list[Known], list[Failure]]:
    """Explain every photo with the original model.

    Args:
        explaining: the method and its options.
        explainer: of the original model.
        photos: the name and the image of each photo.
        target: the class, or another target; None for each photo's top class, surest box or largest region.
        pictures: the number of photos whose pictures are kept.
        on_error: called with each photo that cannot be explained and its error. If None, the error is raised.
        on_photo: called after each photo.

    Raises:
        DatasetError: no photo can be explained.
        TargetError: the class is unknown.
    """
    known, failures = list[Known](), list[Failure]()
    if target is not None and explainer.model.classes is not None and explainer.model.contract.classifies:
        explainer.model.resolve_targets(target, explainer.model.classes)
    for name, image in photos:
        draws = len(known) < pictures
        try:
            maps, explanation = explaining.explain(explainer, image, target, draws)
        except OrtcamError as error:
            if on_error is None:
                raise
            on_error(image, error)
            failures.append(Failure(name, str(error)))
        else:
            picture = shrink_photo(_photo_of(explanation), _LONGEST) if draws else None
            known.append(Known(name, image, maps, explanation.provenance.photo, picture))
        on_photo()
    if not known:
        raise DatasetError(f"0 of {len(photos)} photos can be explained; the first error: {failures[0].error}")
    return known, failures


def explain_stage(
    explaining: Explaining, model: ModelLike, known: Sequence[Known], on_photo: Callable[[], None]
) -> list[PhotoMaps | str]:
    """Explain every photo with a randomised model, for the target that the original model's map explains.

    Args:
        explaining: the method and its options.
        model: the randomised model.
        known: the photos.
        on_photo: called after each photo.

    Returns:
        The maps of each photo, or the reason why there are none: random weights may give infinite scores.
    """
    found = list[PhotoMaps | str]()
    with explaining.open(model) as explainer:
        for one in known:
            try:
                draws = one.picture is not None
                wanted = one.maps.wanted
                again = [wanted] if isinstance(wanted, Reference) else wanted.index
                found.append(explaining.explain(explainer, one.image, again, draws).maps)
            except OrtcamError as error:
                found.append(str(error))
            on_photo()
    return found


def _draw(explanation: Explanation) -> Photo:
    """Draw the map over the photo, both at the size of a kept picture: photos may have many megapixels."""
    small = shrink_photo(_photo_of(explanation), _LONGEST)
    height, width = small.shape[:2]
    crop = explanation.crop.resized(explanation.photo_size, (height, width))
    return draw_overlay(small, place_map(explanation.input_maps[0], crop, (height, width)), crop)


def _photo_of(explanation: Explanation) -> Photo:
    if explanation.photo is not None:
        return explanation.photo
    return np.full((*explanation.photo_size, 3), 128, np.uint8)
