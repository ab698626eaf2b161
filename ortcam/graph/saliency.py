"""Write a convention of Score-CAM as nodes: the masks, weights and maps of `ortcam.core.convention` and `selection`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ortcam.core.convention import TINY, Convention, extreme_rows, interpolation_matrix
from ortcam.core.selection import MASK_RESOLUTION
from ortcam.graph.builder import Builder, Value


class SelectedMasks(NamedTuple):
    """The distinct masks of a photo, like `ortcam.core.selection.Selection`.

    Attributes:
        affine: float32 [K,3], the columns shift, scale and offset of every channel's mask.
        channels: int64 [D], the channel of each distinct mask.
        rows: int64 [K], the number of the mask of each channel; D if the channel is left out.
    """

    affine: Value
    channels: Value
    rows: Value


def write_selection(
    graph: Builder, activations: Value, convention: Convention, size: tuple[int, int], small: tuple[int, int]
) -> SelectedMasks:
    """activations float32 [K,h,w] -> masks at `size` = (H, W); `small` is (h, w)."""
    lowest, highest = graph.reduce("Min", activations, 1, 2), graph.reduce("Max", activations, 1, 2)
    varies = highest > lowest
    if convention.mask_normalized == "upsampled":
        aligned = convention.mask_align_corners
        down, across = (extreme_rows(*pair, aligned) for pair in zip(size, small, strict=True))
        samples = graph.constant(down) @ activations @ np.ascontiguousarray(across.T)
        lowest, highest = graph.reduce("Min", samples, 1, 2), graph.reduce("Max", samples, 1, 2)
    spread = highest - lowest + convention.mask_epsilon
    live = varies & (spread >= TINY)
    scale = graph.where(live, 1.0 / spread, 0.0)
    shift, factor = graph.expand_dims(lowest, 1), graph.expand_dims(scale, 1)
    affine = graph.concat([shift, factor, factor * 0.0], 1)
    flat = graph.reshape(activations, graph.size(activations, 0), -1)
    levels = graph.op("Round", (flat - shift) * factor / np.float32(MASK_RESOLUTION))
    if convention.constant_channels == "skip":
        counted = graph.reshape(graph.op("NonZero", live), -1)
    else:
        counted = graph.arange(graph.size(levels, 0))
    # Unique keeps the order of first appearance, like the engine. It is not run if no channel counts.
    some = graph.size(counted, 0) > graph.constant([0])

    def distinct() -> list[Value]:
        _, first, inverse, _ = graph.ops("Unique", graph.gather(levels, counted), outputs=4, axis=0, sorted=0)
        return [graph.gather(counted, first), inverse]

    def nothing() -> list[Value]:
        return [counted, counted]

    channels, inverse = graph.branch(some, distinct, nothing)
    left_out = graph.op("Expand", graph.size(channels, 0), graph.size(levels, 0))
    rows = graph.op("ScatterElements", left_out, counted, inverse, axis=0)
    return SelectedMasks(affine, channels, rows)


def write_weights(graph: Builder, scores: Value, selection: SelectedMasks, convention: Convention) -> Value:
    """scores float32 [D,T] of the distinct masks -> the weights of all channels float32 [T,K]."""
    nothing = graph.full(graph.shape(1, graph.size(scores, 1)), -np.inf, np.float32)
    of_channels = graph.gather(graph.concat([scores, nothing], 0), selection.rows)  # [K,T]
    if convention.weight == "probability":
        return graph.op("Exp", of_channels).T
    if convention.is_centred:
        return _write_centred(graph, of_channels, graph.size(scores, 0) > selection.rows, convention.of_probability)
    best = graph.maximum(graph.reduce("Max", of_channels, 0, keep=True), float(np.finfo(np.float32).min))
    exponentials = graph.op("Exp", of_channels - best)
    return (exponentials / graph.maximum(graph.reduce("Sum", exponentials, 0, keep=True), float(TINY))).T


def _write_centred(graph: Builder, scores: Value, has_score: Value, of_probability: bool) -> Value:
    """scores float32 [K,T] -> the weights [T,K], without their mean over the channels that have scores, bool [K]."""
    values = graph.cast(graph.op("Exp", scores) if of_probability else scores, np.float64)
    has_score = graph.expand_dims(has_score, 1)
    values = graph.where(has_score, values, 0.0)
    count = graph.maximum(graph.reduce("Sum", graph.cast(has_score, np.float64), keep=True), 1.0)
    means = graph.reduce("Sum", values, 0, keep=True) / count
    return graph.cast(graph.where(has_score, values - means, 0.0), np.float32).T


def write_saliency(
    graph: Builder, sums: Value, convention: Convention, size: tuple[int, int], small: tuple[int, int]
) -> Value:
    """sums float32 [T,h,w] -> maps float32 [T,H,W] in [0,1]: `Convention.saliency`."""
    maps = sums
    for step in convention.steps:
        if step == "relu":
            maps = graph.op("Relu", maps)
        elif step == "upsample":
            aligned = convention.map_align_corners
            rows, columns = (interpolation_matrix(*pair, aligned) for pair in zip(size, small, strict=True))
            maps = graph.constant(rows) @ maps @ np.ascontiguousarray(columns.T)
        else:
            maps = _normalize(graph, maps, convention.map_epsilon)
    return graph.op("Clip", maps, graph.constant(0.0), graph.constant(1.0))


def _normalize(graph: Builder, maps: Value, epsilon: float) -> Value:
    lowest = graph.reduce("Min", maps, 1, 2, keep=True)
    spread = graph.reduce("Max", maps, 1, 2, keep=True) - lowest
    varies = spread >= TINY
    return graph.where(varies, (maps - lowest) / graph.where(varies, spread + epsilon, 1.0), 0.0)
