"""Seeded mutations of valid requests to the server: over REST as bytes, and over gRPC as messages."""

from __future__ import annotations

import base64
import json
import struct
from copy import deepcopy
from typing import Any

import numpy as np
from serving_attacks import SIZE, draw_photo, infer_body, request

from ortcam.serving.messages import message

Random = np.random.Generator
PHOTO = draw_photo()
_B64 = base64.b64encode(PHOTO).decode()
_IMAGE = {"name": "image", "datatype": "BYTES", "shape": [1]}
_LENGTH = "Inference-Header-Content-Length"
_WILD: list[Any] = [
    None, True, False, 0, -1, 1, 3, 7, 255, 2**31, 2**63, -(2**63) - 1, 10**30, 10**400, 0.5, -0.0, 1e308, 1e-320,
    float("nan"), float("inf"), "", "0", "3", "cat", "image", "target", "BYTES", "INT64", "FP32", "all", "\x00",
    "\ud800", "\u2028", "../..", "%2e%2e", "a" * 3000, _B64, [], {}, [[]], [None], [0, 0], ["cat", "dog"],
    [[[[[[[[[[1]]]]]]]]]], {"a": {}}, {"b64": _B64}, {"name": "label"}, [{"name": "image"}],
    [1e400], [-1], [2**31 - 1] * 8, [0] * 300,
]  # fmt: skip


def bodies() -> list[Any]:
    """Return valid requests of the protocol in JSON."""
    pixels = infer_body()["inputs"][0]
    in_text = _IMAGE | {"data": [_B64]}
    values = np.random.default_rng(3).normal(0, 1, (1, 3, SIZE, SIZE)).round(2).tolist()
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, 3, SIZE, SIZE], "data": values}
    labels = {"name": "target", "datatype": "BYTES", "shape": [2], "data": ["cat", "dog"]}
    indices = {"name": "target", "datatype": "INT64", "shape": [1], "data": [1]}
    outputs = [{"name": "label"}, {"name": "saliency", "parameters": {"binary_data": True}}]
    return [
        {"id": "1", "inputs": [pixels], "parameters": {"budget": 2, "top_k": 2, "binary_data_output": True}},
        {"inputs": [in_text, labels], "outputs": [*outputs, {"name": "overlay"}, {"name": "error"}]},
        {"inputs": [tensor, indices], "outputs": outputs, "parameters": {"tolerance": 0.1, "size": "photo"}},
        {"inputs": [in_text], "outputs": outputs[:1], "parameters": {"timeout": 10**7, "caption": True}},
    ]


def binary_bodies() -> list[tuple[Any, bytes]]:
    """Return valid requests with binary data: the JSON and the data."""
    file = struct.pack("<I", len(PHOTO)) + PHOTO
    pixels = np.random.default_rng(4).integers(0, 256, (2, 9, 7, 3), np.uint8).tobytes()
    target = np.array([2, 0]).tobytes()
    batch = {"name": "image", "datatype": "UINT8", "shape": [2, 9, 7, 3], "parameters": {"binary_data_size": 378}}
    wanted = {"name": "target", "datatype": "INT64", "shape": [2], "parameters": {"binary_data_size": 16}}
    return [
        ({"inputs": [_IMAGE | {"parameters": {"binary_data_size": len(file)}}]}, file),
        ({"inputs": [batch, wanted], "parameters": {"budget": 3}}, pixels + target),
    ]


def instances() -> list[Any]:
    """Return valid requests of KServe's first protocol."""
    return [
        {"instances": [{"b64": _B64}, {"image": {"b64": _B64}}], "parameters": {"targets": ["cat", 1], "budget": 2}},
        {"instances": [{"b64": _B64}], "parameters": {"overlay": True, "top_k": 2}},
    ]


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return all containers and keys of a JSON value."""
    found: list[tuple[Any, Any]] = []
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(min(len(value), 4)):
            found += [(value, key), *_places(value[key])]
    return found


def _any(random: Random, of: list[Any]) -> Any:
    return of[int(random.integers(len(of)))]


def _wild(random: Random) -> Any:
    return deepcopy(_any(random, _WILD))


def mutate_json(random: Random, value: Any) -> Any:
    """Replace, remove, repeat or add values of a JSON value."""
    value = json.loads(json.dumps(value))
    for _ in range(int(random.integers(1, 4))):
        places = _places(value)
        if not places:
            break
        inside, key = _any(random, places)
        kind = int(random.integers(6))
        if kind < 3:
            inside[key] = _wild(random)
        elif kind == 3:
            del inside[key]
        elif isinstance(inside, list):
            inside.insert(key, inside[key] if kind == 4 else _wild(random))
        elif kind == 4:
            other, place = _any(random, places)
            inside[key] = json.loads(json.dumps(other[place]))
        else:
            inside[_any(random, ["budget", "parameters", "data", "timeout", "\ud800", "x" * 200])] = _wild(random)
    return value


def mutate_bytes(random: Random, data: bytes) -> bytes:
    """Flip, cut, remove, repeat or insert bytes."""
    made = bytearray(data)
    for _ in range(int(random.integers(1, 5))):
        if not made:
            break
        at, count, kind = int(random.integers(len(made))), int(random.integers(1, 30)), int(random.integers(10))
        if kind < 4:
            made[at] ^= 1 << int(random.integers(8))
        elif kind < 6:
            made[at] = int(random.integers(256))
        elif kind == 6:
            del made[at : at + count]
        elif kind == 7:
            made[at:at] = made[at : at + count]
        elif kind == 8:
            made[at:at] = random.bytes(count)
        else:
            del made[at:]
    return bytes(made)


def _dumped(random: Random, value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":") if random.integers(2) else None).encode()


def mutated_infer(random: Random) -> tuple[bytes, str | None]:
    """Return a mutated body of a request to infer, and its header Inference-Header-Content-Length."""
    by_values = random.integers(3) > 0
    if random.integers(2):
        body = _any(random, bodies())
        text = _dumped(random, mutate_json(random, body) if by_values else body)
        return text if by_values else mutate_bytes(random, text), None
    body, tail = _any(random, binary_bodies())
    head = _dumped(random, mutate_json(random, body) if by_values and random.integers(2) else body)
    length = str(len(head))
    if by_values:
        tail = mutate_bytes(random, tail) if random.integers(2) else tail
        if not random.integers(8):
            length = str(_any(random, [-1, 0, 1, len(head) - 1, len(head) + 1, 10**12, "x", "", "\xb2"]))
        return head + tail, length
    return mutate_bytes(random, head + tail), length


def mutated_request(random: Random) -> bytes:
    """Return the bytes of a mutated request over REST."""
    door, headers, query = int(random.integers(10)), dict[str, str](), ""
    if door < 5:
        body, length = mutated_infer(random)
        path = "/v2/models/tiny/infer"
        headers = {} if length is None else {_LENGTH: length}
    elif door < 7:
        path = _any(random, ["/v1/models/tiny:explain", "/v1/models/tiny:predict"])
        body = _dumped(random, mutate_json(random, _any(random, instances())))
    else:
        path, body = "/models/tiny/explain", PHOTO if random.integers(2) else mutate_bytes(random, PHOTO)
        names = ["budget", "top_k", "target", "size", "caption", "tolerance", "timeout", "x"]
        query = "&".join(f"{_any(random, names)}={_any(random, QUERY)}" for _ in range(int(random.integers(4))))
        headers = {"Accept": _any(random, ["image/png", "*/*", "text/html, image/*;q=.1", ",;", ""])}
    if not random.integers(20):
        headers |= {_any(random, _HEADERS): _any(random, QUERY) for _ in range(2)}
    length_said = None if random.integers(40) else len(body) + int(random.integers(-3, 4))
    data = request(path + ("?" + query if query else ""), body, headers=headers, length=length_said)
    return data if random.integers(20) else mutate_bytes(random, data)


QUERY = [
    "1",
    "2",
    "-1",
    "0",
    "",
    "cat",
    "photo",
    "input",
    "true",
    "nan",
    "1e9",
    "9" * 30,
    "%00",
    "%ff",
    "%F0%9F%90%88",
    "a=b",
]
_HEADERS = [
    "Content-Encoding",
    "Content-Length",
    "Transfer-Encoding",
    "Expect",
    "X-Request-Id",
    "Connection",
    "Host",
    "X",
]


def valid_messages() -> list[Any]:
    """Return valid requests over gRPC."""
    made = message("ModelInferRequest")
    file = struct.pack("<I", len(PHOTO)) + PHOTO
    values = {"fp32_contents": [0.5] * (3 * SIZE * SIZE)}
    return [
        made(model_name="tiny", id="7", inputs=[_IMAGE], raw_input_contents=[file], outputs=[{"name": "saliency"}]),
        made(
            model_name="tiny",
            model_version="1",
            inputs=[{"name": "image", "datatype": "FP32", "shape": [1, 3, SIZE, SIZE], "contents": values}],
            parameters={"budget": {"int64_param": 2}, "size": {"string_param": "input"}},
        ),
        made(
            model_name="tiny",
            inputs=[
                _IMAGE | {"contents": {"bytes_contents": [PHOTO]}},
                {"name": "target", "datatype": "INT64", "shape": [2], "contents": {"int64_contents": [0, 2]}},
            ],
            parameters={"tolerance": {"double_param": 0.2}},
        ),
    ]


_FIELDS: dict[str, list[Any]] = {
    "bool": [True], "int64": [-1, 0, 3, 2**63 - 1, -(2**63)], "uint64": [0, 2, 2**64 - 1],
    "string": ["", "3", "cat", "image", "like", "BYTES", "UINT8", "x" * 3000, "\x00", "\u2028"],
    "double": [0.5, -1.0, float("nan"), float("inf"), 1e308],
}  # fmt: skip


def _wild_parameter(random: Random) -> dict[str, Any]:
    kind = _any(random, list(_FIELDS))
    return {f"{kind}_param": _any(random, _FIELDS[kind])} if random.integers(8) else {}


def mutated_message(random: Random) -> bytes:
    """Return a mutated request over gRPC: its bytes changed, or well-formed with wild fields."""
    one = _any(random, valid_messages())
    if not random.integers(3):
        return mutate_bytes(random, one.SerializeToString())
    for _ in range(int(random.integers(1, 4))):
        place = _any(random, list(one.inputs)) if one.inputs else one.inputs.add()
        kind = int(random.integers(10))
        if kind < 3:
            name = _any(random, ["budget", "top_k", "size", "tolerance", "timeout", "caption", "x"])
            one.parameters[name].CopyFrom(message("InferParameter")(**_wild_parameter(random)))
        elif kind == 3:
            place.name = _any(random, _FIELDS["string"])
        elif kind == 4:
            place.datatype = _any(random, ["BYTES", "UINT8", "INT64", "FP16", "FP32", "FP64", "BOOL", "", "x" * 5000])
        elif kind == 5:
            place.shape[:] = _any(random, [[], [0], [1], [-1], [2**62], [1] * 9, [2**31 - 1] * 8, [1, 3, SIZE, SIZE]])
        elif kind == 6:
            place.contents.bytes_contents.append(_any(random, [b"", b"cat", b"\xff", PHOTO, b"x" * 5000]))
        elif kind == 7:
            one.outputs.add(name=_any(random, ["label", "overlay", "saliency", "", "x"]))
        elif kind == 8:
            one.raw_input_contents.append(_any(random, [b"", b"\0\0\0\0", b"\xff" * 9, PHOTO, bytes(768)]))
        else:
            one.inputs.add().CopyFrom(place)
    return bytes(one.SerializeToString())
