"""Explainer: the protocol of everything that explains photos."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Protocol, Self

from ortcam.core.budget import Selecting
from ortcam.core.targets import Targets
from ortcam.explain.signatures import OnError
from ortcam.output.explanation import Pictures

if TYPE_CHECKING:
    from ortcam.core.pictures import Image


class Explainer(Protocol):
    """Explains photos. `ScoreCAM`, `ModelExplainer` and `PackedExplainer` have this interface.

    An explainer is a context manager, which closes it.
    """

    @property
    def provider(self) -> str:
        """The execution provider that runs the model."""

    def explain(
        self,
        image: Image,
        targets: Targets = None,
        *,
        top_k: int = 1,
        on_progress: Callable[[int, int], None] | None = None,
        budget: int | None = None,
        tolerance: float | None = None,
        selection: Selecting = "predict",
    ) -> Pictures:
        """Explain one photo."""

    def explain_batch(
        self,
        images: Iterable[Image],
        targets: Targets = None,
        *,
        top_k: int = 1,
        on_error: OnError | None = None,
        on_progress: Callable[[float], None] | None = None,
        budget: int | None = None,
        tolerance: float | None = None,
        selection: Selecting = "predict",
    ) -> Iterator[Pictures]:
        """Explain many photos, in order."""

    def close(self) -> None:
        """End the threads and sessions."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
