"""Compare a packed explainer with the engine, on synthetic photos."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ortcam.core.references import Detecting, Output, Similarity
from ortcam.core.targets import Targets
from ortcam.deploy.packed import PackedExplainer
from ortcam.errors import ModelError, OrtcamWarning, TargetError
from ortcam.explain.explainer import ModelExplainer
from ortcam.model.cam_model import CamModel
from ortcam.output.explanation import Explanation

ANY_BOX = Detecting(score=0.0)  # a detector finds little in a synthetic photo
_LEAST_AGREEMENT = 0.999
_PHOTOS = 3


def input_shape(model: CamModel) -> tuple[int, int, int]:
    """Return the shape of the image without the batch, which must be known."""
    first, second, third = model.usual_shape
    if first is None or second is None or third is None:
        raise ModelError(
            f"{model.shown} leaves its input size free, {list(model.input_shape)}, and an explainer is made for one; "
            "export it with --input-size or --preprocess"
        )
    return first, second, third


def rehearse_method(cam: ModelExplainer) -> None:
    """Explain a synthetic photo with the engine.

    Raises:
        OrtcamError: the method does not allow the model.
    """
    try:
        _explain(cam, 0, None, _targets(cam.model))
    except TargetError:  # nothing is seen; the method was allowed before
        return


def compare(cam: ModelExplainer, explainer: PackedExplainer, budget: int | None) -> tuple[float | None, float | None]:
    """Explain a synthetic photo with the file and with the engine; return r and the largest difference of the maps.

    With a budget, rounding may choose the other of two masks that are worth the same; so one photo of three is enough.
    Both are None if a detector or segmenter sees nothing in any photo.

    Raises:
        ModelError: they do not agree, or the file does not run.
    """
    compared = list[float]()
    for seed in range(_PHOTOS):
        targets = _targets(cam.model)
        classifies = cam.model.contract.classifies
        try:
            expected = None if classifies else _explain(cam, seed, budget, targets)
        except TargetError:  # the photo has none
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OrtcamWarning)  # of a flat map: it is the synthetic photo's
            packed = explainer.explain(_synthetic_image(cam.model, seed), targets)
        if expected is None:  # the classes of two runtimes might be another
            expected = _explain(cam, seed, budget, packed.targets[0].index)
        pairs = zip(packed.maps, expected.maps, strict=True)
        rs, differences = zip(*(_agreement(ours, theirs) for ours, theirs in pairs), strict=True)
        if min(rs) >= _LEAST_AGREEMENT:
            return min(rs), max(differences)
        compared.append(min(rs))
        if budget is None:
            break
    if not compared:
        return None, None
    raise ModelError(
        f"the packed {explainer.path.name} does not agree with the engine: r = {compared[-1]:.5f} of the maps; please "
        "report it (--no-verify, verify=False writes the file all the same)"
    )


def _targets(model: CamModel) -> Targets:
    """Return targets that need no photo; None for the surest."""
    if model.contract.task == "embed":
        vector = np.random.default_rng(0).standard_normal(model.reference_sizes[0]).astype(np.float32)
        return [Similarity(vector), Similarity(-vector)]  # the map of one may be flat
    return [Output(0), Output(0, -1)] if model.contract.task == "value" else None


def _agreement(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> tuple[float, float]:
    """Return r and the largest difference of two maps."""
    difference = float(np.abs(ours - theirs).max())
    varies = theirs.std() > 0 and ours.std() > 0
    return float(np.corrcoef(ours.ravel(), theirs.ravel())[0, 1]) if varies else float(difference < 1e-3), difference


def _explain(cam: ModelExplainer, seed: int, budget: int | None, targets: Targets) -> Explanation:
    """Explain a synthetic photo with the engine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OrtcamWarning)
        return cam.explain(_synthetic_image(cam.model, seed), budget=budget, targets=targets)


def _synthetic_image(model: CamModel, seed: int) -> Any:
    """Return a synthetic photo, or noise if the model takes tensors."""
    if model.contract.preprocessing is not None:
        return _synthetic_photo(seed)
    return np.random.default_rng(seed).standard_normal((1, *input_shape(model))).astype(np.float32)


def _synthetic_photo(seed: int) -> np.ndarray[Any, Any]:
    """Return smooth blobs of colour under noise, uint8 [240,320,3]; the same at every call."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:240, 0:320].astype(np.float32)
    photo = np.full((240, 320, 3), 96, np.float32)
    for _ in range(12):
        centre_y, centre_x, width = rng.uniform(0, 240), rng.uniform(0, 320), rng.uniform(15, 60)
        blob = np.exp(-((y - centre_y) ** 2 + (x - centre_x) ** 2) / (2 * width**2))
        photo += blob[:, :, None] * rng.uniform(-120, 160, 3)
    return np.clip(photo + rng.normal(0, 12, photo.shape), 0, 255).astype(np.uint8)
