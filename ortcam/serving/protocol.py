"""Requests and answers of the Open Inference Protocol, and their form over REST: JSON, and JSON with binary data.

https://github.com/open-inference/open-inference-protocol, and the binary tensor data extension of Triton:
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ortcam.serving.refusal import Kind, Refusal, invalid
from ortcam.serving.tensors import Tensor, check_head, from_raw, from_values, json_parts, raw_parts, show

Parameters = Mapping[str, bool | int | float | str]
MOST_TENSORS = 32  # of a request, and of asked outputs
_MOST_VALUES, _MOST_KEYS = 300_000, 10_000  # of a JSON: its commas and colons, also those in texts
_MOST_ID = 1000  # characters of the client's id of a request


@dataclass(frozen=True)
class Output:
    """An output that a request asks for.

    Attributes:
        name: its name.
        binary: whether REST sends it as binary data.
    """

    name: str
    binary: bool


@dataclass(frozen=True)
class InferRequest:
    """A request to infer.

    Attributes:
        inputs: the inputs by name.
        outputs: the outputs that are asked for, in order; none for the usual ones.
        parameters: the parameters of the request.
        id: the client's own name of the request.
        binary: whether REST sends all outputs as binary data that do not say otherwise.
    """

    inputs: Mapping[str, Tensor]
    outputs: tuple[Output, ...] = ()
    parameters: Parameters = field(default_factory=dict)
    id: str = ""
    binary: bool = False


def read_json(text: bytes | memoryview, most: int) -> dict[str, Any]:
    """Return the JSON object of a client, as strict JSON: no NaN, no key twice.

    Raises:
        Refusal: it is no JSON object, has more than `most` bytes, or too many values. No other thread runs while it is
            parsed.
    """
    if len(text) > most:
        raise Refusal(Kind.TOO_LARGE, f"the JSON has {len(text)} bytes; at most {most} are taken: send binary data")
    text = bytes(text)
    if text.count(b",") > _MOST_VALUES or text.count(b":") > _MOST_KEYS:
        raise Refusal(
            Kind.TOO_LARGE,
            f"the JSON has over {_MOST_VALUES} values, or over {_MOST_KEYS} keys; send numbers as binary data",
        )
    try:
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_without_repeats)
    except RecursionError as error:
        raise invalid("the JSON is nested too deeply") from error
    except ValueError as error:  # also of bytes that are no UTF-8, and numbers of thousands of digits
        raise invalid(f"the request is not valid JSON: {show(str(error))[1:-1]}") from error
    if not isinstance(value, dict):
        raise invalid(f"the request is the JSON value {show(value)}; expected an object")
    return value


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("an object has the same key twice")
    return made


def read_infer(body: bytes, header_length: str | None, most_json: int) -> InferRequest:
    """Return a request from the body of a POST.

    Args:
        body: the body.
        header_length: the header Inference-Header-Content-Length, the bytes of the JSON before binary data; None
            without binary data.
        most_json: the largest JSON, in bytes.

    Raises:
        Refusal: the request is invalid.
    """
    length = _read_length(header_length, len(body))
    view = memoryview(body)
    head, binary = read_json(view[:length], most_json), _Binary(view[length:])
    given = _list(head, "inputs")
    if not given:
        raise invalid("the request has no inputs; expected the input image")
    inputs = unique([_read_input(one, binary) for one in given])
    binary.check_end()
    parameters = check_parameters(head.get("parameters", {}))
    by_default = parameters.get("binary_data_output", False) is True
    outputs = tuple(_read_output(one, by_default) for one in _list(head, "outputs"))
    return InferRequest(inputs, outputs, parameters, check_id(head.get("id", "")), by_default)


def check_id(given: Any) -> str:
    """Check and return the client's id of a request.

    Raises:
        Refusal: it is no text, or too long.
    """
    if not isinstance(given, str):
        raise invalid(f"id is {show(given)}; expected text")
    if len(given) > _MOST_ID:
        raise invalid(f"id has {len(given)} characters; expected at most {_MOST_ID}")
    return given


def unique(tensors: Iterable[Tensor]) -> dict[str, Tensor]:
    """Return inputs by name.

    Raises:
        Refusal: two have one name.
    """
    found: dict[str, Tensor] = {}
    for tensor in tensors:
        if tensor.name in found:
            raise invalid(f"the request has the input {show(tensor.name)} twice")
        found[tensor.name] = tensor
    return found


def _read_length(header: str | None, total: int) -> int:
    if header is None:
        return total
    if not (header.isascii() and header.isdecimal()) or len(header) > 18 or not 0 < int(header) <= total:
        raise invalid(
            f"Inference-Header-Content-Length is {show(header)}; expected the bytes of the JSON, 1 to {total}"
        )
    return int(header)


def _list(head: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    found = head.get(key, [])
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise invalid(f"{key} is {show(found)}; expected a list of objects")
    if len(found) > MOST_TENSORS:
        raise invalid(f"the request has {len(found)} {key}; expected at most {MOST_TENSORS}")
    return found


class _Binary:
    """The binary data behind the JSON, which the inputs take in turn."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._at = data, 0

    def take(self, name: str, size: Any) -> memoryview:
        left = len(self._data) - self._at
        if type(size) is not int or not 0 <= size <= left:
            raise invalid(
                f"input {show(name)} has binary_data_size {show(size)}; {left} bytes of binary data are left "
                "(set Inference-Header-Content-Length to the bytes of the JSON)"
            )
        self._at += size
        return self._data[self._at - size : self._at]

    def check_end(self) -> None:
        if self._at != len(self._data):
            raise invalid(f"{len(self._data) - self._at} bytes of binary data belong to no input")


def _read_input(given: dict[str, Any], binary: _Binary) -> Tensor:
    name, datatype = given.get("name"), given.get("datatype")
    shape = check_head(name, datatype, given.get("shape"))
    assert isinstance(name, str) and isinstance(datatype, str)  # checked
    size = check_parameters(given.get("parameters", {})).get("binary_data_size")
    if size is not None:
        if "data" in given:
            raise invalid(f"input {show(name)} has both data and binary_data_size")
        return from_raw(name, datatype, shape, binary.take(name, size))
    if "data" not in given:
        raise invalid(f"input {show(name)} has neither data nor the parameter binary_data_size")
    return from_values(name, datatype, shape, given["data"])


def _read_output(given: dict[str, Any], by_default: bool) -> Output:
    name = given.get("name")
    if not isinstance(name, str):
        raise invalid(f"an output has the name {show(name)}; expected text")
    binary = check_parameters(given.get("parameters", {})).get("binary_data", by_default)
    if not isinstance(binary, bool):
        raise invalid(f"output {show(name)} has binary_data {show(binary)}; expected true or false")
    return Output(name, binary)


def check_parameters(given: Any) -> Parameters:
    """Check and return parameters.

    Raises:
        Refusal: they are not an object of plain, finite values.
    """
    if not isinstance(given, dict):
        raise invalid(f"parameters is {show(given)}; expected an object")
    for name, value in given.items():
        plain = isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))
        if not plain:
            raise invalid(f"parameter {show(name)} is {show(value)}; expected true, false, text or a finite number")
    return given


def write_answer(
    model: str, version: str, request: InferRequest, tensors: Iterable[Tensor]
) -> tuple[bytes, int | None]:
    """Return the body of an answer, and the bytes of its JSON if binary data follows.

    Args:
        model, version: the model that answered.
        request: the request, which says which outputs are binary.
        tensors: the outputs.
    """
    binary = {output.name: output.binary for output in request.outputs}
    head = {"model_name": model, "model_version": version, **({"id": request.id} if request.id else {})}
    # Parts are joined once, at the end: `bytes.join` lets other threads run.
    text, tail = [json.dumps(head).encode()[:-1], b', "outputs": ['], list[bytes]()
    for place, tensor in enumerate(tensors):
        said: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        text.append(b", " if place else b"")
        if binary.get(tensor.name, request.binary):
            parts = list(raw_parts(tensor))
            tail += parts
            text.append(json.dumps({**said, "parameters": {"binary_data_size": sum(map(len, parts))}}).encode())
        else:
            text += [json.dumps(said).encode()[:-1], b', "data": ', *json_parts(tensor), b"}"]
    text.append(b"]}")
    return b"".join(text + tail), sum(map(len, text)) if tail else None
