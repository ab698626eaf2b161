"""The REST door, asked by the clients of others: the maps of `explain` to the bit, whatever form they travel in."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
import tritonclient.http
import tritonclient.http.aio
from serving import CLIENT, LABELS, SECONDS, Array, Server, counts, jpeg, rows_of, serving

import ortcam

BUDGET = 12  # of the 16 channels of the model


@pytest.fixture(scope="module")
def server(served: Path) -> Iterator[Server]:
    with serving(served / "tiny.onnx", f"bare.model-2={served / 'bare.onnx'}") as server:
        yield server


@pytest.fixture(scope="module")
def engine(served: Path) -> ortcam.ScoreCAM:
    return ortcam.ScoreCAM(served / "tiny.onnx")


def ask(server: Server, head: dict[str, Any], binary: bytes = b"", model: str = "tiny", **headers: str) -> Any:
    """Send a request of JSON and binary data, as curl would; return the answer."""
    text = json.dumps(head).encode()
    if binary:
        headers["Inference-Header-Content-Length"] = str(len(text))
    return CLIENT.post(f"{server.rest}/v2/models/{model}/infer", content=text + binary, headers=headers)


def outputs_of(response: httpx.Response) -> dict[str, Any]:
    """Return the outputs of an answer in JSON: arrays, and lists of text."""
    made: dict[str, Any] = {}
    for one in response.raise_for_status().json()["outputs"]:
        dtype = {"FP32": np.float32, "INT64": np.int64, "BYTES": object}[one["datatype"]]
        made[one["name"]] = np.array(one["data"], dtype).reshape(one["shape"])
    return made


def in_base64(*photos: bytes) -> dict[str, Any]:
    return {
        "name": "image", "datatype": "BYTES", "shape": [len(photos)],
        "data": [base64.b64encode(one).decode() for one in photos],
    }  # fmt: skip


def as_forms(data: bytes, engine: ortcam.ScoreCAM) -> dict[str, tuple[dict[str, Any], bytes]]:
    """Return one photo as input image in all forms, with its binary data."""
    pixels = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    tensor = engine.model.prepare(data)[1]
    named = {"name": "image", "parameters": {}}

    def raw(datatype: str, shape: Any, binary: bytes) -> tuple[dict[str, Any], bytes]:
        parameters = {"binary_data_size": len(binary)}
        return named | {"datatype": datatype, "shape": list(shape), "parameters": parameters}, binary

    return {
        "base64": (in_base64(data), b""),
        "binary": raw("BYTES", [1], len(data).to_bytes(4, "little") + data),
        "pixels": raw("UINT8", pixels.shape, pixels.tobytes()),
        "pixels in JSON": (named | {"datatype": "UINT8", "shape": [1, *pixels.shape], "data": pixels.ravel().tolist()},
                           b""),
        "tensor": raw("FP32", tensor.shape, tensor.tobytes()),
        "tensor in JSON": (named | {"datatype": "FP32", "shape": list(tensor.shape), "data": tensor.tolist()}, b""),
    }  # fmt: skip


def test_every_form_of_a_photo_has_the_map_of_explain(served: Path, server: Server, engine: ortcam.ScoreCAM) -> None:
    data = (served / "cat.jpg").read_bytes()
    for form, (image, binary) in as_forms(data, engine).items():
        expected = engine.explain(engine.model.prepare(data)[1] if "tensor" in form else data, budget=BUDGET)
        made = outputs_of(ask(server, {"inputs": [image], "parameters": {"budget": BUDGET}}, binary))
        assert list(made) == ["target_class", "label", "probability", "saliency", "scored", "error"]
        assert np.array_equal(made["saliency"], rows_of(expected)), form
        assert made["saliency"].std() > 0.05, "a map this flat would prove nothing"
        (target,), (error,) = expected.targets, expected.errors
        assert error is not None
        assert made["target_class"].tolist() == [target.index]
        assert made["label"].tolist() == [LABELS[target.index]]
        assert made["probability"].tolist() == [np.float32(target.probability)]
        assert made["scored"].tolist() == [expected.scored]
        assert np.array_equal(made["error"], np.array([[error.expected, error.low, error.high]], np.float32))


def test_tritonclient(served: Path, server: Server, engine: ortcam.ScoreCAM) -> None:
    """Two photos and two labels, binary both ways, at the size of the photo."""
    photos = [(served / name).read_bytes() for name in ("cat.jpg", "cup.jpg")]
    expected = [engine.explain(photo, ["class 7", "class 2"]) for photo in photos]
    image = tritonclient.http.InferInput("image", [2], "BYTES")
    image.set_data_from_numpy(np.array(photos, dtype=object))
    target = tritonclient.http.InferInput("target", [2], "BYTES")
    target.set_data_from_numpy(np.array([b"class 7", b"class 2"], dtype=object))
    names = ("saliency", "image_index", "label", "scored", "overlay")
    outputs = [tritonclient.http.InferRequestedOutput(name) for name in names]
    with tritonclient.http.InferenceServerClient(server.host, network_timeout=SECONDS) as client:
        assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("tiny", "1")
        assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
        answer = client.infer(
            "tiny",
            [image, target],
            outputs=outputs,
            parameters={"size": "photo"},
            request_id="mine",
            timeout=20_000_000,
        )
        with pytest.raises(tritonclient.http.InferenceServerException, match="'tin' is unknown; nearest: tiny") as info:
            client.infer("tin", [image])
        assert info.value.status() == "404"
    assert answer.get_response()["id"] == "mine"
    assert np.array_equal(answer.as_numpy("saliency"), np.concatenate([rows_of(one, "photo") for one in expected]))
    assert answer.as_numpy("image_index").tolist() == [0, 0, 1, 1]
    assert answer.as_numpy("label").tolist() == [b"class 7", b"class 2"] * 2
    assert answer.as_numpy("scored").tolist() == [one.scored for one in expected]
    drawn = [cv2.imdecode(np.frombuffer(one, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
             for one in answer.as_numpy("overlay")]  # fmt: skip
    for place, one in enumerate(drawn):
        assert np.array_equal(one, expected[place // 2].overlay_at(place % 2))


def test_tritonclient_on_asyncio(served: Path, server: Server, engine: ortcam.ScoreCAM) -> None:
    """Several requests at once; each answer belongs to its question."""

    async def all_at_once() -> list[Array]:
        async with tritonclient.http.aio.InferenceServerClient(server.host) as client:

            async def one(name: str, klass: int) -> Array:
                image = tritonclient.http.InferInput("image", [1], "BYTES")
                image.set_data_from_numpy(np.array([(served / name).read_bytes()], dtype=object), binary_data=True)
                target = tritonclient.http.InferInput("target", [1], "INT64")
                target.set_data_from_numpy(np.array([klass]), binary_data=False)
                answer = await client.infer("tiny", [image, target], parameters={"budget": BUDGET})
                return np.array(answer.as_numpy("saliency"))

            return await asyncio.gather(*(one(name, klass) for name, klass in asked))

    asked = [(name, klass) for klass in range(4) for name in ("cat.jpg", "cup.jpg")]
    for (name, klass), found in zip(asked, asyncio.run(all_at_once()), strict=True):
        assert np.array_equal(found, rows_of(engine.explain(served / name, klass, budget=BUDGET)))


@pytest.mark.slow  # importing it takes two seconds
def test_kserves_client(served: Path, server: Server, engine: ortcam.ScoreCAM) -> None:
    script = Path(__file__).with_name("kserve_client.py")
    command = [sys.executable, str(script), server.rest, "tiny", str(served / "cat.jpg")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert ran.returncode == 0, ran.stderr
    found, expected = json.loads(ran.stdout), engine.explain(served / "cat.jpg", 3)
    assert found["states"] == [True] * 4
    for saliency, labels in found["maps"].values():
        assert np.array_equal(np.array(saliency, np.float32).reshape(1, 64, 64), rows_of(expected))
        assert labels == ["class 3"]
    (explained,) = found["explained"]["explanations"]
    (target,) = explained["targets"]
    assert np.array_equal(np.array(target["saliency"], np.float32)[None], rows_of(expected))
    assert (target["index"], target["label"], explained["scored"]) == (3, "class 3", expected.scored)
    (predicted,) = found["predicted"]["predictions"]
    assert predicted["targets"][0]["probability"] == pytest.approx(expected.targets[0].probability)
    assert "saliency" not in predicted["targets"][0]


def curl(*words: str) -> bytes:
    ran = subprocess.run(
        ["curl", "--silent", "--show-error", "--fail-with-body", "--max-time", str(SECONDS), *words],
        capture_output=True, check=False, timeout=SECONDS + 5,
    )  # fmt: skip
    assert ran.returncode == 0, (ran.stderr, ran.stdout)
    return ran.stdout


def test_a_bare_photo_with_curl(served: Path, server: Server, engine: ortcam.ScoreCAM) -> None:
    """A picture for `Accept: image/png`, else the record of the explanation without its maps."""
    url, body = f"{server.rest}/models/tiny/explain", f"@{served / 'cat.jpg'}"
    picture = curl("-H", "Accept: image/png", "--data-binary", body, f"{url}?target=class%204&budget={BUDGET}")
    expected = engine.explain(served / "cat.jpg", 4, budget=BUDGET)
    drawn = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.array_equal(drawn, expected.overlay(4, caption=True))
    plain = curl("-H", "Accept: image/png", "--data-binary", body, f"{url}?target=4&budget={BUDGET}&caption=false")
    drawn = cv2.imdecode(np.frombuffer(plain, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.array_equal(drawn, expected.overlay(4))
    said = json.loads(curl("--data-binary", body, f"{url}?top_k=3"))
    expected = engine.explain(served / "cat.jpg", top_k=3)
    record = expected.to_dict()
    assert [one["index"] for one in said["targets"]] == [one.index for one in expected.targets]
    assert said["targets"][1]["probability"] == record["targets"][1]["probability"]
    assert (said["layer"], said["photo"]) == (record["model"]["layer"], {"width": 90, "height": 60})
    assert said["run"]["channels"] == record["run"]["channels"]
    assert said["run"]["channels"]["scored"] == expected.scored


def test_targets_in_both_datatypes(served: Path, server: Server) -> None:
    """Class indices as numbers or as text, and labels; a wrong one is told."""
    image = in_base64((served / "cat.jpg").read_bytes())
    forms: list[tuple[str, list[Any]]] = [("INT64", [5, 1]), ("INT32", [5, 1]), ("BYTES", ["5", "class 1"])]
    for datatype, data in forms:
        target = {"name": "target", "datatype": datatype, "shape": [2], "data": data}
        made = outputs_of(ask(server, {"inputs": [image, target], "outputs": [{"name": "target_class"}]}))
        assert made["target_class"].tolist() == [5, 1]
    target = {"name": "target", "datatype": "BYTES", "shape": [1], "data": ["clas 1"]}
    refused = ask(server, {"inputs": [image, target]})
    assert refused.status_code == 400
    assert "clas 1" in refused.json()["error"] and "class 1" in refused.json()["error"]


def test_predictions_run_no_masked_input(served: Path, server: Server, engine: ortcam.ScoreCAM) -> None:
    photos = [(served / name).read_bytes() for name in ("cat.jpg", "cup.jpg")]
    before = counts(server)
    asked = {
        "inputs": [in_base64(*photos)], "parameters": {"top_k": 2},
        "outputs": [{"name": name} for name in ("image_index", "probability", "target_class")],
    }  # fmt: skip
    made = outputs_of(ask(server, asked))
    expected = [target for photo in photos for target in engine.predict(photo, 2)]
    assert made["target_class"].tolist() == [one.index for one in expected]
    assert made["probability"].tolist() == [np.float32(one.probability) for one in expected]
    assert made["image_index"].tolist() == [0, 0, 1, 1]
    after = counts(server)
    masked = "ortcam_masked_inputs_total{model=tiny}"
    assert after.get(masked, 0) == before.get(masked, 0)
    assert after["ortcam_photos_total{model=tiny}"] - before.get("ortcam_photos_total{model=tiny}", 0) == 2


def test_metrics_count_what_was_asked(served: Path, server: Server) -> None:
    image = in_base64((served / "cat.jpg").read_bytes())
    before = counts(server)
    for budget in (3, 5):
        outputs_of(ask(server, {"inputs": [image], "parameters": {"budget": budget}}))
    assert ask(server, {"inputs": [image], "parameters": {"budget": 0}}).status_code == 400
    assert ask(server, {"inputs": []}).status_code == 400
    assert ask(server, {"inputs": [image]}, model="other").status_code == 404
    after = counts(server)

    def rise(name: str, **labels: str) -> float:
        key = f"ortcam_{name}{{{','.join(f'{key}={value}' for key, value in sorted(labels.items()))}}}"
        return after[key] - before.get(key, 0.0)

    assert rise("requests_total", model="tiny", door="rest", outcome="ok") == 2
    assert rise("requests_total", model="tiny", door="rest", outcome="invalid") == 2
    assert rise("requests_total", model="", door="rest", outcome="unknown") == 1
    assert rise("request_seconds_count", model="tiny", door="rest") == 2
    assert 0 < rise("request_seconds_sum", model="tiny", door="rest") < SECONDS
    assert rise("photos_total", model="tiny") == 2
    assert rise("masked_inputs_total", model="tiny") == 8
    assert after["ortcam_waiting_photos{model=tiny}"] == after["ortcam_pending_bytes{}"] == 0
    assert after["ortcam_ready{}"] == 1


def test_a_model_without_preprocessing_takes_tensors(served: Path, server: Server) -> None:
    """Its metadata says so; a client that follows it gets the map, and a photo is refused."""
    engine = ortcam.ScoreCAM(served / "bare.onnx")
    said = CLIENT.get(f"{server.rest}/v2/models/bare.model-2/versions/1").json()
    assert said["inputs"][0] == {"name": "image", "datatype": "FP32", "shape": [-1, 3, 64, 64]}
    assert said["inputs"][1] == {"name": "target", "datatype": "INT64", "shape": [-1]}
    tensors = np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)
    image = {"name": "image", "datatype": "FP32", "shape": [2, 3, 64, 64], "data": tensors.ravel().tolist()}
    target = {"name": "target", "datatype": "INT64", "shape": [1], "data": [6]}
    made = outputs_of(ask(server, {"inputs": [image, target]}, model="bare.model-2"))
    expected = [rows_of(engine.explain(tensors[[row]], 6)) for row in (0, 1)]
    assert np.array_equal(made["saliency"], np.concatenate(expected))
    assert made["label"].tolist() == ["", ""]
    refused = ask(server, {"inputs": [in_base64(b"\xff\xd8")]}, model="bare.model-2")
    assert (refused.status_code, "takes tensors" in refused.json()["error"]) == (400, True)


def test_a_broken_photo_of_several_is_named(served: Path, server: Server) -> None:
    good = (served / "cat.jpg").read_bytes()
    refused = ask(server, {"inputs": [in_base64(good, good[:40], good)]})
    assert refused.status_code == 400
    assert refused.json()["error"].startswith("image 1 ")


def test_maps_of_two_sizes_are_no_tensor(served: Path, server: Server, photos: dict[str, Path]) -> None:
    image = in_base64((served / "cat.jpg").read_bytes(), jpeg(photos["coffee"], 60, 90))
    refused = ask(server, {"inputs": [image], "parameters": {"size": "photo"}})
    assert refused.status_code == 400
    assert "90x60" in refused.json()["error"] and "60x90" in refused.json()["error"]
    made = outputs_of(ask(server, {"inputs": [image]}))
    assert made["saliency"].shape == (2, 64, 64)


def test_keys_and_log_lines(served: Path, tmp_path: Path) -> None:
    """Health needs no key; all else does. Log lines are JSON with the id of the request, which the answer has too."""
    (tmp_path / "keys").write_text("first\n\n  second \n")
    photo = (served / "cat.jpg").read_bytes()
    body = {"inputs": [in_base64(photo)], "outputs": [{"name": "label"}]}
    with serving(served / "tiny.onnx", "--api-key-file", tmp_path / "keys", "--log", "json") as server:
        client = httpx.Client(base_url=server.rest, timeout=SECONDS, verify=False)
        for path in ("/v2", "/v2/health/live", "/v2/health/ready"):
            assert client.get(path).status_code == 200
        asked: list[tuple[str, str, Any]] = [
            ("GET", "/metrics", None), ("GET", "/v2/models/tiny", None), ("GET", "/v2/models/tiny/ready", None),
            ("GET", "/v1/models", None), ("GET", "/v1/models/tiny", None),
            ("POST", "/v2/models/tiny/infer", json.dumps(body)),
            ("POST", "/v1/models/tiny:explain",
             json.dumps({"instances": [{"b64": base64.b64encode(photo).decode()}], "parameters": {"budget": 2}})),
            ("POST", "/models/tiny/explain?budget=2", photo),
        ]  # fmt: skip
        for method, path, content in asked:
            for key in (None, "Bearer third", "Bearer", "Basic first", "first"):
                headers = {} if key is None else {"Authorization": key}
                refused = client.request(method, path, content=content, headers=headers)
                assert (refused.status_code, list(refused.json())) == (401, ["error"]), path
                assert refused.headers["WWW-Authenticate"] == "Bearer"
            for key in ("first", "second"):
                taken = client.request(method, path, content=content, headers={"Authorization": f"Bearer {key}"})
                assert taken.status_code == 200, taken.text
        unknown = client.get("/v2/models/tin", headers={"X-Request-Id": "a b"})
        assert unknown.status_code == 401, "models are not named to strangers"
        named = client.post(
            "/v2/models/tiny/infer", json=body, headers={"Authorization": "Bearer first", "X-Request-Id": "mine-1"}
        )
        assert named.headers["X-Request-Id"] == "mine-1"
        assert len(unknown.headers["X-Request-Id"]) == 32
        client.close()
    lines = [json.loads(line) for line in server.lines]
    assert all({"time", "level", "message"} <= set(line) for line in lines)
    (line,) = [one for one in lines if one.get("request") == "mine-1"]
    assert (line["door"], line["model"], line["status"], line["level"]) == ("rest", "tiny", 200, "info")
    assert 0 < line["seconds"] < SECONDS
    refusals = [one for one in lines if one.get("status") == 401]
    assert len(refusals) == 5 * len(asked) + 1 and all("no valid API key" in one["reason"] for one in refusals)
    assert not any(word in "".join(server.lines) for word in ("third", "second ", str(served)))
