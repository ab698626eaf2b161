"""A model file that runs in this process, with the threads that work beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ortcam.core.budget import MakePredictor
from ortcam.core.surrogate import Surrogate
from ortcam.model.cam_model import CamModel
from ortcam.runtime.binding import Scorer
from ortcam.runtime.engine import Engine
from ortcam.runtime.providers import Provider
from ortcam.runtime.threads import Workers, usable_processors

FREE_THE_PROCESSOR = ("cuda", "tensorrt")  # providers; others may need it, or may not be run in two threads
_ENOUGH_THREADS = 4  # beside a device: more of them wait for Python's lock only


@dataclass(frozen=True)
class Running:
    """What explains photos.

    Attributes:
        scorer: runs the scoring graph.
        provider: the execution provider that it runs on.
        workers: do what is done with several photos at once, between runs.
        choosers: likewise, where a surrogate takes part.
        surrogates: makes the surrogates of a group of photos.
    """

    scorer: Scorer
    provider: Provider
    workers: Workers
    choosers: Workers
    surrogates: Callable[[], MakePredictor]


def run_model(
    model: CamModel,
    scored: Literal["logits", "output"],
    provider: Provider,
    batch_size: int | Literal["auto"] | None,
    threads: int | None,
) -> Running:
    """Open a session of a model file; the arguments and errors are those of `Engine`."""
    model.source.check_unchanged()
    engine = Engine(model, scored, provider, batch_size, threads)
    if engine.provider.name not in FREE_THE_PROCESSOR:
        workers = Workers(threads)
        return Running(engine.scorer, engine.provider, workers, workers, _on_the_processor)
    from ortcam.runtime.surrogate import DeviceSurrogates

    workers = Workers(threads or min(usable_processors(), _ENOUGH_THREADS))
    surrogates = DeviceSurrogates(engine.provider.device).group
    return Running(engine.scorer, engine.provider, workers, Workers(1), surrogates)


def _on_the_processor() -> MakePredictor:
    return Surrogate
