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
from ortcam.serving.messages import SERVICE, message
from ortcam.serving.metadata import EXTENSIONS, describe_model
from ortcam.serving.protocol import MOST_TENSORS, InferRequest, Output, Parameters, check_id, check_parameters, unique
from ortcam.serving.questions import Question, read_question, read_timeout
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
        maximum_concurrent_rpcs=limits.connections,
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
    kind = message(f"{name}Request")

    async def answer(data: bytes, context: Any) -> bytes | Refusal:
        given = dict(context.invocation_metadata() or ())
        asked = given.get("x-request-id")
        call, refusal = Call("grpc", request_id(asked if isinstance(asked, str) else None)), None
        try:
            if name not in ("ServerLive", "ServerReady", "ServerMetadata"):
                key = given.get("authorization")
                desk.check_key(key if isinstance(key, str) else None)
            try:
                parse = partial(desk.compute, kind.FromString, data)
                request = kind.FromString(data) if len(data) < _SMALL else await parse()
            except Exception as error:
                raise invalid(f"the message is not a valid {name}Request") from error
            response = await handler(request, context, call)
            made: bytes = response if isinstance(response, bytes) else response.SerializeToString()
        except Refusal as error:
            refusal = error
            forget(error)
        except asyncio.CancelledError:
            desk.told(call, "CANCELLED", Refusal(Kind.GONE, "the client has left"))
            raise
        except Exception:  # noqa: BLE001 - a fault in ortcam, which the client must not see
            _log.exception("request %s failed", call.id)
            refusal = Refusal(Kind.FAILED, f"the server failed; its log has the reason at request {call.id}")
        if name == "ModelInfer" or refusal is not None:
            desk.told(call, "OK" if refusal is None else refusal.kind.grpc, refusal)
        context.set_trailing_metadata((("x-request-id", call.id),))
        return made if refusal is None else refusal

    async def method(data: bytes, context: Any) -> bytes:
        made = await answer(data, context)
        del data  # the frame of an abort lives until the garbage collector runs
        if isinstance(made, Refusal):
            await context.abort(getattr(grpc.StatusCode, made.kind.grpc), str(made))
        return made  # type: ignore[return-value] # abort raises

    return method


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
        size = request.ByteSize()
        self._desk.reserve(size)
        try:
            asked = await self._desk.compute(_read, request)
            question = read_question(asked, self._service.find(call.model).facts, self._desk.limits)
            seconds = read_timeout(asked.parameters, self._desk.limits.timeout)
            left = context.time_remaining()  # the client's deadline
            return await self._desk.answer(
                call,
                partial(self._service.submit, call.model, question, seconds if left is None else min(seconds, left)),
                partial(_write, call.model, request.id),
            )
        finally:
            self._desk.release(size)


def _read(request: Any) -> InferRequest:
    """Return the request of a message.

    Raises:
        Refusal: it is invalid.
    """
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise invalid(f"the request has {len(request.inputs)} inputs and {len(raw)} raw_input_contents")
    if not request.inputs:
        raise invalid("the request has no inputs; expected the input image")
    for name, given in (("inputs", request.inputs), ("outputs", request.outputs)):
        if len(given) > MOST_TENSORS:
            raise invalid(f"the request has {len(given)} {name}; expected at most {MOST_TENSORS}")
    inputs = unique(_read_input(given, raw[place] if raw else None) for place, given in enumerate(request.inputs))
    outputs = tuple(Output(one.name, True) for one in request.outputs)
    return InferRequest(inputs, outputs, _read_parameters(request.parameters), check_id(request.id), True)


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
