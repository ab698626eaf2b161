"""Open a model file: choose the provider, the session and the batch size, and use the cache."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort

import ortcam
from ortcam.core.query import Rows
from ortcam.errors import ModelError
from ortcam.graph.wiring import MASKED_IMAGE, VERSION, Wiring
from ortcam.model.cam_model import CamModel
from ortcam.runtime import cache
from ortcam.runtime.batches import Padding
from ortcam.runtime.captured import GATE
from ortcam.runtime.providers import CUDA_GRAPHS, Provider, create_on, open_on_provider
from ortcam.runtime.scorer import Scorer
from ortcam.runtime.session import Opened, load_prepared, make_options, prepare

DEFAULT_BATCH, _DEFAULT_BATCH_ON_DEVICES = 8, 16  # larger batches leave a processor's cache
_LARGEST_BATCH, _LARGEST_BATCH_ON_DEVICES = 64, 512
_SMALLEST_BATCH, _SMALLEST_BATCH_ON_DEVICES = 1, 8  # that are measured
_SECONDS_OF_MEASURING, _SECONDS_ON_DEVICES = 8.0, 30.0  # CUDA tries convolution algorithms for every new shape
_MOST_LIGHT_ROWS = 2048  # in a batch
_TURNS = 3  # of measuring all sizes
_FEWEST_MEASURED = 16  # masked inputs at once, if they take less than _LONG
_LONG = 0.5  # seconds
_GOOD_ENOUGH = 1.01  # times the least seconds per row
_MOST_KEPT_BYTES = 1 << 30  # larger models are optimised at every start
_log = logging.getLogger("ortcam")


@dataclass(frozen=True)
class _Opening:
    """The options for creating a session on any provider; see `Engine`.

    Attributes:
        given: the batch size; None if it is unknown.
        measures: whether the best batch size is measured.
    """

    model: CamModel
    scored: Literal["logits", "output"]
    threads: int | None
    record_assignment: bool
    wiring: Wiring
    given: int | None
    measures: bool

    def create(self, provider: Provider, devices: list[Any], log_severity: int) -> Opened:
        """Create a session on a provider."""
        name, folder = self.model.shown, self.model.external_data_directory
        kept = self._kept_graph() if provider.name == "cpu" else None
        if kept is not None:
            session = load_prepared(kept, name, folder, self.options)
            if session is not None:
                _log.debug("%s: the prepared graph was found in the cache: %s", self.model.name, kept)
                return Opened(session)
        from ortcam.graph import scoring  # late: at most starts the graph was kept

        contract = self.model.contract
        graph = scoring.build_scoring_graph(
            self.model.take_proto(), contract, self.scored, self.wiring, self.model.stages, self.model.sequence
        )
        if kept is not None:
            session = prepare(kept, graph, name, folder, self.options)
            cache.make_room()
            return Opened(session)
        if provider.name == "cuda":
            return self._create_on_cuda(provider, graph, log_severity)
        own = self._of_tensorrt(provider) if provider.name == "tensorrt" else {}
        return Opened(create_on(provider, devices, graph, name, folder, self.options(), log_severity, own))

    def _create_on_cuda(self, provider: Provider, graph: onnx.ModelProto, log_severity: int) -> Opened:
        """Create a session. It captures CUDA graphs if the options say so; by default, if the graph allows it."""
        from ortcam.graph.fused import fuse_convolutions
        from ortcam.graph.scoring import not_captured

        name, folder = self.model.shown, self.model.external_data_directory
        if provider.fuses:
            fuse_convolutions(graph)
        # Only masked images run often enough to be worth a CUDA graph for each shape.
        can = self.wiring == MASKED_IMAGE and not not_captured(graph)
        captures = can if provider.captures is None else provider.captures and self.wiring == MASKED_IMAGE
        while True:
            own = {CUDA_GRAPHS: str(int(captures))}
            try:
                with GATE.shared():
                    session = create_on(provider, [], graph, name, folder, self.options(), log_severity, own)
            except ModelError:
                if not captures or provider.captures:
                    raise
                _log.info(
                    "%s: runs without CUDA graphs, because no session could be created with them", self.model.name
                )
                captures = False  # most likely, a node runs on another provider
            else:
                return Opened(session, captures)

    def _of_tensorrt(self, provider: Provider) -> dict[str, str]:
        """Return the options of TensorRT for this model."""
        wanted = self.given or _DEFAULT_BATCH_ON_DEVICES
        largest = _LARGEST_BATCH_ON_DEVICES if self.measures else wanted
        from ortcam.graph.scoring import tensorrt_profile

        profile = tensorrt_profile(self.model, wanted, largest) if self.wiring == MASKED_IMAGE else {}
        return profile | self._engine_cache(provider)

    def options(self) -> ort.SessionOptions:
        """Return the options of a session."""
        options = make_options(self.threads)
        if self.record_assignment:
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        return options

    def _kept_graph(self) -> Path | None:
        """Return the path for the graph that ONNX Runtime optimised for this processor; None if it is not kept."""
        directory = cache.cache_directory()
        if directory is None or self.record_assignment or self.model.has_external_data or not self.model.is_kept:
            return None
        return None if self.model.source.size > _MOST_KEPT_BYTES else directory / f"{self.key('graph')}.onnx"

    def _engine_cache(self, provider: Provider) -> dict[str, str]:
        """Return options for TensorRT's cache: a folder for this model alone, because engines hold weights."""
        directory = cache.cache_directory()
        if directory is None or not self.model.is_kept:
            return {}
        folder = str(directory / f"tensorrt-{self.key('tensorrt', sorted(provider.options.items()))}")
        enabled = dict.fromkeys(("trt_engine_cache_enable", "trt_timing_cache_enable"), "1")
        return enabled | dict.fromkeys(("trt_engine_cache_path", "trt_timing_cache_path"), folder)

    def key(self, purpose: str, *more: Any) -> str:
        """Return the key in the cache for a purpose: from the model, the versions and `more`."""
        versions = (ortcam.__version__, ort.__version__, VERSION, *self.model.read_layers)
        wiring = () if self.wiring == MASKED_IMAGE else (str(self.wiring),)
        return cache.make_key(purpose, self.model.sha256, self.scored, *versions, *wiring, *more)


class Engine:
    """A model file with an open session.

    Attributes:
        session: the session of its scoring graph.
        scorer: runs the graph.
        provider: the execution provider of the session.
        captures: whether the session captures CUDA graphs.
    """

    def __init__(
        self,
        model: CamModel,
        scored: Literal["logits", "output"],
        provider: Provider,
        batch_size: int | Literal["auto"] | None,
        threads: int | None,
        record_assignment: bool = False,
        wiring: Wiring = MASKED_IMAGE,
    ) -> None:
        """Open a session.

        Args:
            model: the model file.
            scored: the tensor that the scores are taken from, as in `Convention`.
            provider: the requested provider.
            batch_size: the number of masked inputs per run; ``auto`` to measure the best size, None for 8 on CPUs and
                16 elsewhere.
            threads: the number of CPU threads; None for one per physical core.
            record_assignment: let the session record the provider of each node.
            wiring: the nodes that change inputs.

        Raises:
            ModelError: ONNX Runtime refuses the model.
            ProviderError: the provider does not load.
            LayerError: the wiring is at the layer, and the model has no tail behind it.
        """
        measures = batch_size == "auto" and not model.batch
        given = model.batch or (None if batch_size == "auto" else batch_size)
        self._opening = _Opening(model, scored, threads, record_assignment, wiring, given, measures)
        opened, self.provider = open_on_provider(provider, self._opening.create)
        self.session, self.captures = opened
        model.forget_proto()
        beside_the_cpu: Padding = "powers" if self.captures else "few"
        padding = "full" if model.batch else "none" if self.provider.name == "cpu" else beside_the_cpu
        usual = DEFAULT_BATCH if self.provider.name == "cpu" else _DEFAULT_BATCH_ON_DEVICES
        self.scorer = Scorer(self.session, model, self.provider.device, given or usual, padding, self.captures, wiring)
        if measures:
            self.scorer.batch_size = self._best_batch()
        if self.scorer.light and not model.batch:
            self.scorer.batch_size = _MOST_LIGHT_ROWS

    def _best_batch(self) -> int:
        """Return the batch size with the least time per masked input. It is measured once and kept."""
        provider = self.provider
        threads = self._opening.threads
        key = self._opening.key("batch", provider.name, provider.device_id, sorted(provider.options.items()), threads)
        entry = cache.read_entry(key)
        on_cpu = provider.name == "cpu"
        largest = _LARGEST_BATCH if on_cpu else _LARGEST_BATCH_ON_DEVICES
        if entry is not None:
            size = entry.get("batch_size")
            if type(size) is int and 1 <= size <= largest:
                return size
            cache.complain(Path(f"{key}.json"), f"batch_size is {size!r}")
        smallest = _SMALLEST_BATCH if on_cpu else _SMALLEST_BATCH_ON_DEVICES
        seconds = self._measure_batches(smallest, largest, _SECONDS_OF_MEASURING if on_cpu else _SECONDS_ON_DEVICES)
        least = min(seconds.values())
        _log.debug("seconds per masked image by batch size: %s", seconds)
        best = min(size for size, taken in seconds.items() if taken <= _GOOD_ENOUGH * least)
        cache.write_entry(key, {"batch_size": best, "seconds_per_image": seconds})
        return best

    def _measure_batches(self, smallest: int, largest: int, limit: float) -> dict[int, float]:
        """Return the seconds per masked input in batches of 1, 2, 4, ...: the least of three turns of all sizes.

        After `limit` seconds, no larger size and no further turn begins. Sizes take turns, so that a slow moment of the
        machine affects all sizes.
        """
        model = self._opening.model
        usual = (3, 224, 224) if model.contract.image_layout == "NCHW" else (224, 224, 3)
        shape = [dim or other for dim, other in zip(model.usual_shape, usual, strict=True)]
        noise = np.random.default_rng(0).standard_normal((1, *shape), np.float32)
        group = self.scorer.forward(noise)
        seconds: dict[int, float] = {}

        def measure(size: int, count: int) -> float:
            self.scorer.batch_size = size
            start = time.perf_counter()
            self.scorer.score(group, Rows.plain(1).take(0, count))
            return (time.perf_counter() - start) / count

        begin, counts = time.perf_counter(), dict[int, int]()
        try:
            while (size := smallest << len(counts)) <= largest and time.perf_counter() - begin < limit:
                planned = measure(size, size)
                # The first batch finds another size's data in the cache, so a short batch is not measured alone.
                counts[size] = size if planned * _FEWEST_MEASURED > _LONG else max(size, _FEWEST_MEASURED)
                seconds[size] = measure(size, counts[size])
            for _ in range(_TURNS - 1):
                for size, count in counts.items():
                    if time.perf_counter() - begin < limit:
                        seconds[size] = min(seconds[size], measure(size, count))
        except ModelError:  # the device's memory is full
            if not seconds:
                raise
        return seconds
