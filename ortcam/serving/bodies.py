"""Read the body of a request within the limits of the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

from ortcam.serving.desk import Desk
from ortcam.serving.refusal import Kind, Refusal, invalid

Made = TypeVar("Made")
_SMALL = 65_536  # bytes of a request that is read at once: a thread would take longer


@asynccontextmanager
async def body_of(request: Request, desk: Desk) -> AsyncIterator[bytes]:
    """Read a body, and count its bytes as pending inside the block.

    Raises:
        Refusal: the body is too large, too slow or encoded, or the client has left.
    """
    limits, counted = desk.limits, 0
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise Refusal(Kind.UNSUPPORTED, f"Content-Encoding is {encoding[:40]!r}; expected a body without compression")
    said = request.headers.get("content-length")
    if said is not None and "transfer-encoding" in request.headers:
        raise invalid("the request has Content-Length and Transfer-Encoding; expected one of them")
    if said is not None and int(said) > limits.body:
        raise Refusal(Kind.TOO_LARGE, f"the request has {int(said)} bytes; at most {limits.body} are taken")
    try:
        parts, size = [], 0
        try:
            async with asyncio.timeout(limits.read_timeout):
                async for part in request.stream():
                    size += len(part)
                    if size > limits.body:
                        raise Refusal(
                            Kind.TOO_LARGE, f"the request has over {limits.body} bytes, the most that is taken"
                        )
                    desk.reserve(len(part))  # what has come, not what was announced: that costs a client nothing
                    counted = size
                    parts.append(part)
        except TimeoutError as error:
            raise Refusal(
                Kind.SLOW, f"the request did not arrive within {limits.read_timeout:g} s; send it faster"
            ) from error
        except ClientDisconnect as error:
            raise Refusal(Kind.GONE, "the client has left") from error
        body = b"".join(parts)
        parts.clear()
        if not body:
            raise invalid("the request has no body; expected a photo, or JSON")
        yield body
    finally:
        desk.release(counted)


async def until_gone(request: Request) -> None:
    """Return when the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def read_apart(desk: Desk, size: int, read: Callable[[], Made]) -> Made:
    """Return what `read` makes of a request; a large one is read in a thread, so that others have their turn.

    Args:
        desk: has the threads.
        size: bytes of the request.
        read: reads it.
    """
    return read() if size <= _SMALL else await desk.compute(read)
