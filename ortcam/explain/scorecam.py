"""ScoreCAM: Score-CAM of a model file."""

from __future__ import annotations

from typing import Literal

from ortcam.core.convention import Convention, default_preset, resolve_convention
from ortcam.core.references import Detecting
from ortcam.explain.explainer import ModelExplainer
from ortcam.methods.scorecam import ScoreCAMMethod
from ortcam.model.cam_model import CamModel, ModelLike
from ortcam.runtime.providers import ProviderLike


class ScoreCAM(ModelExplainer):
    """Score-CAM (Wang et al. 2019, arXiv 1910.01279) of an ONNX model, run by ONNX Runtime.

    Examples:
        >>> cam = ScoreCAM("model.onnx")  # doctest: +SKIP
        >>> explanation = cam.explain("photo.jpg", targets=["collie"])  # doctest: +SKIP
        >>> explanation.save("out")  # doctest: +SKIP
    """

    def __init__(
        self,
        model: ModelLike,
        provider: ProviderLike = "auto",
        preset: str | Convention | None = None,
        batch_size: int | Literal["auto"] | None = None,
        threads: int | None = None,
        layer: str | None = None,
        detecting: Detecting | None = None,
    ) -> None:
        """Load a model file.

        Args:
            model, provider, batch_size, threads, layer, detecting: as for `ModelExplainer`.
            preset: a name in `ortcam.PRESETS`, or a Convention; None for ``official``. A model of another task
                has ``centred``, and ``centred-values`` for plain values.

        Raises:
            OptionError: the preset is unknown; else as `ModelExplainer`.
        """
        opened = model if isinstance(model, CamModel) else CamModel(model)
        if preset is None:
            preset = default_preset(opened.contract.task)
        super().__init__(
            opened, ScoreCAMMethod(resolve_convention(preset)), provider, batch_size, threads, layer, detecting
        )
