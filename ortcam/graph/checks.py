"""Write checks as nodes: ONNX has no errors, so an index of a named node goes out of bounds."""

from __future__ import annotations

import numpy as np

from ortcam.graph.builder import Builder, Value


def is_wild(graph: Builder, value: Value) -> Value:
    """Whether a tensor has NaN or infinite values, bool [1]."""
    wild = graph.op("IsNaN", value) | graph.op("IsInf", value)
    flat = graph.concat([graph.reshape(graph.cast(wild, np.int32), -1), graph.constant(np.zeros(1, np.int32))], 0)
    return graph.cast(graph.reduce("Max", flat, 0, keep=True), np.bool_)


def is_any(graph: Builder, wrong: Value) -> Value:
    """Whether any of bool [T] is true, bool [1]; false if T is 0."""
    counted = graph.concat([graph.cast(wrong, np.int64), graph.constant([0])], 0)
    return graph.cast(graph.reduce("Max", counted, keep=True), np.bool_)


def check(graph: Builder, wrong: Value, message: str) -> Value:
    """Fail if `wrong`, bool [1], is true.

    Returns:
        int64 [1], 0. Add it to values that must be computed after the check.
    """
    return graph.gather(graph.constant([0]), graph.cast(wrong, np.int64), name=f"ortcam: {message}")
