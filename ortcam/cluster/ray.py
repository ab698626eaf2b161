"""Run a job with Ray Data, on this machine or on a cluster."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ortcam.cluster.batch import ExplainBatch
from ortcam.cluster.crew import Crew
from ortcam.cluster.folder import Tally
from ortcam.cluster.job import Job, Opened, open_job
from ortcam.cluster.work import Work
from ortcam.core.native import quiet
from ortcam.errors import OptionError, OrtcamError, one_line

# Usage statistics are off, and Ray's own lines too: ortcam reports progress and errors.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns of its future default
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # a thread that still runs at the end would start Ray again

_MOST_BLOCKS = 4096  # of part numbers: the pieces that workers take, and progress comes in
_SECONDS_TO_ANSWER = 10  # for a cluster
_SECONDS_TO_START = 600  # for the first workers
_SECONDS_OF_SILENCE = 20  # of the head of a cluster; after that, the job ends
_SECONDS_WITHOUT_MACHINES = 60  # after that, a job whose machines are all lost ends
_STORE_BYTES = 100_000_000  # of Ray's store on this machine: photos and maps never go through it
OnProgress = Callable[["Progress"], None]


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    Attributes:
        photos: all photos of the job.
        done, failed: photos with a row, and those of them with an error, of this run and earlier ones.
        explained: photos of this run.
        seconds: since the first worker began.
    """

    photos: int
    done: int
    failed: int
    explained: int
    seconds: float

    @property
    def rate(self) -> float:
        """Photos a second, of this run."""
        return self.explained / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """The expected seconds to the end; None if nothing is known."""
        return (self.photos - self.done) / self.rate if self.explained else None


@dataclass(frozen=True)
class Summary:
    """A job that is done.

    Attributes:
        progress: the numbers at the end.
        workers: the number of workers; 0 if nothing was left to do.
        seconds_to_start: from the call until Ray had its first workers; 0 if nothing was left to do.
    """

    progress: Progress
    workers: int
    seconds_to_start: float


def run(job: Job, crew: Crew, on_progress: OnProgress | None = None) -> Summary:
    """Explain all photos of a job that have no results yet.

    Each photo becomes exactly one row, whatever is killed: run the same job again to go on. If the caller has started
    Ray, that is used, and stays.

    Args:
        job: the photos, options and folder.
        crew: the workers.
        on_progress: called after each piece of work.

    Raises:
        OrtcamError: as `open_job`; the workers do not fit, cannot use the model, cannot write, or die.
    """
    begin = time.monotonic()
    if crew.address is None and not _is_started():
        crew.size([_this_machine(crew)])  # before the photos are listed
    opened = open_job(replace(job, batch=on_device(job.batch, crew)))
    try:
        if not opened.parts:
            kept = opened.kept
            return Summary(Progress(opened.photos, kept.done, kept.failed, 0, 0.0), 0, 0.0)
        with quiet(), _connected(crew):
            return _Run(opened, crew, on_progress or (lambda _: None), begin).run()
    finally:
        opened.folder.close()


def on_device(batch: ExplainBatch, crew: Crew) -> ExplainBatch:
    """Return the batch with the threads of the workers, and a provider that suits them.

    Raises:
        OptionError: the provider needs GPUs, and workers have none.
    """
    batch = replace(batch, threads=crew.threads)
    name = batch.provider if isinstance(batch.provider, str) else batch.provider.name
    if crew.gpus_per_worker:
        return batch
    if name.lower() in ("cuda", "tensorrt"):
        raise OptionError(f"provider is {name}, and workers have no GPUs; give --gpus-per-worker, such as 1 or 0.25")
    return replace(batch, provider="cpu") if name == "auto" else batch


def _is_started() -> bool:
    import ray

    return bool(ray.is_initialized())


def _processors() -> int:
    from ortcam.runtime.threads import usable_processors  # late: a worker without ONNX Runtime shall say so

    return usable_processors()


def _this_machine(crew: Crew) -> dict[str, float]:
    found: dict[str, float] = {"CPU": _processors()}
    if crew.gpus_per_worker:
        from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager

        found["GPU"] = NvidiaGPUAcceleratorManager.get_current_node_num_accelerators()
    return found


@contextlib.contextmanager
def _connected(crew: Crew) -> Iterator[None]:
    """Start Ray on this machine, or connect to a cluster, for the block.

    Raises:
        OptionError: the cluster cannot be reached.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    quiet_options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if crew.address is None:
            # Without address="local", Ray connects to any cluster that it finds on this machine.
            cpus = _processors()
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                object_store_memory=_STORE_BYTES,
                **quiet_options,
            )
        else:
            _knock(crew.address)
            ray.init(address=crew.address, **quiet_options)
    except Exception as error:
        where = "on this machine" if crew.address is None else f"at {crew.address}"
        raise OptionError(f"Ray cannot be reached {where}: {one_line(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise an OSError if nobody listens at host:port; Ray itself would wait for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS_TO_ANSWER).close()


class _Worker:
    """What an actor of Ray Data runs: it turns part numbers into numbers of photos, or the error that ends the job."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._begin: float | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        if self._begin is None:
            self._begin = time.monotonic()
        rows: dict[str, list[Any]] = {"part": [], "done": [], "failed": [], "error": [], "seconds": []}
        for part in batch["part"].tolist():
            tally, error = Tally(), ""
            try:
                tally = self._work(part)
            except Exception as found:  # noqa: BLE001 - told by the driver, in one line
                error = f"{self._node()}: {_said(found)}"
            seconds = time.monotonic() - self._begin  # since this worker began
            for name, value in zip(rows, (part, tally.done, tally.failed, error, seconds), strict=True):
                rows[name].append(value)
        return rows

    @staticmethod
    def _node() -> str:
        import ray

        util: Any = ray.util
        return f"machine {util.get_node_ip_address()}"


def _said(error: Exception) -> str:
    if isinstance(error, OrtcamError | ImportError | OSError):
        return one_line(error)
    return f"{type(error).__name__}: {one_line(error)}"


class _Run:
    """A job in work."""

    def __init__(self, opened: Opened, crew: Crew, on_progress: OnProgress, begin: float) -> None:
        import ray

        self._opened, self._crew, self._on_progress, self._begin = opened, crew, on_progress, begin
        self._head = ray.get_runtime_context().gcs_address  # HOST:PORT, also where the crew's address is auto
        self._found: queue.Queue[dict[str, Any] | Exception | None] = queue.Queue()
        self._stopped = threading.Event()

    def run(self) -> Summary:
        """Explain the parts.

        Raises:
            OrtcamError: a worker cannot go on, workers die again and again, or all machines are lost.
        """
        nodes = self._nodes()
        workers = min(self._crew.size(nodes), len(self._opened.parts))
        reader = threading.Thread(target=self._read, args=(workers,), name="ortcam-ray", daemon=True)
        with _silent():
            reader.start()
            try:
                return self._collect(workers)
            finally:
                self._stopped.set()
                reader.join(timeout=10)

    def _collect(self, workers: int) -> Summary:
        kept = self._opened.kept
        done, failed, explained = kept.done, kept.failed, 0
        started = math.inf
        progress = Progress(self._opened.photos, done, failed, 0, 0.0)
        while (row := self._next()) is not None:
            if row["error"]:
                raise OrtcamError(f"{row['error']} ({done} of {self._opened.photos} photos are done)")
            started = min(started, time.monotonic() - row["seconds"])
            done, failed, explained = done + row["done"], failed + row["failed"], explained + self._explained(row)
            progress = Progress(self._opened.photos, done, failed, explained, time.monotonic() - started)
            self._on_progress(progress)
        if done != self._opened.photos:
            raise OrtcamError(f"{done} of {self._opened.photos} photos are done; run the same command again")
        return Summary(progress, workers, started - self._begin)

    def _explained(self, row: Mapping[str, Any]) -> int:
        """Return how many photos of a part were explained: of a part with earlier results, the failed ones."""
        before = self._opened.before.get(row["part"])
        return int(row["done"]) if before is None else before.failed

    def _next(self) -> dict[str, Any] | None:
        """Return the next row of a worker; None at the end."""
        lost = silent = 0.0
        while True:
            try:
                found = self._found.get(timeout=1)
            except queue.Empty:
                silent = 0.0 if self._answers() else silent or time.monotonic()
                if silent:
                    if time.monotonic() - silent > _SECONDS_OF_SILENCE:
                        raise OrtcamError(
                            f"the cluster at {self._head} does not answer any more; run the same command again to go on"
                        ) from None
                    continue
                lost = 0.0 if self._crew.places(self._nodes()) else lost or time.monotonic()
                if lost and time.monotonic() - lost > _SECONDS_WITHOUT_MACHINES:
                    raise OrtcamError(
                        "all machines that could run a worker are lost; run the same command again to go on"
                    ) from None
                continue
            if isinstance(found, Exception):
                raise OrtcamError(
                    f"the workers ended ({_cause(found)}); run the same command again to go on"
                ) from found
            return found

    def _answers(self) -> bool:
        """Return whether the head of the cluster still answers; without it, Ray ends this process after a minute."""
        try:
            _knock(self._head)
        except OSError:
            return False
        return True

    def _read(self, workers: int) -> None:
        """Let Ray run the parts, and pass on its rows."""
        try:
            # No block waits for the next one.
            for block in self._dataset(workers).iter_batches(batch_size=None, prefetch_batches=0):
                columns = {name: values.tolist() for name, values in block.items()}
                for values in zip(*columns.values(), strict=True):
                    self._found.put(dict(zip(columns, values, strict=True)))
                if self._stopped.is_set():
                    return
            self._found.put(None)
        except Exception as error:  # noqa: BLE001 - raised in the caller's thread
            self._found.put(error)

    def _dataset(self, workers: int) -> Any:
        import ray

        opened, crew = self._opened, self._crew
        work = Work(opened.job.batch, opened.folder, opened.job.columns, opened.job.retry_failed)
        # Numbers travel, and neither photos nor maps do. They need no task of their own, so that actors may take all
        # CPUs.
        with _settings(enable_progress_bars=False, wait_for_min_actors_s=_SECONDS_TO_START, max_errored_blocks=0):
            parts = ray.data.from_items(
                [{"part": part} for part in opened.parts], override_num_blocks=min(len(opened.parts), _MOST_BLOCKS)
            )
        return parts.map_batches(
            _Worker,
            fn_constructor_args=(work,),
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
            num_cpus=crew.threads,
            num_gpus=crew.gpus_per_worker or None,
            batch_size=1,
        )

    @staticmethod
    def _nodes() -> list[Mapping[str, float]]:
        import ray

        nodes: Any = ray.nodes  # without types
        return [node["Resources"] for node in nodes() if node["Alive"]]


@contextlib.contextmanager
def _settings(**values: object) -> Iterator[None]:
    """Change Ray's settings for the data sets that are made in the block; each keeps a copy."""
    import ray

    context = ray.data.DataContext.get_current()
    before = {name: getattr(context, name) for name in values}
    try:
        for name, value in values.items():
            setattr(context, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep Ray Data's lines below errors out of the block."""
    import ray.data  # sets the level too

    logger = logging.getLogger(ray.data.__name__)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _cause(error: BaseException) -> str:
    """Return the type and the first words of the innermost error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {one_line(error, 200)}"
