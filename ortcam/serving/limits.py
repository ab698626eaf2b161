"""ServingLimits: what a server takes from its clients."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServingLimits:
    """What a server takes from its clients. Whatever exceeds a limit is refused before any work is done.

    Attributes:
        budget: masked inputs for a request that names neither a budget nor a tolerance; None for all.
        queue: photos that wait for one model: to be explained, or for their answers to be written.
        timeout: seconds from the arrival of a request to its answer; a client can ask for less.
        body: bytes of a request.
        json: bytes of the JSON part of a request; JSON is parsed in one go, during which nothing else runs.
        pending: bytes of all requests that are being read or wait, and of answers that are being sent.
        pixels: pixels of a photo; the photos of a request together may have four times as many.
        images: photos in a request.
        targets: targets (classes, boxes, ...) of a photo.
        output: bytes of the maps and overlays of an answer.
        connections: open connections of the REST door, and concurrent calls of the gRPC door.
        read_timeout: seconds in which a client must send a request.
        write_timeout: seconds in which a client must read some more of an answer.
        gather: seconds to wait for more photos that are explained together, on devices where that pays.
    """

    budget: int | None = None
    queue: int = 64
    timeout: float = 30.0
    body: int = 20_000_000
    json: int = 4_000_000
    pending: int = 500_000_000
    pixels: int = 25_000_000
    images: int = 16
    targets: int = 10
    output: int = 64_000_000
    connections: int = 256
    read_timeout: float = 20.0
    write_timeout: float = 60.0
    gather: float = 0.004
