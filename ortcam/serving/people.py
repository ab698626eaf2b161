"""Doors for people and for KServe's first protocol: a bare photo in, JSON or a picture out."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ortcam.core.targets import Target
from ortcam.output.record import describe_target
from ortcam.output.render import encode_png
from ortcam.serving.answers import Answer, Explained, map_of
from ortcam.serving.bodies import body_of, read_apart, until_gone
from ortcam.serving.desk import Call, Desk
from ortcam.serving.limits import ServingLimits
from ortcam.serving.page import read_page
from ortcam.serving.protocol import InferRequest, check_parameters, read_json
from ortcam.serving.questions import PREDICTIONS, Facts, Question, read_question, read_timeout
from ortcam.serving.refusal import invalid
from ortcam.serving.tensors import Tensor, show, spell

_WHOLE = ("budget", "top_k", "sign", "timeout")  # parameters of a query that are whole numbers
_FLAGS = ("caption", "overlay")  # those that are true or false
_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")


class People:
    """The handlers."""

    def __init__(self, desk: Desk) -> None:
        self._desk, self._service, self._limits = desk, desk.service, desk.limits

    async def page(self, request: Request, call: Call) -> Response:
        text, headers = read_page()
        return Response(text, headers=headers, media_type="text/html")

    async def describe_models(self, request: Request, call: Call) -> Response:
        """Return what the page must know of the models and limits."""
        models = [
            {"name": name, "task": facts.task, "takes": sorted(facts.takes), "budgets": facts.has_budgets}
            for name, facts in ((name, model.worker.facts) for name, model in self._service.models.items())
        ]
        known = {name: getattr(self._limits, name) for name in ("budget", "timeout", "body", "pixels", "targets")}
        return Response(json.dumps({"models": models, "limits": known}), media_type="application/json")

    async def list_models(self, request: Request, call: Call) -> Response:
        return Response(json.dumps({"models": list(self._service.models)}), media_type="application/json")

    async def explain(self, request: Request, call: Call) -> Response:
        """Explain the photo in the body; options are in the query. With overlay=true, JSON holds the overlays too."""
        as_picture = _wants_picture(request.headers.get("accept", ""))
        given = _read_query(request)
        targets = [one.encode() for one in given.pop("target", [])]
        caption, overlay = given.setdefault("caption", True), _flag("overlay", given.pop("overlay", False))
        async with body_of(request, self._desk) as body:
            inputs = {"image": Tensor.of_bytes("image", [body])}
            if targets:
                inputs["target"] = Tensor.of_bytes("target", targets)
            asked = InferRequest(inputs, parameters=given)
            read = partial(read_question, asked, self._service.find(call.model).facts, self._limits)
            question = replace(
                await read_apart(self._desk, len(body), read),
                outputs=("overlay",) if as_picture or overlay else ("scored",),
            )
            made = await self._desk.answer(
                call,
                partial(self._service.submit, call.model, question, read_timeout(given, self._limits.timeout)),
                partial(_draw, caption) if as_picture else partial(_describe, call.model, overlay),
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
            read = partial(_read, body, outputs, self._service.find(call.model).facts, self._limits)
            question, seconds = await read_apart(self._desk, len(body), read)
            made = await self._desk.answer(
                call,
                partial(self._service.submit, call.model, question, seconds),
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
    if name in _FLAGS:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        if name in _WHOLE and _NUMBER.fullmatch(text):
            return int(text)
        return float(text) if name == "tolerance" and text.isascii() and "_" not in text else text
    except ValueError:
        return text  # refused where it is read, with its value


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise invalid(f"{name} is {show(value)}; expected true or false")
    return value


def _read(body: bytes, outputs: tuple[str, ...] | None, facts: Facts, limits: ServingLimits) -> tuple[Question, float]:
    """Return the question of a body of KServe's first protocol, and the seconds that the client waits for.

    Args:
        body: the body.
        outputs: the outputs of a prediction; None for maps, and overlays if they are asked for.
        facts, limits: of the model and the server.
    """
    asked, overlays = _read_instances(body, limits.json)
    outputs = outputs or (("saliency", "overlay") if overlays else ("saliency",))
    question = replace(read_question(asked, facts, limits), outputs=outputs)
    return question, read_timeout(asked.parameters, limits.timeout)


def _read_instances(body: bytes, most_json: int) -> tuple[InferRequest, bool]:
    """Return the request of a body of KServe's first protocol, and whether overlays are asked for."""
    head = read_json(body, most_json)
    for name in head:
        if name not in ("instances", "parameters", "signature_name"):
            raise invalid(f"{show(name)} is unknown; expected instances and parameters")
    instances = head.get("instances")
    if not isinstance(instances, list) or not instances:
        raise invalid("instances is missing; expected a list of photos, each {'b64': '...'}")
    given = dict(check_parameters({key: one for key, one in _parameters(head).items() if key != "targets"}))
    overlays = _flag("overlay", given.pop("overlay", False))
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


def _describe(model: str, overlay: bool, answer: Answer, question: Question) -> bytes:
    """Return an explanation in the words of its record, without files; with overlays if they are asked for."""
    (explained,) = answer.explained
    record = explained.to_dict()
    photo = {side: record["photo"][side] for side in ("width", "height")}
    kept = {name: record[name] for name in ("crop", "method", "preset", "run", "map_correlations")}
    targets = [{name: value for name, value in one.items() if name != "overlay"} for one in record["targets"]]
    if overlay:
        for place, one in enumerate(targets):
            one["overlay"] = _encoded(explained, place, question.caption)
    said = {"model": model, "layer": record["model"]["layer"], "photo": photo, **kept, "targets": targets}
    return json.dumps(said).encode()


def _write_predictions(answer: Answer, question: Question) -> bytes:
    said = [[_plain(one) for one in targets] for targets in answer.targets]
    return json.dumps({"predictions": [{"targets": targets} for targets in said]}).encode()


def _plain(target: Target) -> dict[str, Any]:
    made = describe_target(target, None, False)
    return {name: made[name] for name in made if name not in ("error", "map_is_flat", "logit")}


def _write_explanations(answer: Answer, question: Question) -> bytes:
    """Return explanations with their maps as lists of rows; a row at a time, so that other threads run in between."""
    made = [b'{"explanations": [']
    for number, one in enumerate(answer.explained):
        made.append((b", " if number else b"") + b'{"scored": %d, "targets": [' % one.scored)
        for place, target in enumerate(one.targets):
            said: dict[str, Any] = describe_target(target, one.errors[place], one.flat[place])
            if "overlay" in question.outputs:
                said["overlay"] = _encoded(one, place, False)
            made.append((b", " if place else b"") + json.dumps(said).encode()[:-1] + b', "saliency": [')
            rows = map_of(one, place, question.size)
            made += [(b",[" if row else b"[") + spell(values) + b"]" for row, values in enumerate(rows)]
            made.append(b"]}")
        made.append(b"]}")
    made.append(b"]}")
    return b"".join(made)


def _encoded(explained: Explained, place: int, caption: bool) -> dict[str, str]:
    """Return an overlay as TensorFlow Serving has binary data in JSON."""
    return {"b64": base64.b64encode(encode_png(explained.overlay_at(place, caption=caption))).decode()}
