"""The gRPC door: the Open Inference Protocol."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any

import grpc

import ortcam
from ortcam.serving.answers import Answer, to_tensors
from ortcam.serving.desk import Call, Desk, request_id
from ortcam.serving.limits import ServingLimits
from ortcam.serving.messages import SERVICE, message
from ortcam.serving.metadata import EXTENSIONS, describe_model
from ortcam.serving.protocol import MOST_TENSORS, InferRequest, Output, Parameters, check_id, check_parameters, unique
from ortcam.serving.questions import Facts, Question, read_question, read_timeout
from ortcam.serving.refusal import Kind, Refusal, forget, invalid
from ortcam.serving.service import VERSION
from ortcam.serving.tensors import Tensor, check_head, from_raw, from_values, raw_parts, show

_CONTENTS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_RAW_OUTPUT = bytes([6 << 3 | 2])  # the tag of raw_output_contents: field 6, bytes with their length
_METADATA_BYTES = 16_384
_SMALL = 65_536  # bytes of a message that is parsed at once
_SPARE = 16  # calls beyond the limit, for all methods but ModelInfer: a full server is alive
_MOST_VALUES, _MOST_PARAMETERS = 300_000, 10_000  # of a message, as in JSON
_ROUNDED = 0.1  # seconds: gRPC rounds the deadlines that it sends up, to a hundredth of them
_log = logging.getLogger("ortcam.serving")
Handler = Callable[[Any, Any, Call], Awaitable[Any]]


def make_server(desk: Desk, host: str, port: int) -> tuple[grpc.aio.Server, int]:
    """Return a server that was not started, and its port.

    Args:
        desk: answers questions.
        host, port: where to listen; 0 for any free port.

    Raises:
        RuntimeError: the port cannot be had.
    """
    limits = desk.limits
    server = grpc.aio.server(
        maximum_concurrent_rpcs=limits.connections + _SPARE,
        options=[
            ("grpc.max_receive_message_length", limits.body),
            ("grpc.max_send_message_length", -1),  # bounded by ServingLimits.output
            ("grpc.max_metadata_size", _METADATA_BYTES),
            ("grpc.so_reuseport", 0),  # else a second server shares the port without a word
        ],
    )
    door = _Rpc(desk)
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(_unary(desk, name, handler))
        for name, handler in {
            "ServerLive": door.live,
            "ServerReady": door.ready,
            "ModelReady": door.model_ready,
            "ServerMetadata": door.server,
            "ModelMetadata": door.model,
            "ModelInfer": door.infer,
        }.items()
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
    return server, server.add_insecure_port(f"{host}:{port}")


def _unary(desk: Desk, name: str, handler: Handler) -> Callable[[bytes, Any], Awaitable[bytes]]:
    """Return a method whose refusals and faults become statuses. It parses the message itself.

    If gRPC parsed it, a broken message would be the server's error.
    """
    kind, calls = message(f"{name}Request"), set[_Held]()

    async def read(data: bytes) -> Any:
        try:
            return kind.FromString(data) if len(data) < _SMALL else await desk.compute(kind.FromString, data)
        except Exception as error:
            raise invalid(f"the message is not a valid {name}Request") from error

    async def answer(data: bytes, context: Any, held: _Held) -> bytes | Refusal:
        given = dict(context.invocation_metadata() or ())
        asked = given.get("x-request-id")
        call, refusal = Call("grpc", request_id(asked if isinstance(asked, str) else None)), None
        try:
            if name not in ("ServerLive", "ServerReady", "ServerMetadata"):
                key = given.get("authorization")
                desk.check_key(key if isinstance(key, str) else None)
            if name == "ModelInfer" or len(data) > _SMALL:
                held.take(len(data))
            response = await handler(await read(data), context, call)
            made: bytes = response if isinstance(response, bytes) else response.SerializeToString()
            held.send(len(made))
        except Refusal as error:
            refusal = error
            forget(error)
        except asyncio.CancelledError:
            refusal = _why_cancelled(context.time_remaining())
            desk.told(call, refusal.kind.grpc, refusal)
            raise
        except Exception:  # noqa: BLE001 - a fault in ortcam, which the client must not see
            _log.exception("request %s failed", call.id)
            refusal = Refusal(Kind.FAILED, f"the server failed; its log has the reason at request {call.id}")
        if name == "ModelInfer" or refusal is not None:
            desk.told(call, "OK" if refusal is None else refusal.kind.grpc, refusal)
        context.set_trailing_metadata((("x-request-id", call.id),))
        return made if refusal is None else refusal

    async def method(data: bytes, context: Any) -> bytes:
        held = _Held(desk, calls)
        context.add_done_callback(held.release)  # runs when the answer is sent, or the client has left
        made = await answer(data, context, held)
        del data  # the frame of an abort lives until the garbage collector runs
        if isinstance(made, Refusal):
            await context.abort(getattr(grpc.StatusCode, made.kind.grpc), str(made))
        return made  # type: ignore[return-value] # abort raises

    return method


class _Held:
    """What a call holds until its answer is sent: its place among the calls, and bytes that count at the desk."""

    def __init__(self, desk: Desk, calls: set[_Held]) -> None:
        self._desk, self._calls, self._taken, self._sending = desk, calls, 0, 0

    def take(self, size: int) -> None:
        """Take a place, and count the bytes of the request.

        Raises:
            Refusal: there are too many calls, or the requests and answers in work are too large together.
        """
        if len(self._calls) >= self._desk.limits.connections:
            raise Refusal(Kind.BUSY, f"the server has {len(self._calls)} calls in work; try again", 1.0)
        self._desk.reserve(size)
        self._calls.add(self)
        self._taken = size

    def send(self, size: int) -> None:
        """Count the bytes of the answer."""
        self._desk.sending += size
        self._sending = size

    def release(self, _: object) -> None:
        """Give everything back."""
        self._calls.discard(self)
        self._desk.release(self._taken)
        self._desk.sending -= self._sending
        self._taken = self._sending = 0


def _why_cancelled(left: float | None) -> Refusal:
    """Return why a call ended before its answer: its deadline has passed, or the client has left.

    Args:
        left: seconds to the client's deadline; None if it has none.
    """
    if left is not None and left < _ROUNDED:
        return Refusal(Kind.LATE, "the client's deadline has passed; ask for a smaller budget, or wait longer")
    return Refusal(Kind.GONE, "the client has left")


class _Rpc:
    """The methods of the protocol."""

    def __init__(self, desk: Desk) -> None:
        self._desk, self._service = desk, desk.service

    async def live(self, request: Any, context: Any, call: Call) -> Any:
        return message("ServerLiveResponse")(live=True)

    async def ready(self, request: Any, context: Any, call: Call) -> Any:
        return message("ServerReadyResponse")(ready=self._service.ready)

    async def model_ready(self, request: Any, context: Any, call: Call) -> Any:
        self._find(request.name, request.version, call)
        return message("ModelReadyResponse")(ready=self._service.ready)

    async def server(self, request: Any, context: Any, call: Call) -> Any:
        return message("ServerMetadataResponse")(name="ortcam", version=ortcam.__version__, extensions=EXTENSIONS)

    async def model(self, request: Any, context: Any, call: Call) -> Any:
        self._find(request.name, request.version, call)
        return message("ModelMetadataResponse")(**describe_model(call.model, self._service.find(call.model)))

    def _find(self, name: str, version: str, call: Call) -> None:
        self._service.find(name, version)
        call.model = name

    async def infer(self, request: Any, context: Any, call: Call) -> bytes:
        self._find(request.model_name, request.model_version, call)
        self._service.check_room(call.model)
        read = partial(_read_question, request, self._service.find(call.model).facts, self._desk.limits)
        question, seconds = await self._desk.compute(read)
        left = context.time_remaining()  # to the client's deadline
        if left is not None:
            seconds = min(seconds, call.seconds + left)  # both from the arrival
        return await self._desk.answer(
            call,
            partial(self._service.submit, call.model, question, seconds),
            partial(_write, call.model, request.id),
        )


def _read_question(request: Any, facts: Facts, limits: ServingLimits) -> tuple[Question, float]:
    """Return the question of a message, and the seconds that the client's parameter says.

    Raises:
        Refusal: it is invalid.
    """
    asked = _read(request)
    return read_question(asked, facts, limits), read_timeout(asked.parameters, limits.timeout)


def _read(request: Any) -> InferRequest:
    """Return the request of a message.

    Raises:
        Refusal: it is invalid.
    """
    for name in ("inputs", "raw_input_contents", "outputs"):
        count = len(getattr(request, name))
        if count > MOST_TENSORS:
            raise invalid(f"the request has {count} {name}; expected at most {MOST_TENSORS}")
    if not request.inputs:
        raise invalid("the request has no inputs; expected the input image")
    _check_size(request)
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise invalid(f"the request has {len(request.inputs)} inputs and {len(raw)} raw_input_contents")
    inputs = unique(_read_input(given, raw[place] if raw else None) for place, given in enumerate(request.inputs))
    outputs = tuple(Output(one.name, True) for one in request.outputs)
    return InferRequest(inputs, outputs, _read_parameters(request.parameters), check_id(request.id), True)


def _check_size(request: Any) -> None:
    """Check how many values a message has, before they become objects of Python.

    Raises:
        Refusal: it has too many values or parameters.
    """
    fields = set(_CONTENTS.values())
    count = sum(
        len(one.shape) + (sum(len(getattr(one.contents, field)) for field in fields) if one.HasField("contents") else 0)
        for one in request.inputs
    )
    if count > _MOST_VALUES:
        raise Refusal(
            Kind.TOO_LARGE,
            f"the request has {count} values in contents; at most {_MOST_VALUES} are taken: use raw_input_contents",
        )
    if len(request.parameters) > _MOST_PARAMETERS:
        raise invalid(f"the request has {len(request.parameters)} parameters; expected at most {_MOST_PARAMETERS}")


def _read_input(given: Any, raw: bytes | None) -> Tensor:
    shape = check_head(given.name, given.datatype, list(given.shape))
    if raw is not None:
        if given.HasField("contents"):
            raise invalid(f"input {show(given.name)} has both contents and raw_input_contents")
        return from_raw(given.name, given.datatype, shape, raw)
    if given.datatype not in _CONTENTS:
        raise invalid(f"input {show(given.name)} is {given.datatype}; send it in raw_input_contents")
    if math.prod(shape) > 0 and not given.HasField("contents"):
        raise invalid(f"input {show(given.name)} has neither contents nor raw_input_contents")
    return from_values(given.name, given.datatype, shape, list(getattr(given.contents, _CONTENTS[given.datatype])))


def _read_parameters(given: Mapping[str, Any]) -> Parameters:
    made = {}
    for name, value in given.items():
        kind = value.WhichOneof("parameter_choice")
        if kind is None:
            raise invalid(f"parameter {show(name)} has no value")
        made[name] = getattr(value, kind)
    return check_parameters(made)


def _write(model: str, name: str, answer: Answer, question: Question) -> bytes:
    return _as_message(model, name, to_tensors(answer, question))


def _as_message(model: str, name: str, tensors: Iterable[Tensor]) -> bytes:
    response, contents = message("ModelInferResponse")(model_name=model, model_version=VERSION, id=name), list[bytes]()
    for tensor in tensors:
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        parts = list(raw_parts(tensor))
        contents += [_RAW_OUTPUT, _varint(sum(map(len, parts))), *parts]
    # Fields may stand in any order. protobuf would copy large values twice, during which no other thread runs.
    return b"".join([response.SerializeToString(), *contents])


def _varint(number: int) -> bytes:
    """Return a length as protobuf writes it: seven bits a byte, the lowest first."""
    made = bytearray()
    while number >= 128:
        made.append(number & 127 | 128)
        number >>= 7
    return bytes([*made, number])
