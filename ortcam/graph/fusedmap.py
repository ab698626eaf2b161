"""Write `ortcam.methods.fused` without masked images: scores of tails -> the product of the factors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ortcam.core import windows
from ortcam.core.convention import TINY, interpolation_matrix
from ortcam.graph.builder import Builder, Value

Size = tuple[int, int]
# Runs the tail of the target layer (0) or of the stage (1) with masks [M,h,w]: logits, log-probabilities, [M,T] each.
Tails = Callable[[int, np.ndarray[Any, Any]], tuple[Value, Value]]


def bank_sizes(method: Mapping[str, Any], layer: Size, stage: Size) -> tuple[int, int]:
    """Return the number of masks of the target layer and of the stage."""
    blocks = windows.half(stage[0]) * windows.half(stage[1])
    return layer[0] * layer[1] + 1, blocks + 2 * method["grids"]


def write_fused(
    graph: Builder,
    method: Mapping[str, Any],
    layer: Size,
    stage: Size,
    logits: Value,
    features: Value,
    tails: Tails,
) -> tuple[Value, Value]:
    """Write the map.

    Args:
        graph: the graph.
        method: the options, as `Fused.describe`.
        layer, stage: rows and columns of the target layer, and of the stage.
        logits: float32 [1,N] of the photo.
        features: float32 [K,h*w], the stage of the photo.
        tails: runs a tail.

    Returns:
        The sums float32 [T,h,w] at the stage's size, and the number of tails, int64 [1].
    """
    places = 1 - windows.places(layer)
    of_places, of_stage = bank_sizes(method, layer, stage)
    grids = windows.grids(method["grids"], method["seed"], stage)
    values, logs = tails(0, np.concatenate([places, np.ones_like(places[:1])]))
    certain = graph.slice(logs, -1, np.iinfo(np.int64).max, 0) > windows.CERTAIN  # [1,T]
    of_layer = graph.slice(graph.where(certain, values, logs), 0, -1, 0)  # [hw,T]
    masks = np.concatenate([1 - windows.blocks(stage), grids, 1 - grids])
    values, logs = tails(1, masks)
    scores = graph.where(certain, values, logs)
    blocks, count = len(windows.blocks(stage)), len(grids)
    largest = graph.reduce("Max", graph.op("Abs", logits))
    noise = largest * windows.ROUNDING
    contrast = graph.reshape(-of_layer.T, -1, *layer)
    occlusion = graph.reshape(-graph.slice(scores, 0, blocks, 0).T, -1, *map(windows.half, stage))
    occlusion = _resize(graph, occlusion, *map(windows.between_blocks, stage))
    shown = graph.slice(scores, blocks, blocks + count, 0)
    hidden = graph.slice(scores, blocks + count, blocks + 2 * count, 0)
    lanes = windows.regressors(method["grids"], method["seed"], stage).reshape(count, -1)
    slopes = graph.reshape((shown - hidden).T @ graph.constant(lanes), -1, *stage)
    enlarged = (interpolation_matrix(*pair, False) for pair in zip(stage, layer, strict=True))
    changes = graph.reduce("Max", features, 1) > graph.reduce("Min", features, 1)
    differs = graph.reduce("Max", graph.cast(changes, np.float32))  # 0 if the stage is the same everywhere
    factors = [
        _resize(graph, _scaled(graph, contrast, noise), *enlarged),
        differs * _scaled(graph, occlusion, noise),
        differs * _scaled(graph, slopes, noise * float(np.sqrt(2 * count)) / windows.VARIANCE),
    ]
    product, any_varies = None, None
    for place, factor in enumerate(factors):
        varies = graph.reduce("Max", factor, 1, 2, keep=True) > graph.reduce("Min", factor, 1, 2, keep=True)
        floored = factor + windows.FLOOR if place else factor
        term = graph.where(varies, floored, 1.0)
        product = term if product is None else product * term
        any_varies = varies if any_varies is None else any_varies | varies
    assert product is not None and any_varies is not None
    return graph.where(any_varies, product, 0.0), graph.constant([of_places + of_stage])


def _resize(graph: Builder, maps: Value, rows: Any, columns: Any) -> Value:
    """maps [T,h,w] -> [T,H,W], by matrices [H,h] and [W,w]."""
    return graph.constant(np.ascontiguousarray(rows)) @ maps @ np.ascontiguousarray(columns.T)


def _scaled(graph: Builder, maps: Value, noise: Value) -> Value:
    """Min-max normalise maps [T,h,w]; a map whose range is at most `noise` becomes zero."""
    lowest = graph.reduce("Min", maps, 1, 2, keep=True)
    spread = graph.reduce("Max", maps, 1, 2, keep=True) - lowest
    varies = (spread > noise) & (spread >= float(TINY))
    return graph.where(varies, (maps - lowest) / graph.where(varies, spread, 1.0), 0.0)
