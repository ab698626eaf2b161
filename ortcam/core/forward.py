"""Forward: the results of a model for one unmasked photo."""

from __future__ import annotations

from dataclasses import dataclass

from ortcam.core.convention import Floats


@dataclass(frozen=True)
class Forward:
    """The plain forward pass of one photo, on the host.

    Attributes:
        logits: float32 [N], the tensor that the scores are taken from.
        output: float32 [N], the model's own output (probabilities if the model ends in a softmax).
        activations: float32 [K,h,w] of the target layer.
        size: the model's input size (H, W).
    """

    logits: Floats
    output: Floats
    activations: Floats
    size: tuple[int, int]
