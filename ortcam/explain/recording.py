"""What was asked for, and the record of how an explanation was made."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ortcam.core.budget import Limits
from ortcam.core.provenance import Asked, Origin, Provenance, now
from ortcam.core.targets import Targets
from ortcam.model.cam_model import CamModel
from ortcam.runtime.providers import Provider
from ortcam.runtime.session import RUNTIME_VERSION

if TYPE_CHECKING:
    from ortcam.core.method import Method


class Request(NamedTuple):
    """The caller's options, the same for every photo."""

    targets: Targets
    top_k: int
    limits: Limits

    def asked(self, batch_size: int | str | None) -> Asked:
        """Return the options for the record."""
        targets, limits = Asked.targets_of(self.targets), self.limits
        return Asked(targets, self.top_k, limits.budget, limits.tolerance, limits.selection, batch_size)


def provenance_of(
    model: CamModel, method: Method, origin: Origin, asked: Asked, batch_size: int, provider: Provider
) -> Provenance:
    """Return the provenance of an explanation.

    Args:
        model: the model file.
        method: the method.
        origin: the photo.
        asked: the caller's options.
        batch_size: the largest number of masked inputs in a batch.
        provider: the provider that ran the model.
    """
    contract, classifies = model.contract, model.contract.classifies
    stages = [stage.value for stage in model.stages]
    return Provenance(
        photo=origin,
        model=model.fingerprints,
        packed=False,
        output=contract.output if classifies else contract.task,
        activation=contract.makes_probabilities if classifies else None,
        preprocessing=None if contract.preprocessing is None else contract.preprocessing.to_dict(),
        asked=asked,
        method=method.describe() | ({"stages": stages} if method.stages else {}),
        batch_size=batch_size,
        provider_options=provider.options,
        device_id=provider.device_id,
        onnxruntime=RUNTIME_VERSION,
        created=now(),
    )
