"""Forward: what a model makes of one photo that nothing is hidden from."""

from __future__ import annotations

from dataclasses import dataclass

from ortcam.core.convention import Floats


@dataclass(frozen=True)
class Forward:
    """The plain forward pass of one photo, on the host.

    Attributes:
        logits: float32 [N], what the scores are taken from.
        output: float32 [N], the model's own output (probabilities for a model that ends in a softmax).
        activations: float32 [K,h,w] of the target layer.
        size: the model's input size (H, W).
    """

    logits: Floats
    output: Floats
    activations: Floats
    size: tuple[int, int]
