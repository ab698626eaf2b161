"""Define the variants of Score-CAM as data: the masks, the weights of channels, and the steps from sum to map.

With f the logits, p = softmax(f), U bilinear upsampling to the input size, x the input and c the target class,
every definition is

    N_k = masks(A_k)          w_k = weight(f(x * N_k))          map = steps(sum_k w_k A_k)

`Convention` names the details in which the definitions differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ortcam.errors import OptionError, nearest, one_line

Floats = NDArray[np.float32]
Step = Literal["relu", "upsample", "normalize", "percentiles"]
_SAMPLES_AT_ONCE = 1 << 16  # 256 kB: they stay in the cache
_PERCENTILES = (0.1, 99.9)
_LEAST_PERCENTILE = np.float32(1e-12)  # a divisor
_FEWEST_CHANNELS = 64  # channels at once: products of fewer are slow
TINY = np.finfo(np.float32).tiny  # a smaller range counts as zero


@dataclass(frozen=True)
class Convention:
    """One definition of Score-CAM.

    Attributes:
        name: the preset's name.
        source: the paper or project that defines it.
        mask_align_corners: whether masks are upsampled with aligned corners, else with half-pixel centres.
        mask_normalized: whether min-max normalisation of a mask uses the extremes of the ``upsampled`` channel, or of
            the channel at the ``layer``'s own size.
        mask_epsilon: added to the range by which the mask is divided.
        constant_channels: for a channel without spatial variation: ``skip`` leaves it out; ``blank`` gives it a zero
            mask and the weight of the blank input.
        weight: ``probability``: p_c of the masked input; ``softmax``: the softmax over all channels of f_c;
            ``centred``: p_c minus its mean over all channels that are not left out; ``centred logit``: the same of f_c.
        scored: the tensor for p or f: the ``logits``, or the model's own ``output``. If a model ends in a softmax,
            ``output`` makes p a softmax of a softmax.
        steps: the steps that turn the sum [h,w] into the map [H,W], in order.
        map_align_corners: the same as `mask_align_corners`, for the ``upsample`` step.
        map_epsilon: added to the range in the ``normalize`` step. ``percentiles`` is `by_percentiles`.
    """

    name: str
    source: str
    mask_align_corners: bool = False
    mask_normalized: Literal["upsampled", "layer"] = "upsampled"
    mask_epsilon: float = 0.0
    constant_channels: Literal["skip", "blank"] = "skip"
    weight: Literal["probability", "softmax", "centred", "centred logit"] = "softmax"
    scored: Literal["logits", "output"] = "logits"
    steps: tuple[Step, ...] = ("relu", "upsample", "normalize")
    map_align_corners: bool = False
    map_epsilon: float = 0.0

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Convention:
        """Make a convention from the fields of `dataclasses.asdict`, as read from JSON.

        Raises:
            OptionError: a field is unknown or missing.
        """
        try:
            return cls(**{**fields, "steps": tuple(fields["steps"])})
        except (TypeError, KeyError) as error:
            raise OptionError(f"preset has other fields than expected: {one_line(error)}") from error

    def masks(self, activations: Floats, size: tuple[int, int]) -> Masks:
        """Return the masks at `size` = (H, W) of the channels of `activations` [K,h,w]."""
        lowest, highest = activations.min(axis=(1, 2)), activations.max(axis=(1, 2))
        varies = highest > lowest
        if self.mask_normalized == "upsampled":
            lowest, highest = upsampled_extremes(activations, size, self.mask_align_corners)
        spread = (highest - lowest) + np.float32(self.mask_epsilon)
        live = varies & (spread >= TINY)
        affine = np.zeros((len(activations), 3), np.float32)
        affine[:, 0] = lowest
        affine[live, 1] = 1 / spread[live]
        return Masks(affine, live)

    def weights(self, scores: Floats) -> Floats:
        """Return the weight of every channel for every target, [T,K].

        Args:
            scores: [K,T], -inf for a channel that was left out: log p_c of every masked input if `of_probability`, else
                f_c.
        """
        if self.weight == "probability":
            weights = np.exp(scores)
        elif self.is_centred:
            ran = np.isfinite(scores)
            values = np.where(ran, np.exp(scores) if self.of_probability else scores, 0).astype(np.float64)
            means = values.sum(axis=0) / np.maximum(ran.sum(axis=0), 1)
            weights = np.where(ran, values - means, 0)
        elif np.isfinite(scores).any():
            exponentials = np.exp(scores.astype(np.float64) - scores.max(axis=0))
            weights = exponentials / exponentials.sum(axis=0)
        else:  # every channel was left out
            weights = np.zeros_like(scores)
        return np.ascontiguousarray(weights.T, np.float32)

    @property
    def of_probability(self) -> bool:
        """Whether weights are made of probabilities, not of logits."""
        return self.weight in ("probability", "centred")

    @property
    def is_centred(self) -> bool:
        """Whether the mean is subtracted from the weights."""
        return self.weight in ("centred", "centred logit")

    def saliency(self, sums: Floats, size: tuple[int, int]) -> Floats:
        """Turn the weighted sums [T,h,w] into maps [T,H,W] in [0,1] at `size` = (H, W)."""
        maps = sums
        for step in self.steps:
            if step == "relu":
                maps = np.maximum(maps, 0)
            elif step == "percentiles":
                maps = by_percentiles(maps)
            elif step == "upsample":
                maps = upsample(maps, size, self.map_align_corners)
            else:
                maps = normalize(maps, self.map_epsilon)
        return np.clip(maps, 0, 1)


@dataclass(frozen=True)
class Masks:
    """The masks of K channels, each written as U((A_k - shift) * scale + offset).

    An affine map of the channel at its own size gives the same mask as an affine map of the upsampled channel, because
    bilinear weights sum to 1.

    Attributes:
        affine: float32 [K,3], the columns shift, scale and offset. A scale of 0 is a blank (zero) mask.
        live: bool [K], whether the channel varies in space.
    """

    affine: Floats
    live: NDArray[np.bool_]


PRESETS: dict[str, Convention] = {
    convention.name: convention
    for convention in (
        Convention(
            "official",
            "Wang et al. 2019, the authors' repository haofanwang/Score-CAM",
            weight="probability",
            steps=("upsample", "relu", "normalize"),
        ),
        Convention("paper", "Wang et al. 2019, arXiv 1910.01279, Algorithm 1; the baseline cancels in the softmax"),
        Convention(
            "pytorch-grad-cam",
            "jacobgil/pytorch-grad-cam 1.5.x",
            mask_align_corners=True,
            mask_epsilon=1e-8,
            constant_channels="blank",
            steps=("relu", "normalize", "upsample", "normalize"),
            map_epsilon=1e-7,
        ),
        Convention(
            "torchcam",
            "frgfm/torch-cam 0.5",
            mask_normalized="layer",
            mask_epsilon=1e-8,
            constant_channels="blank",
            steps=("relu", "normalize", "upsample"),
            map_epsilon=1e-8,
        ),
        Convention(
            "tf-keras-vis",
            "keisen/tf-keras-vis 0.8.7",
            mask_align_corners=True,
            mask_epsilon=1e-7,
            constant_channels="blank",
            weight="probability",
            scored="output",
            map_align_corners=True,
            map_epsilon=1e-7,
        ),
        Convention(
            "centred",
            "ortcam, docs/tasks.md: official, with weights minus their mean",
            weight="centred",
            steps=("upsample", "relu", "normalize"),
        ),
        Convention(
            "centred-values",
            "ortcam, docs/tasks.md: centred, for plain values, which have no probability",
            weight="centred logit",
            steps=("upsample", "relu", "normalize"),
        ),
    )
}


def resolve_convention(preset: str | Convention) -> Convention:
    """Return the convention with this name, or the convention itself.

    Raises:
        OptionError: the preset is unknown.
    """
    if isinstance(preset, Convention):
        return preset
    if not isinstance(preset, str) or preset not in PRESETS:
        raise OptionError(f"preset {preset!r} is unknown; expected {', '.join(PRESETS)}{nearest(str(preset), PRESETS)}")
    return PRESETS[preset]


def default_preset(task: str) -> str:
    """Return the preset of Score-CAM that a model of a task has where nobody names one."""
    return {"classify": "official", "value": "centred-values"}.get(task, "centred")


@lru_cache(maxsize=32)
def interpolation_matrix(size: int, length: int, align_corners: bool) -> Floats:
    """Return the linear interpolation of `length` samples at `size` places as a matrix [size,length].

    Row i holds the (at most two) weights of output i; they sum to 1. Upsampling a channel is then
    ``rows @ A @ columns.T``, the same on the host and in the scoring graph. Kept for the next call, so read-only.

    Source: torch.nn.functional.interpolate(mode="bilinear"), with and without align_corners.
    """
    places = np.arange(size, dtype=np.float64)
    if align_corners:
        at = places * ((length - 1) / (size - 1) if size > 1 else 0.0)
    else:
        at = np.maximum((places + 0.5) * length / size - 0.5, 0.0)
    low = np.minimum(at.astype(np.intp), length - 1)
    high = np.minimum(low + 1, length - 1)
    matrix = np.zeros((size, length), np.float32)
    matrix[np.arange(size), low] = 1 - (at - low)
    matrix[np.arange(size), high] += at - low
    matrix.setflags(write=False)
    return matrix


def upsample(maps: Floats, size: tuple[int, int], align_corners: bool = False) -> Floats:
    """Resize maps [...,h,w] bilinearly to [...,H,W] with `size` = (H, W)."""
    rows = interpolation_matrix(size[0], maps.shape[-2], align_corners)
    columns = interpolation_matrix(size[1], maps.shape[-1], align_corners)
    return (rows @ maps @ columns.T).astype(np.float32, copy=False)


def upsampled_extremes(activations: Floats, size: tuple[int, int], align_corners: bool) -> tuple[Floats, Floats]:
    """Return the minimum and maximum [K] of every channel of [K,h,w] after upsampling to `size`.

    Between four neighbouring activations the upsampled channel is bilinear, so its extremes over the samples in that
    cell lie at the first or last sample in each direction. At most 2h * 2w samples are computed, not H * W.
    """
    rows = extreme_rows(size[0], activations.shape[1], align_corners)
    columns = extreme_rows(size[1], activations.shape[2], align_corners)
    lowest, highest = np.empty((2, len(activations)), np.float32)
    most = max(_SAMPLES_AT_ONCE // (len(rows) * len(columns)), _FEWEST_CHANNELS)
    for begin in range(0, len(activations), most):
        some = activations[begin : begin + most]
        lanes = np.ascontiguousarray(some.reshape(len(some), -1).T)  # channels last: few products, of all at once
        taller = (rows @ lanes.reshape(some.shape[1], -1)).reshape(len(rows), some.shape[2], -1)
        samples = (columns @ taller).reshape(-1, len(some))
        samples.min(axis=0, out=lowest[begin : begin + most])
        samples.max(axis=0, out=highest[begin : begin + most])
    return lowest, highest


def extreme_rows(size: int, length: int, align_corners: bool) -> Floats:
    """Return the first and last row of the interpolation matrix between each two neighbouring input samples."""
    matrix = interpolation_matrix(size, length, align_corners)
    cell = (matrix > 0).argmax(axis=1)
    ends = np.flatnonzero(np.diff(cell, prepend=-1) | np.diff(cell, append=matrix.shape[1]))
    return matrix[ends]


def normalize(maps: Floats, epsilon: float = 0.0) -> Floats:
    """Scale every map of [T,H,W] to [0,1]: (z - min) / (max - min + epsilon); a flat map becomes zero."""
    lowest = maps.min(axis=(1, 2), keepdims=True)
    spread = maps.max(axis=(1, 2), keepdims=True) - lowest
    flat = spread < TINY
    return np.where(flat, 0, (maps - lowest) / np.where(flat, 1, spread + np.float32(epsilon))).astype(np.float32)


def by_percentiles(maps: Floats) -> Floats:
    """Clip maps [N,h,w] to [0,1], without their lowest value and divided by their highest: percentiles 0.1 and 99.9.

    Source: aenglebert/polycam, which divides by the highest value and not by the range.
    """
    low, high = np.percentile(maps, _PERCENTILES, axis=(1, 2), keepdims=True)
    clipped: Floats = np.clip((maps - low) / np.maximum(high, _LEAST_PERCENTILE), 0, 1).astype(np.float32)
    return clipped
