"""Score-CAM as the peers run it, as a user would call them; each returns its map."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from networks import Network
from pytorch_grad_cam import ScoreCAM as GradCamScoreCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from torchcam.methods import ScoreCAM as TorchcamScoreCAM

Run = Callable[[], Any]


def torchcam(network: Network, tensor: np.ndarray, target: int, batch_size: int) -> Run:
    def run() -> np.ndarray:
        inputs = torch.from_numpy(tensor)
        with TorchcamScoreCAM(network.module, network.layer, batch_size=batch_size) as cam:
            with torch.inference_mode():
                network.module(inputs)
            (small,) = cam(target)
        return nn.functional.interpolate(small[None], inputs.shape[2:], mode="bilinear")[0, 0].numpy()

    return run


def grad_cam(network: Network, tensor: np.ndarray, target: int, batch_size: int) -> Run:
    def run() -> np.ndarray:
        with contextlib.redirect_stderr(io.StringIO()), GradCamScoreCAM(network.module, [network.layer]) as cam:
            cam.batch_size = batch_size
            result: np.ndarray = cam(torch.from_numpy(tensor), [ClassifierOutputTarget(target)])[0]
        return result

    return run


def tf_keras_vis(network: Network, tensor: np.ndarray, target: int, batch_size: int) -> Run:
    """The Keras twin: the same architecture and layer, untrained, so only its time compares."""
    from tf_keras_vis.scorecam import Scorecam
    from tf_keras_vis.utils.scores import CategoricalScore

    assert network.keras is not None
    model, layer = network.keras()
    scorecam, score = Scorecam(model), CategoricalScore([target])
    image = np.ascontiguousarray(tensor.transpose(0, 2, 3, 1))

    def run() -> np.ndarray:
        with contextlib.redirect_stdout(io.StringIO()):  # Keras's progress, in the midst of the tables
            result: np.ndarray = scorecam(score, image, penultimate_layer=layer, batch_size=batch_size)[0]
        return result

    return run
