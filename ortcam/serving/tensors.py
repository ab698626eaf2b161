"""Tensors of the Open Inference Protocol: the datatypes, and their binary and JSON forms.

https://github.com/open-inference/open-inference-protocol
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ortcam.errors import nearest
from ortcam.serving.refusal import invalid

DTYPES: dict[str, type[np.generic]] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}
_MOST_DIMENSIONS = 8
_LARGEST = 2**31 - 1
_SHOWN = 60  # characters of a client's value in a message
_MOST_TEXTS = 10_000  # of a BYTES tensor
_VALUES_AT_ONCE = 4096  # written as JSON in one go: other threads run in between
_BYTES_AT_ONCE = 1_000_000  # likewise, of binary values
JSON_BYTES = 13  # of a float32 in JSON, at the most on average


@dataclass(frozen=True)
class Tensor:
    """A tensor by its name.

    Attributes:
        name: its name.
        datatype: BYTES, or a key of `DTYPES`.
        shape: its shape.
        values: an array of that shape; of BYTES, a flat list.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: NDArray[Any] | list[bytes]

    @classmethod
    def of_array(cls, name: str, values: NDArray[Any]) -> Tensor:
        """Return the tensor of an array."""
        return cls(name, _NAMES[values.dtype.type], values.shape, values)

    @classmethod
    def of_bytes(cls, name: str, values: Sequence[bytes]) -> Tensor:
        """Return a BYTES tensor with one dimension."""
        return cls(name, "BYTES", (len(values),), list(values))

    @property
    def array(self) -> NDArray[Any]:
        """The values of a tensor that is not BYTES."""
        assert isinstance(self.values, np.ndarray)
        return self.values

    @property
    def items(self) -> list[bytes]:
        """The values of a BYTES tensor."""
        assert isinstance(self.values, list)
        return self.values


_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def check_head(name: Any, datatype: Any, shape: Any) -> tuple[int, ...]:
    """Check the name, datatype and shape of an input, and return the shape.

    Raises:
        Refusal: one of them is invalid.
    """
    if not isinstance(name, str) or not name:
        raise invalid(f"an input has the name {show(name)}; expected text")
    if not isinstance(datatype, str) or (datatype != "BYTES" and datatype not in DTYPES):
        known = ["BYTES", *DTYPES]
        hint = nearest(datatype, known) if isinstance(datatype, str) else ""
        raise invalid(
            f"input {show(name)} has the unknown datatype {show(datatype)}{hint}; expected {', '.join(known)}"
        )
    sizes = list(shape) if isinstance(shape, Sequence) and not isinstance(shape, str | bytes) else None
    right = sizes is not None and all(type(one) is int and 0 <= one <= _LARGEST for one in sizes)
    if sizes is None or not right or len(sizes) > _MOST_DIMENSIONS:
        raise invalid(f"input {show(name)} has the shape {show(shape)}; expected at most 8 whole numbers from 0")
    return tuple(sizes)


def from_raw(name: str, datatype: str, shape: tuple[int, ...], raw: bytes | memoryview) -> Tensor:
    """Return the tensor of binary values: little-endian numbers, row by row; BYTES each after its length, uint32.

    Raises:
        Refusal: the bytes do not have the shape.
    """
    count = math.prod(shape)
    if datatype == "BYTES":
        _check_texts(name, count)
        items = list(_split(name, raw, count))
        if len(items) != count:
            raise invalid(f"input {show(name)} has {len(items)} values; its shape {list(shape)} has {count}")
        return Tensor(name, datatype, shape, items)
    dtype = np.dtype(DTYPES[datatype]).newbyteorder("<")
    if len(raw) != count * dtype.itemsize:
        raise invalid(
            f"input {show(name)} has {len(raw)} bytes; {datatype} of shape {list(shape)} has {count * dtype.itemsize}"
        )
    values = np.frombuffer(raw, dtype).reshape(shape)
    return Tensor(name, datatype, shape, values.astype(values.dtype.newbyteorder("="), copy=False))


def _check_texts(name: str, count: int) -> None:
    if count > _MOST_TEXTS:
        raise invalid(f"input {show(name)} has {count} values; expected at most {_MOST_TEXTS} BYTES")


def _split(name: str, raw: bytes | memoryview, most: int) -> Iterator[bytes]:
    at, count = 0, 0
    while at < len(raw):
        end = at + 4 + int.from_bytes(raw[at : at + 4], "little")
        if at + 4 > len(raw) or end > len(raw):
            raise invalid(
                f"value {count} of input {show(name)} ends beyond its data; expected its length (4 bytes, "
                "little-endian) and as many bytes"
            )
        count += 1
        if count > most:
            raise invalid(f"input {show(name)} has more than the {most} values of its shape")
        yield bytes(raw[at + 4 : end])
        at = end


def from_values(name: str, datatype: str, shape: tuple[int, ...], data: Any) -> Tensor:
    """Return the tensor of values that JSON or a list of numbers holds, flat or nested.

    Values of BYTES are text. `ortcam.serving.questions` reads a picture in text as base64, because no picture is text.

    Raises:
        Refusal: the values do not have the shape or the datatype.
    """
    if not isinstance(data, list):
        raise invalid(f"input {show(name)} has data {show(data)}; expected a list of values")
    count = math.prod(shape)
    if datatype == "BYTES":
        _check_texts(name, count)
        texts = list(_flat(name, data))
        if not all(isinstance(one, str | bytes) for one in texts):
            raise invalid(f"input {show(name)} is BYTES and has a value that is not text")
        if len(texts) != count:
            raise invalid(f"input {show(name)} has {len(texts)} values; its shape {list(shape)} has {count}")
        items = [one if isinstance(one, bytes) else one.encode("utf-8", "surrogatepass") for one in texts]
        return Tensor(name, datatype, shape, items)
    try:
        given = np.asarray(data)
    except ValueError as error:
        raise invalid(f"input {show(name)} has rows of different lengths") from error
    if given.size != count or (given.ndim > 1 and given.shape != shape):
        raise invalid(f"input {show(name)} has values of shape {list(given.shape)}; its shape is {list(shape)}")
    return Tensor(name, datatype, shape, _cast(name, datatype, given).reshape(shape))


def _cast(name: str, datatype: str, given: NDArray[Any]) -> NDArray[Any]:
    dtype = np.dtype(DTYPES[datatype])
    kinds = {"b": "b", "u": "iu", "i": "iu", "f": "iuf"}[dtype.kind]
    if given.size and given.dtype.kind not in kinds:
        raise invalid(f"input {show(name)} is {datatype} and has other values")
    if dtype.kind in "ui" and given.size:
        bounds = np.iinfo(dtype)
        if int(given.min()) < bounds.min or int(given.max()) > bounds.max:
            raise invalid(f"input {show(name)} is {datatype} and has values out of its range")
    with np.errstate(over="ignore"):
        return given.astype(dtype)


def _flat(name: str, data: list[Any], depth: int = 1) -> Iterator[Any]:
    if depth > _MOST_DIMENSIONS:
        raise invalid(f"input {show(name)} has lists in more than {_MOST_DIMENSIONS} lists; expected a flat list")
    for one in data:
        if isinstance(one, list):
            yield from _flat(name, one, depth + 1)
        else:
            yield one


def raw_parts(tensor: Tensor) -> Iterator[bytes]:
    """Yield the binary form of a tensor in parts."""
    if tensor.datatype == "BYTES":
        for item in tensor.items:
            yield len(item).to_bytes(4, "little")
            yield item
        return
    flat = tensor.array.reshape(-1)
    count = max(1, _BYTES_AT_ONCE // flat.itemsize)
    for at in range(0, flat.size, count):
        some = flat[at : at + count]
        yield some.astype(some.dtype.newbyteorder("<"), copy=False).tobytes()


def json_parts(tensor: Tensor) -> Iterator[bytes]:
    """Yield the values of a tensor as a flat JSON list: null for NaN, which JSON lacks; base64 for pictures."""
    if tensor.datatype == "BYTES":
        yield json.dumps([_as_text(one) for one in tensor.items]).encode()
        return
    flat = tensor.array.reshape(-1)
    yield b"["
    for at in range(0, flat.size, _VALUES_AT_ONCE):
        yield (b"," if at else b"") + spell(flat[at : at + _VALUES_AT_ONCE])
    yield b"]"


def spell(some: NDArray[Any]) -> bytes:
    """Return the numbers of a row [N] in JSON, without brackets; nine digits state a float32 exactly.

    Nothing here releases Python's lock for a moment, as NumPy's functions do: whoever waits for it would begin to wait
    anew each time, and would never ask for it.
    """
    values: list[Any] = some.tolist()
    if some.dtype == np.float32:
        text = ("%.9g," * len(values) % tuple(values))[:-1]
        if "n" not in text:  # neither nan nor inf
            return text.encode()
    if some.dtype.kind == "f":
        values = [one if math.isfinite(one) else None for one in values]
    return json.dumps(values, separators=(",", ":"))[1:-1].encode()


def _as_text(item: bytes) -> str:
    try:
        return item.decode("utf-8")
    except UnicodeDecodeError:  # the first byte of a PNG file is never text
        return base64.b64encode(item).decode()


def show(value: Any) -> str:
    """Return a value of a client for a message, at most 60 characters.

    Only its beginning is turned into text: the whole can be megabytes, or nested too deeply for `repr`.
    """
    text = "".join(islice(_spell(value), _SHOWN + 1))
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _spell(value: Any, depth: int = 0) -> Iterator[str]:
    """Yield the pieces of a value as `repr` spells it, none of them empty."""
    if isinstance(value, str | bytes | memoryview):
        short = value[: _SHOWN + 1]
        yield from repr(bytes(short) if isinstance(short, memoryview) else short)
    elif isinstance(value, list | dict) and depth > _SHOWN:
        yield "..."
    elif isinstance(value, list):
        yield "["
        for place, one in enumerate(value):
            yield from ", " if place else ""
            yield from _spell(one, depth + 1)
        yield "]"
    elif isinstance(value, dict):
        yield "{"
        for place, (key, one) in enumerate(value.items()):
            yield from ", " if place else ""
            yield from _spell(key, depth + 1)
            yield from ": "
            yield from _spell(one, depth + 1)
        yield "}"
    elif type(value) is int and abs(value) >= 10**_SHOWN:  # Python refuses to print thousands of digits
        yield f"{'-' if value < 0 else ''}over 1e{_SHOWN}"
    else:
        yield from repr(value)
