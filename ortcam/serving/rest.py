"""The REST door: the Open Inference Protocol, KServe's first protocol, a bare photo, metrics, and a page."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import ortcam
from ortcam.serving import metrics
from ortcam.serving.answers import Answer, to_tensors
from ortcam.serving.bodies import body_of, read_apart, until_gone
from ortcam.serving.desk import Call, Desk, request_id
from ortcam.serving.limits import ServingLimits
from ortcam.serving.metadata import EXTENSIONS, describe_model
from ortcam.serving.people import People
from ortcam.serving.protocol import InferRequest, read_infer, write_answer
from ortcam.serving.questions import Facts, Question, read_question, read_timeout
from ortcam.serving.refusal import Kind, Refusal, forget
from ortcam.serving.service import VERSION

Handler = Callable[[Request, Call], Awaitable[Response]]
HEADER_BYTES = 32_768  # of all headers of a request
_HEADERS = 200  # the most of a request
_PART = 262_144  # bytes of an answer that are sent in one go
_LENGTH = "Inference-Header-Content-Length"
_log = logging.getLogger("ortcam.serving")


def make_app(desk: Desk, page: bool = True) -> Starlette:
    """Return the ASGI application.

    Args:
        desk: answers questions.
        page: whether ``/`` shows a page for people.
    """
    door, people = _Rest(desk), People(desk)
    model = "/v2/models/{name}"
    versions = (model, model + "/versions/{version}")
    routes = [
        _route(desk, "/v2", door.server, open_to_all=True),
        _route(desk, "/v2/health/live", door.live, open_to_all=True),
        _route(desk, "/v2/health/ready", door.ready, open_to_all=True),
        *(_route(desk, path, door.model) for path in versions),
        *(_route(desk, path + "/ready", door.model_ready) for path in versions),
        *(_route(desk, path + "/infer", door.infer, "POST") for path in versions),
        _route(desk, "/v1/models", people.list_models),
        _route(desk, "/v1/models/{name}:predict", people.predict, "POST"),
        _route(desk, "/v1/models/{name}:explain", people.explain_instances, "POST"),
        _route(desk, "/v1/models/{name}", door.model_ready),
        _route(desk, "/models", people.describe_models),
        _route(desk, "/models/{name}/explain", people.explain, "POST"),
        _route(desk, "/metrics", door.metrics),
        *([_route(desk, "/", people.page, open_to_all=True)] if page else []),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: partial(_not_served, desk)})
    app.router.redirect_slashes = False  # an answer without the form of the protocol, at a host that the client names
    return app


def _route(desk: Desk, path: str, handler: Handler, method: str = "GET", open_to_all: bool = False) -> Route:
    """Return a route whose refusals and faults are answered in the form of the protocol."""

    async def endpoint(request: Request) -> Response:
        call, refusal = Call("rest", request_id(request.headers.get("x-request-id"))), None
        try:
            _check_headers(request)
            if not open_to_all:
                desk.check_key(request.headers.get("authorization"))
            name = request.path_params.get("name")
            if name is not None:
                desk.service.find(name, request.path_params.get("version"))
                call.model = name
                if method == "POST":
                    desk.service.check_room(name)  # before the body is read
            response = await handler(request, call)
        except Refusal as error:
            refusal, response = error, refused(error)
            forget(error)
        except Exception:  # noqa: BLE001 - a fault in ortcam, which the client must not see
            _log.exception("request %s failed", call.id)
            refusal = Refusal(Kind.FAILED, f"the server failed; its log has the reason at request {call.id}")
            response = refused(refusal)
        response.headers["X-Request-Id"] = call.id
        if refusal is not None and "expect" in request.headers:  # a client that was not told to go on sends no body
            response.headers["Connection"] = "close"
        if (method == "POST" or refusal is not None) and not request.scope.get("state", {}).get("refused"):
            desk.told(call, response.status_code, refusal)
        return _InParts(response, desk)

    return Route(path, endpoint, methods=[method])


def _check_headers(request: Request) -> None:
    """Check the headers; h11 counts only the bytes of headers that come in several pieces.

    Raises:
        Refusal: there are too many, or they are too long.
    """
    headers = request.scope["headers"]
    size = sum(len(name) + len(value) + 4 for name, value in headers)
    if len(headers) > _HEADERS or size > HEADER_BYTES:
        raise Refusal(
            Kind.HEADERS,
            f"the request has {len(headers)} headers of {size} bytes; at most {_HEADERS} of {HEADER_BYTES} are taken",
        )


class _InParts(Response):
    """Sends an answer in parts: others have their turn in between, and a client that does not read is noticed."""

    def __init__(self, whole: Response, desk: Desk) -> None:
        self._whole, self._desk = whole, desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        whole, body = self._whole, memoryview(self._whole.body)
        await send({"type": "http.response.start", "status": whole.status_code, "headers": whole.raw_headers})
        self._desk.sending += len(body)
        try:
            for at in range(0, max(1, len(body)), _PART):
                part = bytes(body[at : at + _PART])
                await send({"type": "http.response.body", "body": part, "more_body": at + _PART < len(body)})
                await asyncio.sleep(0)
        finally:
            self._desk.sending -= len(body)


def as_json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return an answer of JSON."""
    return Response(json.dumps(value), status, headers, "application/json")


def refused(refusal: Refusal) -> Response:
    """Return the answer to a request that is refused, in the form of the protocol."""
    after = refusal.retry_after
    headers = {} if after is None else {"Retry-After": str(int(after + 0.999))}
    if refusal.kind == Kind.UNAUTHORISED:
        headers["WWW-Authenticate"] = "Bearer"
    if refusal.kind == Kind.SLOW:  # the rest of the request is not read
        headers["Connection"] = "close"
    return as_json({"error": str(refusal)}, refusal.kind.http, headers)


def turn_away(desk: Desk, refusal: Refusal, given: str | None = None, status: int | None = None) -> Response:
    """Return the answer to a request that no handler takes; it is counted and logged.

    Args:
        desk: counts and logs.
        refusal: why.
        given: the client's id of the request.
        status: the status; None for that of the refusal.
    """
    call, response = Call("rest", request_id(given)), refused(refusal)
    response.status_code = status or response.status_code
    response.headers["X-Request-Id"] = call.id
    desk.told(call, response.status_code, refusal)
    return response


def too_many() -> Refusal:
    """Return the refusal of a connection beyond the limit."""
    return Refusal(Kind.BUSY, "the server has too many connections; try again", 1.0)


def only_health(app: ASGIApp, desk: Desk) -> ASGIApp:
    """Return an application that takes a question about health, refuses any other, and closes the connection."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_last(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        if scope["path"].startswith("/v2/health/"):
            await app(scope, receive, send_last)
        else:
            given = Request(scope).headers.get("x-request-id")
            await turn_away(desk, too_many(), given)(scope, receive, send_last)

    return answer


async def _not_served(desk: Desk, request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    method, path = request.method[:10], request.url.path[:100]
    unknown = error.status_code in (404, 405)
    said = f"{method} {path!r} is not served; see GET /v2" if unknown else error.detail
    refusal = Refusal(Kind.UNKNOWN if unknown else Kind.INVALID, said)
    response = turn_away(desk, refusal, request.headers.get("x-request-id"), error.status_code)
    response.headers.update(error.headers or {})
    return response


class _Rest:
    """The handlers of the Open Inference Protocol."""

    def __init__(self, desk: Desk) -> None:
        self._desk, self._service = desk, desk.service

    async def server(self, request: Request, call: Call) -> Response:
        return as_json({"name": "ortcam", "version": ortcam.__version__, "extensions": list(EXTENSIONS)})

    async def live(self, request: Request, call: Call) -> Response:
        return as_json({"live": True})

    async def ready(self, request: Request, call: Call) -> Response:
        return as_json({"ready": self._service.ready}, 200 if self._service.ready else 503)

    async def model(self, request: Request, call: Call) -> Response:
        return as_json(describe_model(call.model, self._service.find(call.model)))

    async def model_ready(self, request: Request, call: Call) -> Response:
        return as_json({"name": call.model, "ready": self._service.ready}, 200 if self._service.ready else 503)

    async def metrics(self, request: Request, call: Call) -> Response:
        return Response(self._desk.metrics.text(), media_type=metrics.CONTENT_TYPE)

    async def infer(self, request: Request, call: Call) -> Response:
        async with body_of(request, self._desk) as body:
            header = request.headers.get(_LENGTH)
            read = partial(_read, body, header, self._service.find(call.model).facts, self._desk.limits)
            asked, question, seconds = await read_apart(self._desk, len(body), read)
            text, length = await self._desk.answer(
                call,
                partial(self._service.submit, call.model, question, seconds),
                partial(_write, call.model, asked),
                until_gone(request),
            )
        if length is None:
            return Response(text, media_type="application/json")
        return Response(text, headers={_LENGTH: str(length)}, media_type="application/octet-stream")


def _read(body: bytes, header: str | None, facts: Facts, limits: ServingLimits) -> tuple[InferRequest, Question, float]:
    """Return the request of a body, its question, and the seconds that the client waits for."""
    asked = read_infer(body, header, limits.json)
    return asked, read_question(asked, facts, limits), read_timeout(asked.parameters, limits.timeout)


def _write(model: str, asked: InferRequest, answer: Answer, question: Question) -> tuple[bytes, int | None]:
    return write_answer(model, VERSION, asked, to_tensors(answer, question))
