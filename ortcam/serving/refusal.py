"""Refusal: a request that gets no answer, and why, in words that every door translates."""

from __future__ import annotations

from enum import Enum

from ortcam.errors import OrtcamError


class Kind(Enum):
    """Why a request is refused: the HTTP status and the name of the gRPC status."""

    INVALID = 400, "INVALID_ARGUMENT"
    UNAUTHORISED = 401, "UNAUTHENTICATED"
    UNKNOWN = 404, "NOT_FOUND"
    SLOW = 408, "DEADLINE_EXCEEDED"  # the client did not send its request in time
    TOO_LARGE = 413, "INVALID_ARGUMENT"
    UNSUPPORTED = 415, "INVALID_ARGUMENT"
    GONE = 499, "CANCELLED"  # the client left; nobody reads this answer
    HEADERS = 431, "INVALID_ARGUMENT"  # too many or too long
    FAILED = 500, "INTERNAL"
    BUSY = 503, "RESOURCE_EXHAUSTED"
    LEAVING = 503, "UNAVAILABLE"  # the server is shutting down
    LATE = 504, "DEADLINE_EXCEEDED"

    @property
    def http(self) -> int:
        return self.value[0]

    @property
    def grpc(self) -> str:
        return self.value[1]


class Refusal(OrtcamError):  # noqa: N818 - what the server does, which is not always the fault of somebody
    """A request that gets no answer.

    Attributes:
        kind: why.
        retry_after: seconds after which the client may try again; None if that does not help.
    """

    def __init__(self, kind: Kind, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.kind, self.retry_after = kind, retry_after


def forget(error: BaseException) -> None:
    """Drop the frames that an error and its causes have passed.

    The frames hold bodies and photos. A frame that holds its own error is freed only by the garbage collector, which
    counts objects and not megabytes.
    """
    chain: BaseException | None = error
    while chain is not None:
        chain.__traceback__ = None
        chain = chain.__cause__ or chain.__context__


def invalid(message: str) -> Refusal:
    """Return the refusal of a request that is wrong."""
    return Refusal(Kind.INVALID, message)
