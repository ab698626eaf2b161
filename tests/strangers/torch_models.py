"""Small networks whose like is found in public reports. Each function returns a module. All are untrained, seeded."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


def _features() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU())


def binary() -> nn.Module:
    """One logit, its sigmoid outside the model (BCEWithLogitsLoss)."""
    return nn.Sequential(_features(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 1)).eval()


def multilabel() -> nn.Module:
    """Five independent logits, two of them present; their sigmoids are outside the model."""
    head = nn.Linear(32, 5)
    head.bias.data = torch.tensor([3.0, 3.0, -3.0, -3.0, -3.0])
    return nn.Sequential(_features(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).eval()


class Windows(nn.Module):
    """Tokens in windows [B, windows, tokens, C], as MaxViT has in every block."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.mix, self.fc = nn.Conv2d(3, 12, 8, 8), nn.Linear(12, 12), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).relu()  # [B,12,8,8]: the last map with places
        x = x.unflatten(2, (2, 4)).unflatten(4, (2, 4)).permute(0, 2, 4, 3, 5, 1).flatten(1, 2).flatten(2, 3)
        x = (x + self.mix(x)).relu()  # [B,4,16,12]: windows, not rows and columns
        x = x.unflatten(1, (2, 2)).unflatten(3, (4, 4)).permute(0, 5, 1, 3, 2, 4).flatten(2, 3).flatten(3, 4)
        return self.fc(x.mean((2, 3)))


def windows() -> nn.Module:
    return Windows().eval()


@dataclass
class Output:
    logits: torch.Tensor
    hidden_states: object = None


class Outputs(nn.Module):
    """One network, the forms in which people return its scores [B,7]."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.features = form, _features()
        self.head = nn.Linear(32, 7)

    def forward(self, x: torch.Tensor) -> Any:
        pooled = self.features(x).mean((2, 3))
        scores = self.head(pooled)
        return {
            "dict": {"features": pooled, "logits": scores},
            "ordered": OrderedDict(logits=scores),
            "tuple": (pooled, scores),
            "with_none": (scores, None),
            "named": namedtuple("Named", "logits hidden")(scores, pooled),
            "dataclass": Output(scores),
            "spatial": scores[:, :, None, None],
            "squeezed": scores[:, 0],
        }[self.form]


def dict_output() -> nn.Module:
    return Outputs("dict").eval()


def tuple_output() -> nn.Module:
    return Outputs("tuple").eval()


def none_output() -> nn.Module:
    return Outputs("with_none").eval()


def dataclass_output() -> nn.Module:
    return Outputs("dataclass").eval()


def spatial_output() -> nn.Module:
    return Outputs("spatial").eval()


def squeezed_output() -> nn.Module:
    return Outputs("squeezed").eval()


class Baked(nn.Module):
    """A channel shuffle that asks for the batch as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = _features(), nn.Linear(32, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        b, c, h, w = (int(n) for n in x.shape)
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.head(torch.relu(x).mean((2, 3)))


def batch_statistics() -> nn.Module:
    """BatchNorm without running statistics: a picture's scores depend on the batch it runs in."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16, track_running_stats=False), nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32, track_running_stats=False), nn.ReLU(),
        nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(32, 5),
    ).eval()  # fmt: skip
