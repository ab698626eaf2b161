"""Load an explainer: a model file with a method, or a packed explainer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Literal

from ortcam.core.convention import Convention
from ortcam.core.references import Detecting
from ortcam.errors import LayerError, OptionError, PackedModelError
from ortcam.explain.explainer import ModelExplainer
from ortcam.explain.scorecam import ScoreCAM
from ortcam.methods import make_method, with_preset
from ortcam.model.cam_model import CamModel, ModelLike
from ortcam.runtime.providers import ProviderLike

if TYPE_CHECKING:
    from ortcam.core.method import Method
    from ortcam.explain.protocol import Explainer


_log = logging.getLogger("ortcam")


def load_explainer(
    model: ModelLike,
    method: str | Method = "score-cam",
    *,
    preset: str | Convention | None = None,
    provider: ProviderLike = "auto",
    batch_size: int | Literal["auto"] | None = None,
    threads: int | None = None,
    layer: str | Sequence[str] | None = None,
    detecting: Detecting | None = None,
) -> Explainer:
    """Load a model file, or a packed explainer.

    Args:
        model: a model file, or the path of a packed explainer.
        method: the name of a method, such as ``score-cam`` or ``cam`` (`ortcam.methods.METHODS`), or a method with
            options, such as ``RISE(masks=1000)``. ``auto`` is ``fused``, and ``score-cam`` for a model that fused does
            not suit, or if a preset is given; the logger says which.
        preset: the definition of Score-CAM; None for that of `ScoreCAM`.
        provider, batch_size, threads, layer, detecting: as for `ModelExplainer`.

    Raises:
        OptionError: the method is unknown, or an option does not suit the method or the file.
        ModelError, ProviderError: as `ModelExplainer` and `PackedExplainer`.
    """
    if method == "auto":
        method = "score-cam"
        if preset is None:
            try:
                model = model if isinstance(model, CamModel) else CamModel(model)
                if not model.contract.classifies:
                    return ScoreCAM(model, provider, None, batch_size, threads, _single(layer), detecting)
                return ModelExplainer(model, make_method("fused"), provider, batch_size, threads, layer)
            except PackedModelError:
                pass
            except LayerError as error:
                _log.info("score-cam explains the model, because fused does not suit it: %s", error)
    chosen = make_method(method) if isinstance(method, str) else method
    defined = with_preset(chosen, preset)
    try:
        if preset is not None:
            return ScoreCAM(model, provider, defined.convention, batch_size, threads, _single(layer), detecting)
        if method == "score-cam":
            return ScoreCAM(model, provider, None, batch_size, threads, _single(layer), detecting)
        return ModelExplainer(model, chosen, provider, batch_size, threads, layer, detecting)
    except PackedModelError:
        if not isinstance(model, str | PathLike):
            raise
    given = {"preset": preset, "batch_size": batch_size, "layer": layer}
    unsuited = [name for name, value in given.items() if value is not None]
    unsuited += ["method"] if chosen != make_method("score-cam") else []
    if unsuited:
        raise OptionError(f"{model} is packed with its layer and method; leave {', '.join(unsuited)} out")
    from ortcam.deploy.packed import PackedExplainer  # late: a model file does without

    return PackedExplainer(model, provider, threads, detecting)


def _single(layer: str | Sequence[str] | None) -> str | None:
    """Return the one layer that Score-CAM takes."""
    if layer is None or isinstance(layer, str):
        return layer
    if len(layer) > 1:
        raise OptionError(f"got {len(layer)} layers; score-cam takes one: leave the others out")
    return layer[0] if layer else None
