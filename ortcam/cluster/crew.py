"""Crew: how many workers a job has, and whether machines have room for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ortcam.errors import OptionError, whole


@dataclass(frozen=True)
class Crew:
    """The workers of a job.

    Attributes:
        workers: how many; None for as many as the processors, or GPUs, allow.
        threads: CPU threads of each worker; they hold for ONNX Runtime too, whatever `ExplainBatch.threads` is.
        gpus_per_worker: the GPUs of a worker, or its share of one, such as 0.25; 0 for CPUs.
        address: the address of a Ray cluster, such as ``auto`` or 10.0.0.1:6379; None to start Ray on this machine.
    """

    workers: int | None = None
    threads: int = 1
    gpus_per_worker: float = 0.0
    address: str | None = None

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            OptionError: one is invalid.
        """
        whole("threads", self.threads)
        if self.workers is not None:
            whole("workers", self.workers)
        if self.address is not None and self.address.startswith("ray://"):
            raise OptionError(f"address is {self.address}, of Ray's client; expected HOST:PORT of the cluster, or auto")
        share = self.gpus_per_worker
        if share < 0 or (share > 1 and share != int(share)):
            raise OptionError(f"gpus_per_worker is {share:g}; expected a share of a GPU, such as 0.25, or whole GPUs")

    def places(self, nodes: Sequence[Mapping[str, float]]) -> int:
        """Return how many workers fit into nodes with these resources, ``CPU`` and ``GPU``."""
        return sum(self._fitting(node) for node in nodes)

    def _fitting(self, node: Mapping[str, float]) -> int:
        by_cpu = int(node.get("CPU", 0) // self.threads)
        if not self.gpus_per_worker:
            return by_cpu
        gpus, share = int(node.get("GPU", 0)), self.gpus_per_worker
        by_gpu = gpus * int(1 / share + 1e-6) if share < 1 else int(gpus // share)
        return min(by_cpu, by_gpu)

    def size(self, nodes: Sequence[Mapping[str, float]]) -> int:
        """Return the number of workers.

        Raises:
            OptionError: the nodes have no place for them. Ray would wait for ever, without a word.
        """
        places = self.places(nodes)
        wanted = places if self.workers is None else self.workers
        if 0 < wanted <= places:
            return wanted
        each = f"{self.threads} CPU{'s'[: self.threads != 1]}" + (
            f" and {self.gpus_per_worker:g} GPUs" if self.gpus_per_worker else ""
        )
        cpus, gpus = (sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU"))
        have = f"{cpus:g} CPU{'s'[: cpus != 1]}" + (f" and {gpus:g} GPUs" if self.gpus_per_worker else "")
        raise OptionError(
            f"got {wanted or 1} workers of {each} each; expected at most {places}, which fit into {have} of "
            f"{len(nodes)} machine{'s'[: len(nodes) != 1]}; give fewer --workers or --threads, or more machines"
        )
