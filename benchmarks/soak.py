"""The requests of the soak: all doors, forms and kinds of answers, photos of several sizes, and broken ones."""

from __future__ import annotations

import base64
import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from ortcam.serving.messages import message

# (longest side of the photo, share): large ones are rare, because they take as long as many small ones.
SIZES = ((64, 10), (150, 10), (320, 4), (640, 1), (2000, 0.05))
SHARES = {"binary": 20, "grpc": 20, "json": 8, "people json": 10, "people png": 6, "v1 explain": 3, "v1 predict": 8,
          "binary predict": 8, "grpc predict": 8}  # fmt: skip
BROKEN = 0.01
PREDICTIONS = ("target_class", "probability")
INFER = "/v2/models/m/infer"


def infer_request(
    folder: Path, picture: bytes, parameters: dict[str, Any], outputs: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return a request of the protocol with a picture as binary data, and all answers binary, as load.py takes it."""
    raw = len(picture).to_bytes(4, "little") + picture
    image = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(raw)}}
    asked = {"outputs": [{"name": name} for name in outputs]} if outputs else {}
    text = json.dumps({"inputs": [image], "parameters": {**parameters, "binary_data_output": True}, **asked}).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))}
    return _request(folder, "binary predict" if outputs else "binary", INFER, text + raw, headers=headers, same=True)


def soak_requests(folder: Path, photo: Path) -> list[dict[str, Any]]:
    """Return requests with their shares, as load.py takes them; `BROKEN` of the shares are broken requests."""
    made = []
    for longest, weight in SIZES:
        pictures = list(_pictures(photo, longest))
        good = [one for picture in pictures for one in _good_requests(folder, picture)]
        made += [{**one, "share": SHARES[one["kind"]] * weight / len(pictures)} for one in good]
    small = next(_pictures(photo, 64))
    broken = list(_broken_requests(folder, small))
    share = sum(one["share"] for one in made) * BROKEN / (1 - BROKEN) / len(broken)
    return made + [{**one, "share": share} for one in broken]


def _pictures(photo: Path, longest: int) -> Iterator[bytes]:
    """Yield a photo as JPEG and as PNG, at most `longest` pixels wide and high."""
    with Image.open(photo) as opened:
        size = opened.size
        scale = longest / max(size)
        scaled = opened.convert("RGB").resize((round(size[0] * scale), round(size[1] * scale)))
    for form in ("JPEG", "PNG"):
        file = io.BytesIO()
        scaled.save(file, form)
        yield file.getvalue()


def _good_requests(folder: Path, picture: bytes) -> Iterator[dict[str, Any]]:
    budget = {"budget": 8}
    yield infer_request(folder, picture, budget)
    yield infer_request(folder, picture, {}, PREDICTIONS)
    yield _grpc_request(folder, "grpc", picture)
    yield _grpc_request(folder, "grpc predict", picture, PREDICTIONS)
    text = base64.b64encode(picture).decode()
    image = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [text]}
    body = json.dumps({"inputs": [image], "parameters": {"top_k": 2, **budget}}).encode()
    yield _request(folder, "json", INFER, body, same=True)
    yield _request(folder, "people json", "/models/m/explain?budget=8&top_k=2", picture)
    png = {"Accept": "image/png"}
    yield _request(folder, "people png", "/models/m/explain?budget=8", picture, headers=png, same=True)
    body = json.dumps({"instances": [{"b64": text}], "parameters": budget}).encode()
    yield _request(folder, "v1 explain", "/v1/models/m:explain", body, same=True)
    body = json.dumps({"instances": [{"b64": text}]}).encode()
    yield _request(folder, "v1 predict", "/v1/models/m:predict", body, same=True)


def _broken_requests(folder: Path, picture: bytes) -> Iterator[dict[str, Any]]:
    cut = infer_request(folder, picture[: len(picture) // 2], {"budget": 8})
    yield {**cut, "kind": "broken: cut picture", "expect": [400]}
    yield _request(folder, "broken: no JSON", INFER, b'{"inputs": [', expect=400)
    yield _request(folder, "broken: no picture", "/models/m/explain", b"hello", expect=400)
    yield _request(folder, "broken: no such model", "/models/none/explain", picture, expect=404)
    yield _request(folder, "broken: no such option", "/models/m/explain?budgets=8", picture, expect=400)
    yield {**_grpc_request(folder, "broken: cut picture, grpc", picture[:500]), "expect": ["INVALID_ARGUMENT"]}
    yield {**_grpc_request(folder, "broken: no message", b""), "body": _file(folder, b"\xff" * 99),
           "expect": ["INVALID_ARGUMENT"]}  # fmt: skip
    left = _request(folder, "broken: client leaves", "/models/m/explain?budget=8", picture)
    yield {**left, "leaves": 0.5, "expect": ["left"]}
    yield {**left, "leaves": 1.0, "expect": ["left"]}


def _grpc_request(folder: Path, kind: str, picture: bytes, outputs: tuple[str, ...] = ()) -> dict[str, Any]:
    request = message("ModelInferRequest")(model_name="m")
    request.inputs.add(name="image", datatype="BYTES", shape=[1])
    request.raw_input_contents.append(len(picture).to_bytes(4, "little") + picture)
    request.parameters["budget"].int64_param = 8
    for name in outputs:
        request.outputs.add(name=name)
    body = _file(folder, request.SerializeToString())
    return {"kind": kind, "method": "grpc", "target": "", "body": body, "expect": ["OK"], "same": True}


def _request(
    folder: Path, kind: str, target: str, body: bytes, headers: dict[str, str] | None = None, expect: int = 200,
    same: bool = False,
) -> dict[str, Any]:  # fmt: skip
    given = {"kind": kind, "target": target, "body": _file(folder, body), "headers": headers or {}}
    return {**given, "expect": [expect], "same": same}


_numbers = itertools.count()


def _file(folder: Path, data: bytes) -> str:
    path = folder / f"request-{next(_numbers)}"
    path.write_bytes(data)
    return str(path)
