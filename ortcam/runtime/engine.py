"""From a model file to a running scorer: the provider, the session, the batch size; what can be kept is kept."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort

import ortcam
from ortcam.errors import ModelError
from ortcam.graph import scoring
from ortcam.graph.fused import fuse_convolutions
from ortcam.model.cam_model import CamModel
from ortcam.runtime import cache
from ortcam.runtime.binding import Padding, Rows, Scorer
from ortcam.runtime.captured import GATE
from ortcam.runtime.providers import CUDA_GRAPHS, Provider, create_on, open_on_provider
from ortcam.runtime.session import load_prepared, make_options, prepare

DEFAULT_BATCH, _DEFAULT_BATCH_ON_DEVICES = 8, 16  # larger batches leave a processor's cache
_LARGEST_BATCH, _LARGEST_BATCH_ON_DEVICES = 64, 512
_SMALLEST_BATCH, _SMALLEST_BATCH_ON_DEVICES = 1, 8  # to measure
_SECONDS_OF_MEASURING, _SECONDS_ON_DEVICES = 8.0, 30.0  # CUDA tries convolution algorithms for every new shape
_TURNS = 3  # of all sizes
_FEWEST_MEASURED = 16  # masked images at once, where they do not take long
_LONG = 0.5  # seconds
_GOOD_ENOUGH = 1.01  # times the least seconds a row
_MOST_KEPT_BYTES = 1 << 30  # larger models are optimised at every start


class Engine:
    """A model file that runs.

    Attributes:
        scorer: runs its scoring graph.
        provider: the execution provider that it runs on.
        captures: whether it runs as CUDA graphs.
    """

    def __init__(
        self,
        model: CamModel,
        scored: Literal["logits", "output"],
        provider: Provider,
        batch_size: int | Literal["auto"] | None,
        threads: int | None,
        record_assignment: bool = False,
    ) -> None:
        """Open a session.

        Args:
            model: the model file.
            scored: what the scores are taken from, as in `Convention`.
            provider: the provider that is wanted.
            batch_size: masked images a run; ``auto`` to measure what is best, None for 8 on CPUs and 16 elsewhere.
            threads: CPU threads; None for one per physical core.
            record_assignment: let the session remember which provider has which node.

        Raises:
            ModelError: ONNX Runtime refuses the model.
            ProviderError: the provider does not load.
        """
        self._model, self._scored, self._threads = model, scored, threads
        self._record_assignment = record_assignment
        measures = batch_size == "auto" and not model.batch
        given = model.batch or (None if batch_size == "auto" else batch_size)
        self.captures = False
        self._tensorrt: dict[str, str] = {}
        if provider.name == "tensorrt":
            wanted = given or _DEFAULT_BATCH_ON_DEVICES
            largest = _LARGEST_BATCH_ON_DEVICES if measures else wanted
            self._tensorrt = scoring.tensorrt_profile(model, wanted, largest) | self._engine_cache(provider)
        self.session, self.provider = open_on_provider(provider, self._create)
        self.captures &= self.provider.name == "cuda"  # where CUDA did not load, the session was the CPU's
        model.forget_proto()
        beside_the_cpu: Padding = "powers" if self.captures else "few"
        padding = "full" if model.batch else "none" if self.provider.name == "cpu" else beside_the_cpu
        usual = DEFAULT_BATCH if self.provider.name == "cpu" else _DEFAULT_BATCH_ON_DEVICES
        self.scorer = Scorer(self.session, model, self.provider.device, given or usual, padding, self.captures)
        if measures:
            self.scorer.batch_size = self._best_batch()

    def _create(self, provider: Provider, devices: list[Any], log_severity: int) -> ort.InferenceSession:
        name, folder = self._model.shown, self._model.external_data_directory
        kept = self._kept_graph() if provider.name == "cpu" else None
        if kept is not None:
            session = load_prepared(kept, name, folder, self._options)
            if session is not None:
                return session
        graph = scoring.build_scoring_graph(self._model.take_proto(), self._model.contract, self._scored)
        if kept is not None:
            session = prepare(kept, graph, name, folder, self._options)
            cache.make_room()
            return session
        if provider.name == "cuda":
            return self._create_on_cuda(provider, graph, log_severity)
        return create_on(provider, devices, graph, name, folder, self._options(), log_severity, self._tensorrt)

    def _create_on_cuda(self, provider: Provider, graph: onnx.ModelProto, log_severity: int) -> ort.InferenceSession:
        """Create a session that captures CUDA graphs if the options want that, or leave it open and the graph can."""
        name, folder = self._model.shown, self._model.external_data_directory
        if provider.fuses:
            fuse_convolutions(graph)
        captures = not scoring.not_captured(graph) if provider.captures is None else provider.captures
        while True:
            own = {CUDA_GRAPHS: str(int(captures))}
            try:
                with GATE.shared():
                    session = create_on(provider, [], graph, name, folder, self._options(), log_severity, own)
            except ModelError:
                if not captures or provider.captures:
                    raise
                captures = False  # some node runs elsewhere, most likely
            else:
                self.captures = captures
                return session

    def _options(self) -> ort.SessionOptions:
        options = make_options(self._threads)
        if self._record_assignment:
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        return options

    def _kept_graph(self) -> Path | None:
        """Return where the graph that ONNX Runtime optimised for this processor is kept; None for nowhere."""
        directory = cache.cache_directory()
        if directory is None or self._record_assignment or self._model.has_external_data:
            return None
        return None if self._model.source.size > _MOST_KEPT_BYTES else directory / f"{self._key('graph')}.onnx"

    def _engine_cache(self, provider: Provider) -> dict[str, str]:
        """Return where TensorRT keeps what it built: a folder of this model's own, since engines hold weights."""
        directory = cache.cache_directory()
        if directory is None:
            return {}
        folder = str(directory / f"tensorrt-{self._key('tensorrt', sorted(provider.options.items()))}")
        enabled = dict.fromkeys(("trt_engine_cache_enable", "trt_timing_cache_enable"), "1")
        return enabled | dict.fromkeys(("trt_engine_cache_path", "trt_timing_cache_path"), folder)

    def _key(self, purpose: str, *more: Any) -> str:
        versions = (ortcam.__version__, ort.__version__, scoring.VERSION, self._model.edited_layer)
        return cache.make_key(purpose, self._model.sha256, self._scored, *versions, *more)

    def _best_batch(self) -> int:
        """Return the batch size that takes the least time a masked image; measured once and kept."""
        provider = self.provider
        key = self._key("batch", provider.name, provider.device_id, sorted(provider.options.items()), self._threads)
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
        best = min(size for size, taken in seconds.items() if taken <= _GOOD_ENOUGH * least)
        cache.write_entry(key, {"batch_size": best, "seconds_per_image": seconds})
        return best

    def _measure_batches(self, smallest: int, largest: int, limit: float) -> dict[int, float]:
        """Return the seconds a masked image takes in batches of 1, 2, 4, ...: the least of three turns of all sizes.

        After `limit` seconds no larger size and no further turn is begun. Sizes take turns, so that a slow second
        meets all of them.
        """
        usual = (3, 224, 224) if self._model.contract.image_layout == "NCHW" else (224, 224, 3)
        shape = [dim or other for dim, other in zip(self._model.usual_shape, usual, strict=True)]
        noise = np.random.default_rng(0).standard_normal((1, *shape), np.float32)
        group = self.scorer.forward(noise)
        seconds: dict[int, float] = {}

        def measure(size: int, count: int) -> float:
            self.scorer.batch_size = size
            start = time.perf_counter()
            self.scorer.score(group, Rows.plain(1).take(0, count), align_corners=False)
            return (time.perf_counter() - start) / count

        begin, counts = time.perf_counter(), dict[int, int]()
        try:
            while (size := smallest << len(counts)) <= largest and time.perf_counter() - begin < limit:
                planned = measure(size, size)
                # The first batch finds another size's data in the cache, so that a short one is not measured by itself.
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
