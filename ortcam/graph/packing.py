"""Define the options of an explainer graph, and the state of its loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ortcam.core.convention import Convention
from ortcam.graph import surrogates
from ortcam.graph.budget import STATE
from ortcam.graph.builder import Value
from ortcam.graph.surrogates import SurrogateValues
from ortcam.model.contract import Layout, Sequenced, Stage

_RANKS = {"affine": 2, "channels": 1, "rows": 1, "queue": 1, "scores": 2}


@dataclass(frozen=True)
class Packing:
    """The options of an explainer.

    Attributes:
        convention: the definition of Score-CAM, or the last steps of another method's maps.
        budget: the largest number of masked images; None for all.
        batch_size: the number of masked images per turn.
        fixed_batch: whether the model accepts only this batch.
        raw: take a photo uint8 [H,W,3] of any size, else the preprocessed input float32.
        target: the default of the input `target`; None if `target` must be given.
        input_shape: the shape of the model's image, without the batch.
        layer_shape: (K, h, w) of the target layer.
        method: the name of the method and its options, as `Method.describe`. For all methods but ``score-cam``, the
            convention holds only the last steps of a map, and the batch size is the number of rows of a tail.
        stage: the earlier stage that the method changes; None if it changes none.
        sequence: the tokens that the target layer is taken from, if the method changes features; else None.
        references: the lengths R and C of the references of a model of another task (`CamModel.reference_sizes`).
        cells: (h, w) of a segmenter's mask.
    """

    convention: Convention
    budget: int | None
    batch_size: int
    fixed_batch: bool
    raw: bool
    target: int | None
    input_shape: tuple[int, int, int]
    layer_shape: tuple[int, int, int]
    method: Mapping[str, Any] = field(default_factory=lambda: {"name": "score-cam"})
    stage: Stage | None = None
    sequence: Sequenced | None = None
    references: tuple[int, int] = (0, 0)
    cells: tuple[int, int] = (0, 0)

    @property
    def layer_size(self) -> tuple[int, int]:
        """(h, w) of the target layer."""
        return self.layer_shape[1], self.layer_shape[2]

    @property
    def stage_shape(self) -> tuple[int, int, int]:
        """(K, h, w) of the stage; of the target layer if there is none."""
        return self.layer_shape if self.stage is None else self.stage.shape

    @property
    def pads(self) -> bool:
        """Whether every batch of masked images is full, also the last batch of an exact map."""
        return self.fixed_batch or self.budget is None

    def input_size(self, layout: Layout) -> tuple[int, int]:
        """Return (H, W) of the model's image."""
        shape = self.input_shape
        return (shape[1], shape[2]) if layout == "NCHW" else (shape[0], shape[1])


@dataclass(frozen=True)
class Carried:
    """The state of the loop.

    Attributes:
        activations: float32 [K,h,w] of the plain pass.
        kept: what else is kept of the plain pass (`ortcam.graph.asking.Asking.keep`); ``targets`` int64 [T] among it.
        affine, channels, rows: the photo's distinct masks, as `SelectedMasks`.
        queue: int64 [q], the distinct masks to run next.
        scores: float32 [n,T] of the masks that were run, in this order.
        surrogate: the state of the surrogate; empty without a budget.
    """

    activations: Value
    kept: Mapping[str, Value]
    affine: Value
    channels: Value
    rows: Value
    queue: Value
    scores: Value
    surrogate: SurrogateValues = field(default_factory=dict)

    def values(self) -> list[Value]:
        """Return the state as a flat list for an ONNX Loop."""
        own = [getattr(self, name) for name in _RANKS]
        return [
            self.activations,
            *self.kept.values(),
            *own,
            *(self.surrogate[name] for name in STATE if self.surrogate),
        ]

    def ranks(self, kept: Mapping[str, int]) -> tuple[int, ...]:
        """Return the rank of each of the values; `kept` has those of what is kept."""
        of_kept = (kept[name] for name in self.kept)
        return (3, *of_kept, *_RANKS.values(), *(surrogates.RANKS[name] for name in STATE if self.surrogate))

    def with_values(self, values: Sequence[Value]) -> Carried:
        """Return a state with other values, from a flat list."""
        activations, *others = values
        kept = dict(zip(self.kept, others, strict=False))
        affine, channels, rows, queue, scores, *rest = others[len(kept) :]
        surrogate = dict(zip(STATE, rest, strict=True)) if rest else {}
        return Carried(activations, kept, affine, channels, rows, queue, scores, surrogate)
