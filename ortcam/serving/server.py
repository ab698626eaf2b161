"""Run a server: both doors in one event loop, signals, and the watch over the files of models."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import http
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ortcam.errors import OptionError
from ortcam.serving.desk import Desk
from ortcam.serving.metrics import Metrics
from ortcam.serving.refusal import Kind, Refusal
from ortcam.serving.rest import HEADER_BYTES, make_app, only_health, too_many, turn_away
from ortcam.serving.service import Service
from ortcam.serving.watching import Watch

_KEEP_ALIVE = 75  # seconds: longer than the idle time of the usual proxies
_SECONDS_TO_SEND = 30  # after the last answer, for clients that read slowly
_WATCH_EVERY = 1.0
_SPARE = 16  # connections beyond the limit, for health alone: a full server is alive
_log = logging.getLogger("ortcam.serving")


@dataclass(frozen=True)
class Doors:
    """Where a server listens, and how.

    Attributes:
        host: the address.
        port: of the REST door; 0 for any free port.
        grpc_port: of the gRPC door; None for no such door.
        page: whether ``/`` shows a page for people.
        keys: the keys of clients; none to let everybody in.
        drain: seconds to go on taking requests after SIGTERM, while readiness says no.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    grpc_port: int | None = None
    page: bool = True
    keys: frozenset[bytes] = frozenset()
    drain: float = 0.0


def run(service: Service, doors: Doors, folder: Path | None = None) -> None:
    """Serve until SIGTERM or SIGINT; then answer all requests that were taken, and return.

    Args:
        service: the models.
        doors: where to listen.
        folder: the folder whose models are loaded when their files appear or change.

    Raises:
        OptionError: an address or port cannot be had.
    """
    listener = _listen(doors.host, doors.port)
    gc.collect()
    gc.freeze()  # what is loaded stays: full collections take milliseconds then, and come often
    try:
        asyncio.run(_Running(service, doors, listener, folder).run())
    finally:
        listener.close()
        service.close()


def _listen(host: str, port: int, option: str = "--port") -> socket.socket:
    """Return a listening socket.

    Raises:
        OptionError: the address or port cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise OptionError(f"host is {host!r} ({error.strerror}); expected an address of this machine") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except (OSError, OverflowError) as error:
        listener.close()
        said = getattr(error, "strerror", None) or error
        raise OptionError(f"cannot listen on {host}:{port}: {said}; give another {option} or --host") from error
    return listener


class _Running:
    """A server that runs."""

    def __init__(self, service: Service, doors: Doors, listener: socket.socket, folder: Path | None) -> None:
        self._service, self._doors, self._listener = service, doors, listener
        self._desk = Desk(service, Metrics(service), doors.keys)
        self._watch = Watch(service, folder)
        self._stop, self._reload = asyncio.Event(), asyncio.Event()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(NotImplementedError):  # Windows, where Ctrl-C ends the loop
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._on_stop, signal.Signals(number).name)
            loop.add_signal_handler(signal.SIGHUP, self._reload.set)
        config = uvicorn.Config(
            make_app(self._desk, self._doors.page),
            http=_Connection,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=_SECONDS_TO_SEND,
            h11_max_incomplete_event_size=HEADER_BYTES,
        )
        _Connection.desk = self._desk
        rest = _Uvicorn(config)
        rpc, rpc_port = None, None
        if self._doors.grpc_port is not None:
            from ortcam.serving.rpc import make_server  # late: grpc takes time and memory

            _listen(self._doors.host, self._doors.grpc_port, "--grpc-port").close()  # grpc says less, in more lines
            try:
                rpc, rpc_port = make_server(self._desk, _bracketed(self._doors.host), self._doors.grpc_port)
            except RuntimeError as error:
                raise OptionError(
                    f"cannot listen on {self._doors.host}:{self._doors.grpc_port}; give another --grpc-port"
                ) from error
            await rpc.start()
        serving = asyncio.create_task(rest.serve([self._listener]))
        watching = asyncio.create_task(self._watch_files())
        port = self._listener.getsockname()[1]
        also = "" if rpc_port is None else f", gRPC on {_bracketed(self._doors.host)}:{rpc_port}"
        _log.info("listening: REST on http://%s:%d%s", _bracketed(self._doors.host), port, also)
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        for task in (watching, stopping):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self._end(rest, rpc, serving)

    async def _end(self, rest: _Uvicorn, rpc: Any, serving: asyncio.Task[None]) -> None:
        """Answer what was taken, and close the doors."""
        self._service.draining = True  # health says so; those who ask it stop sending requests
        _log.info("shutting down: %d photos wait", sum(one.worker.waiting for one in self._service.models.values()))
        await asyncio.sleep(self._doors.drain)
        await asyncio.to_thread(self._service.close)
        rest.should_exit = True
        if rpc is not None:
            await rpc.stop(_SECONDS_TO_SEND)
        await serving
        self._desk.close()
        _log.info("ended")

    def _on_stop(self, name: str) -> None:
        _log.info("%s received", name)
        if self._stop.is_set():
            _log.warning("ended by a second signal; requests that wait are lost")
            os._exit(1)
        self._stop.set()

    async def _watch_files(self) -> None:
        """Load changed models when SIGHUP asks for it, and those of the watched folder every second."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_WATCH_EVERY):
                    await self._reload.wait()
            try:
                if self._reload.is_set():
                    self._reload.clear()
                    await asyncio.to_thread(self._service.reload)
                await asyncio.to_thread(self._watch.look)
            except Exception:  # noqa: BLE001 - a fault in ortcam or a library; the models that are loaded go on
                _log.exception("models cannot be loaded again")


def _bracketed(host: str) -> str:
    """Return an address as URLs have it."""
    return f"[{host}]" if ":" in host else host


class _Uvicorn(uvicorn.Server):
    """uvicorn without its handlers of signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Connection(H11Protocol):
    """A connection of the REST door. Their number is limited, and a client must send and read in time.

    A few connections beyond the limit are spare. They answer questions about health, and close.
    """

    desk: ClassVar[Desk]
    _spare: ClassVar[dict[_Connection, None]] = {}  # the oldest first
    _timer: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) - len(self._spare) > self.desk.limits.connections:
            if len(self._spare) >= _SPARE:  # the oldest had the most time to ask
                next(iter(self._spare))._make_room()
            self._spare[self] = None
            self.app = only_health(self.app, self.desk)
        self._wait_for_request()

    def _make_room(self) -> None:
        """Close a spare connection."""
        del self._spare[self]
        if self._answers:
            self.transport.close()
        elif not self.transport.is_closing():
            self._refuse(too_many())

    @property
    def _answers(self) -> bool:
        """Whether a request is in work."""
        return self.cycle is not None and not self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE or self._drops_body:  # IDLE: in the midst of the head of a request
            self._wait_for_request()
        else:
            self._forget()

    @property
    def _drops_body(self) -> bool:
        """Whether the answer is sent, and the body is still coming."""
        return self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.DONE

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._drops_body:
            self._wait_for_request()

    def eof_received(self) -> None:
        if self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.SEND_RESPONSE:
            self._refuse(
                Refusal(Kind.INVALID, "the body ends before its stated length; send as many bytes as Content-Length")
            )

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # the answer is on its way already
            self.transport.close()
            return
        error = sys.exc_info()[1]  # uvicorn does not pass it on
        if isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431:
            message = f"the headers have over {HEADER_BYTES} bytes; expected fewer or shorter ones"
            self._refuse(Refusal(Kind.HEADERS, message))
        else:
            self._refuse(Refusal(Kind.INVALID, "the request is not valid HTTP"))

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: a request to upgrade is answered as any other."""

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading = self._reading or self.loop.call_later(self.desk.limits.write_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._forget_reading()

    def _forget_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        self._forget_reading()
        self._spare.pop(self, None)
        super().connection_lost(exc)

    def _wait_for_request(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.desk.limits.read_timeout, self._on_slow)

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_slow(self) -> None:
        self._timer = None
        if self._drops_body:
            self.transport.close()
        elif not self.transport.is_closing():
            self._refuse(Refusal(Kind.SLOW, f"no request came within {self.desk.limits.read_timeout:g} s"))

    def _refuse(self, refusal: Refusal) -> None:
        """Send a refusal that no handler sends, and close the connection."""
        given = None
        if self._answers:
            self.scope["state"]["refused"] = True  # the handler will find that the client is gone, and not count it
            given = dict(self.headers).get(b"x-request-id", b"").decode("latin-1")
        answer = turn_away(self.desk, refusal, given)
        answer.headers["Connection"] = "close"
        lines = [f"HTTP/1.1 {answer.status_code} {http.HTTPStatus(answer.status_code).phrase}".encode()]
        lines += [name + b": " + value for name, value in answer.raw_headers]
        self.transport.write(b"\r\n".join([*lines, b"", bytes(answer.body)]))
        self.transport.close()
