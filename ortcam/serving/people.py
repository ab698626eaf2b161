"""Doors for people and for KServe's first protocol: a bare photo in, JSON or a picture out."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from ortcam.core.targets import Target
from ortcam.output.record import describe_target
from ortcam.output.render import encode_png
from ortcam.serving.answers import Answer, Explained, map_of
from ortcam.serving.bodies import body_of, until_gone
from ortcam.serving.desk import Call, Desk
from ortcam.serving.protocol import InferRequest, check_parameters, read_json
from ortcam.serving.questions import PREDICTIONS, Question, read_question, read_timeout
from ortcam.serving.refusal import invalid
from ortcam.serving.tensors import Tensor, show

_WHOLE = ("budget", "top_k", "sign")  # parameters of a query that are numbers
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src blob: data:; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
}


class People:
    """The handlers."""

    def __init__(self, desk: Desk) -> None:
        self._desk, self._service, self._limits = desk, desk.service, desk.limits

    async def page(self, request: Request, call: Call) -> Response:
        text = (files("ortcam.serving") / "page.html").read_text(encoding="utf-8")
        return Response(text, headers=_PAGE_HEADERS, media_type="text/html")

    async def list_models(self, request: Request, call: Call) -> Response:
        return Response(json.dumps({"models": list(self._service.models)}), media_type="application/json")

    async def model_ready(self, request: Request, call: Call) -> Response:
        ready = self._service.ready
        said = json.dumps({"name": call.model, "ready": ready})
        return Response(said, 200 if ready else 503, media_type="application/json")

    async def explain(self, request: Request, call: Call) -> Response:
        """Explain the photo in the body; options are in the query."""
        as_picture = _wants_picture(request.headers.get("accept", ""))
        given = _read_query(request)
        targets = [one.encode() for one in given.pop("target", [])]
        caption = given.setdefault("caption", True)
        async with body_of(request, self._desk) as body:
            inputs = {"image": Tensor.of_bytes("image", [body])}
            if targets:
                inputs["target"] = Tensor.of_bytes("target", targets)
            asked = InferRequest(inputs, parameters=given)
            question = replace(
                read_question(asked, self._service.find(call.model).facts, self._limits),
                outputs=("overlay",) if as_picture else ("scored",),
            )
            made = await self._desk.answer(
                call,
                partial(self._service.submit, call.model, question, read_timeout(given, self._limits.timeout)),
                partial(_draw, caption) if as_picture else partial(_describe, call.model),
                until_gone(request),
            )
        return Response(made, media_type="image/png" if as_picture else "application/json")

    async def predict(self, request: Request, call: Call) -> Response:
        """Predict the instances of a request of KServe's first protocol."""
        return await self._instances(request, call, PREDICTIONS)

    async def explain_instances(self, request: Request, call: Call) -> Response:
        """Explain the instances of a request of KServe's first protocol."""
        return await self._instances(request, call, None)

    async def _instances(self, request: Request, call: Call, outputs: tuple[str, ...] | None) -> Response:
        async with body_of(request, self._desk) as body:
            head = await self._desk.compute(read_json, body, self._limits.json)
            asked, overlays = _read_instances(head)
            question = read_question(asked, self._service.find(call.model).facts, self._limits)
            maps = ("saliency", "overlay") if overlays else ("saliency",)
            question = replace(question, outputs=outputs or maps)
            made = await self._desk.answer(
                call,
                partial(
                    self._service.submit, call.model, question, read_timeout(asked.parameters, self._limits.timeout)
                ),
                _write_predictions if outputs else _write_explanations,
                until_gone(request),
            )
        return Response(made, media_type="application/json")


def _wants_picture(accept: str) -> bool:
    """Return whether a header Accept prefers a picture to JSON; the first of both counts."""
    kinds = [one.split(";")[0].strip().lower() for one in accept.split(",")]
    picture = next((place for place, kind in enumerate(kinds) if kind in ("image/png", "image/*")), None)
    other = next((place for place, kind in enumerate(kinds) if kind in ("application/json", "*/*")), len(kinds))
    return picture is not None and picture < other


def _read_query(request: Request) -> dict[str, Any]:
    """Return the options of a query in the types of parameters."""
    made: dict[str, Any] = {}
    for name in request.query_params:
        values = request.query_params.getlist(name)
        if name == "target":
            made["target"] = values
            continue
        if len(values) > 1:
            raise invalid(f"{show(name)} is given {len(values)} times; expected once")
        made[name] = _typed(name, values[0])
    return made


def _typed(name: str, text: str) -> Any:
    if name == "caption":
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        if name in _WHOLE and len(text) < 20:
            return int(text)
        return float(text) if name == "tolerance" else text
    except ValueError:
        return text  # refused where it is read, with its value


def _read_instances(head: Mapping[str, Any]) -> tuple[InferRequest, bool]:
    """Return the request of an object of KServe's first protocol, and whether overlays are asked for."""
    for name in head:
        if name not in ("instances", "parameters", "signature_name"):
            raise invalid(f"{show(name)} is unknown; expected instances and parameters")
    instances = head.get("instances")
    if not isinstance(instances, list) or not instances:
        raise invalid("instances is missing; expected a list of photos, each {'b64': '...'}")
    given = dict(check_parameters({key: one for key, one in _parameters(head).items() if key != "targets"}))
    overlays = given.pop("overlay", False)
    if not isinstance(overlays, bool):
        raise invalid(f"overlay is {show(overlays)}; expected true or false")
    inputs = {"image": Tensor.of_bytes("image", [_read_instance(one) for one in instances])}
    targets = _parameters(head).get("targets")
    if targets is not None:
        if not isinstance(targets, list) or not all(type(one) in (int, str) for one in targets):
            raise invalid(f"targets is {show(targets)}; expected a list of class indices and labels")
        inputs["target"] = Tensor.of_bytes("target", [str(one).encode("utf-8", "replace") for one in targets])
    return InferRequest(inputs, parameters=given), overlays


def _parameters(head: Mapping[str, Any]) -> Mapping[str, Any]:
    given = head.get("parameters", {})
    if not isinstance(given, dict):
        raise invalid(f"parameters is {show(given)}; expected an object")
    return given


def _read_instance(given: Any) -> bytes:
    """Return the photo of an instance: {"b64": TEXT}, as TensorFlow Serving has it, alone or as the value of image."""
    inner = given.get("image") if isinstance(given, dict) and set(given) == {"image"} else given
    text = inner.get("b64") if isinstance(inner, dict) and set(inner) == {"b64"} else None
    if not isinstance(text, str):
        raise invalid(f"an instance is {show(given)}; expected {{'b64': '...'}} with a photo in base64")
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise invalid("an instance has text that is not base64") from error


def _draw(caption: bool, answer: Answer, question: Question) -> bytes:
    """Return the overlay of the first target."""
    return encode_png(answer.explained[0].overlay_at(0, caption=caption))


def _describe(model: str, answer: Answer, question: Question) -> bytes:
    """Return an explanation in the words of its record, without files."""
    (explained,) = answer.explained
    record = explained.to_dict()
    photo = {side: record["photo"][side] for side in ("width", "height")}
    kept = {name: record[name] for name in ("crop", "method", "preset", "run", "map_correlations")}
    targets = [{name: value for name, value in one.items() if name != "overlay"} for one in record["targets"]]
    said = {"model": model, "layer": record["model"]["layer"], "photo": photo, **kept, "targets": targets}
    return json.dumps(said).encode()


def _write_predictions(answer: Answer, question: Question) -> bytes:
    said = [[_plain(one) for one in targets] for targets in answer.targets]
    return json.dumps({"predictions": [{"targets": targets} for targets in said]}).encode()


def _plain(target: Target) -> dict[str, Any]:
    made = describe_target(target, None, False)
    return {name: made[name] for name in made if name not in ("error", "map_is_flat", "logit")}


def _write_explanations(answer: Answer, question: Question) -> bytes:
    """Return explanations with their maps as lists of rows."""
    overlays = "overlay" in question.outputs
    photos = []
    for one in answer.explained:
        targets = [
            _with_map(one, place, question.size, overlays)
            for place in range(len(one.targets))
        ]  # fmt: skip
        photos.append(b'{"scored": %d, "targets": [%s]}' % (one.scored, b", ".join(targets)))
    return b'{"explanations": [' + b", ".join(photos) + b"]}"


def _with_map(one: Explained, place: int, size: str, overlay: bool) -> bytes:
    said: dict[str, Any] = describe_target(one.targets[place], one.errors[place], one.flat[place])
    if overlay:
        said["overlay"] = {"b64": base64.b64encode(encode_png(one.overlay_at(place))).decode()}
    return json.dumps(said).encode()[:-1] + b', "saliency": ' + _rows(map_of(one, place, size)) + b"}"


def _rows(saliency: NDArray[np.float32]) -> bytes:
    """Return a map as JSON, a row at a time: other threads run in between."""
    return ("[" + ",".join(json.dumps(row.tolist(), separators=(",", ":")) for row in saliency) + "]").encode()
