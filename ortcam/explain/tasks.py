"""What the explainer does for models of other tasks: it finds the references of a photo."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ortcam.core.convention import Floats
from ortcam.core.forward import Forward
from ortcam.core.pictures import Crop, Photo
from ortcam.core.readers import check, everything, resolve
from ortcam.core.references import (
    Box,
    Detecting,
    Embedding,
    Output,
    Reference,
    Region,
    Similarity,
    as_vector,
    read_vector,
    score,
)
from ortcam.core.targets import Target, Targets, describe_references
from ortcam.core.view import View
from ortcam.model.cam_model import CamModel


def view_of(model: CamModel, photo: Photo | None, crop: Crop, size: tuple[int, int], detecting: Detecting) -> View:
    """Return what is known of a photo beside its results; `size` is that of the model's input."""
    photo_size = (crop.bottom, crop.right) if photo is None else photo.shape[:2]
    return View(crop, size, photo_size, model.labels, model.name, detecting)


def check_targets(model: CamModel, targets: Targets) -> None:
    """Refuse what no photo has, once for all photos: an unknown class or value, or another kind of target.

    Raises:
        TargetError: no photo has such a target.
    """
    if not model.contract.classifies:
        check(model.contract.task, targets, model.classes, model.labels, model.name)
    elif model.classes is not None:
        model.resolve_targets(targets, model.classes)


def find_references(
    task: str, targets: Targets, top_k: int, forward: Forward, view: View
) -> tuple[Forward, tuple[Reference, ...]]:
    """Return the references that a user asks for, and the plain pass with their scores as its logits.

    Raises:
        TargetError: as `ortcam.core.readers.resolve`.
    """
    found = resolve(task, targets, top_k, forward.results, view)
    return replace(forward, logits=score(task, forward.results, found)), found


def describe_asked(task: str, targets: Targets, top_k: int, forward: Forward, view: View) -> tuple[Target, ...]:
    """Return the targets that a user asks for, with their scores; of None the first `top_k`, the surest first.

    Raises:
        TargetError: there are none, or as `ortcam.core.readers.resolve`.
    """
    if targets is None:
        found = everything(task, forward.results, view)[:top_k]
    else:
        found = resolve(task, targets, top_k, forward.results, view)
    return describe_references(found, score(task, forward.results, found))


def with_embeddings(targets: Targets, embed: Callable[[Any], Floats]) -> Targets:
    """Return targets whose reference pictures are embeddings.

    Args:
        targets: the targets of a model that returns embeddings.
        embed: returns the embedding [D] of a picture.

    Raises:
        ImageError: a picture cannot be read.
        TargetError: a .npy file holds no embedding.
    """
    if isinstance(targets, Similarity):
        targets = [targets]
    if targets is None or isinstance(targets, str | int | Box | Region | Output):
        return targets
    targets = targets.tolist() if isinstance(targets, np.ndarray) else list(targets)
    return [_with_embedding(one, embed) if isinstance(one, Similarity) else one for one in targets]


def _with_embedding(asked: Similarity, embed: Callable[[Any], Floats]) -> Similarity:
    like = asked.like
    if isinstance(like, Embedding):
        return asked
    if isinstance(like, str | os.PathLike):
        path = Path(like)
        return Similarity(Embedding(path.name, path, read_vector(path) if path.suffix == ".npy" else embed(path)))
    if not isinstance(like, bytes | bytearray | memoryview) and getattr(like, "ndim", np.ndim(like)) in (1, 2):
        array = like.detach() if hasattr(like, "detach") else like
        if np.ndim(array) == 1 or len(array) == 1:
            return Similarity(Embedding("a vector", None, as_vector(array, "the reference")))
    return Similarity(Embedding("a picture", None, embed(like)))
