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
        stages: float32 [K,h,w] each, the activations of earlier stages, where the method asked for them.
        results: the outputs of a model of another task, such as boxes and scores. Its `logits` are the scores of
            the references (`ortcam.core.references`), and `output` is empty.
    """

    logits: Floats
    output: Floats
    activations: Floats
    size: tuple[int, int]
    stages: tuple[Floats, ...] = ()
    results: tuple[Floats, ...] = ()

    def layer(self, place: int) -> Floats:
        """Return the activations of the target layer (0), or of an earlier stage (from 1)."""
        return self.stages[place - 1] if place else self.activations
