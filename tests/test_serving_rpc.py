"""The gRPC door, asked by tritonclient and by its generated stubs: the maps of `explain` to the bit."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
from serving import CLIENT, LABELS, SECONDS, Array, Server, counts, rows_of, serving
from tritonclient.grpc import service_pb2, service_pb2_grpc

import ortcam
from ortcam.serving import messages
from ortcam.serving.desk import Desk
from ortcam.serving.limits import ServingLimits
from ortcam.serving.messages import SERVICE, message
from ortcam.serving.metrics import Metrics
from ortcam.serving.rpc import make_server
from ortcam.serving.service import Service

BUDGET = 12  # of the 16 channels of the model
KEY = (("authorization", "Bearer secret"),)


@pytest.fixture(scope="module")
def server(served: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("secret\n")
    with serving(served / "tiny.onnx", "--api-key-file", keys) as server:
        yield server


@pytest.fixture(scope="module")
def engine(served: Path) -> ortcam.ScoreCAM:
    return ortcam.ScoreCAM(served / "tiny.onnx")


@pytest.fixture(scope="module")
def stub(server: Server) -> Iterator[Any]:
    with grpc.insecure_channel(server.rpc) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def shape_of(descriptor: Any) -> dict[str, Any]:
    """Return all that makes up a message on the wire and in Python."""
    return {
        field.name: (
            field.number, field.type, field.is_repeated, field.message_type and field.message_type.full_name,
            field.message_type is not None and field.message_type.GetOptions().map_entry,
            field.containing_oneof and field.containing_oneof.name,
        )
        for field in descriptor.fields
    }  # fmt: skip


def test_the_messages_are_tritonclients() -> None:
    """Names, numbers, types, labels, maps and choices of all fields, and those of the entries of maps."""
    compared = 0
    for name in messages._DEFINITION:
        ours, theirs = message(name).DESCRIPTOR, service_pb2.DESCRIPTOR
        outer, *inner = name.split(".")
        theirs = theirs.message_types_by_name[outer]
        for one in inner:
            theirs = theirs.nested_types_by_name[one]
        assert ours.full_name == theirs.full_name
        assert shape_of(ours) == shape_of(theirs), name
        for nested in ours.nested_types:
            assert shape_of(nested) == shape_of(theirs.nested_types_by_name[nested.name])
        compared += len(ours.fields)
    assert compared > 50
    methods = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert methods.full_name == SERVICE
    for name in ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer"):
        found = methods.methods_by_name[name]
        assert (found.input_type.name, found.output_type.name) == (f"{name}Request", f"{name}Response")


def input_of(name: str, values: Array, datatype: str) -> Any:
    made = tritonclient.grpc.InferInput(name, list(values.shape), datatype)
    made.set_data_from_numpy(values)
    return made


def test_tritonclient(served: Path, server: Server, engine: ortcam.ScoreCAM) -> None:
    """Every form of a photo; two targets by label; the outputs that are asked for, in their order."""
    data = (served / "cat.jpg").read_bytes()
    pixels = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    tensor = engine.model.prepare(data)[1]
    target = input_of("target", np.array([b"class 8", b"class 1"], dtype=object), "BYTES")
    names = ["label", "saliency", "scored", "error", "probability", "target_class", "image_index"]
    outputs = [tritonclient.grpc.InferRequestedOutput(name) for name in names]
    images = {
        "BYTES": np.array([data], dtype=object),
        "UINT8": pixels[None],
        "FP32": tensor,
        "FP64": tensor.astype(np.float64),
    }
    with tritonclient.grpc.InferenceServerClient(server.rpc) as client:
        assert client.is_server_live() and client.is_server_ready()
        assert client.is_model_ready("tiny", "1", headers=dict(KEY))
        for datatype, image in images.items():
            answer = client.infer(
                "tiny", [input_of("image", image, datatype), target], outputs=outputs, request_id="mine",
                headers=dict(KEY), parameters={"budget": BUDGET}, client_timeout=SECONDS,
            )  # fmt: skip
            given = tensor if datatype.startswith("FP") else data
            expected = engine.explain(given, ["class 8", "class 1"], budget=BUDGET)
            assert np.array_equal(answer.as_numpy("saliency"), rows_of(expected)), datatype
            assert [one.name for one in answer.get_response().outputs] == names
            assert answer.as_numpy("label").tolist() == [b"class 8", b"class 1"]
            assert answer.as_numpy("target_class").tolist() == [8, 1]
            assert answer.as_numpy("probability").tolist() == [np.float32(one.probability) for one in expected.targets]
            assert answer.as_numpy("scored").tolist() == [expected.scored]
            assert answer.as_numpy("image_index").tolist() == [0, 0]
            assert answer.get_response().id == "mine"


def test_tritonclient_on_asyncio(served: Path, server: Server, engine: ortcam.ScoreCAM) -> None:
    """Several calls at once; each answer belongs to its question."""
    image = input_of("image", np.array([(served / "cat.jpg").read_bytes()], dtype=object), "BYTES")

    async def all_at_once() -> list[Array]:
        async with tritonclient.grpc.aio.InferenceServerClient(server.rpc) as client:
            calls = [
                client.infer("tiny", [image, input_of("target", np.array([number]), "INT64")], headers=dict(KEY))
                for number in range(6)
            ]
            return [one.as_numpy("saliency") for one in await asyncio.gather(*calls)]

    for number, found in enumerate(asyncio.run(all_at_once())):
        assert np.array_equal(found, rows_of(engine.explain(served / "cat.jpg", number)))


def ask(stub: Any, *inputs: tuple[str, str, list[int], dict[str, Any]], **parameters: Any) -> Any:
    """Send a request whose values are no raw bytes, and return the saliency and the answer."""
    request = service_pb2.ModelInferRequest(model_name="tiny", id="plain")
    for name, datatype, shape, contents in inputs:
        request.inputs.add(name=name, datatype=datatype, shape=shape, contents=contents)
    for name, value in parameters.items():
        kind = {int: "int64_param", str: "string_param", float: "double_param", bool: "bool_param"}[type(value)]
        setattr(request.parameters[name], kind, value)
    return stub.ModelInfer(request, metadata=KEY, timeout=SECONDS)


def test_values_that_are_no_raw_bytes(served: Path, stub: Any, engine: ortcam.ScoreCAM) -> None:
    """Photos, pixels, tensors, class indices and labels as lists of numbers or bytes. Answers are always raw."""
    data = (served / "cat.jpg").read_bytes()
    pixels = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    tensor = engine.model.prepare(data)[1]
    photo = ("image", "BYTES", [1], {"bytes_contents": [data]})
    forms: list[tuple[Any, Any, Any]] = [
        (photo, ("target", "INT64", [1], {"int64_contents": [4]}), data),
        (photo, ("target", "INT32", [1], {"int_contents": [4]}), data),
        (photo, ("target", "BYTES", [1], {"bytes_contents": [b"class 4"]}), data),
        (("image", "UINT8", pixels.shape, {"uint_contents": pixels.ravel().tolist()}),
         ("target", "INT64", [1], {"int64_contents": [4]}), data),
        (("image", "FP32", tensor.shape, {"fp32_contents": tensor.ravel().tolist()}),
         ("target", "INT64", [1], {"int64_contents": [4]}), tensor),
    ]  # fmt: skip
    for image, target, given in forms:
        answer = ask(stub, image, target, budget=BUDGET, size="photo")
        place = [one.name for one in answer.outputs].index("saliency")
        expected = rows_of(engine.explain(given, 4, budget=BUDGET), "photo")
        assert answer.outputs[place].shape == list(expected.shape)
        assert answer.raw_output_contents[place] == expected.tobytes()
        assert len(answer.raw_output_contents) == len(answer.outputs)
        assert (answer.model_name, answer.model_version, answer.id) == ("tiny", "1", "plain")


def test_metadata_is_that_of_rest(server: Server, stub: Any) -> None:
    headers = {"Authorization": "Bearer secret"}
    said = CLIENT.get(f"{server.rest}/v2/models/tiny", headers=headers).raise_for_status().json()
    found = stub.ModelMetadata(service_pb2.ModelMetadataRequest(name="tiny"), metadata=KEY, timeout=SECONDS)
    assert (found.name, list(found.versions), found.platform) == (said["name"], said["versions"], said["platform"])
    for kind in ("inputs", "outputs"):
        tensors = [(one.name, one.datatype, list(one.shape)) for one in getattr(found, kind)]
        assert tensors == [(one["name"], one["datatype"], one["shape"]) for one in said[kind]]
    server_said = stub.ServerMetadata(service_pb2.ServerMetadataRequest(), timeout=SECONDS)
    of_rest = CLIENT.get(f"{server.rest}/v2").json()
    assert server_said.name == of_rest["name"] == "ortcam"
    assert (server_said.version, list(server_said.extensions)) == (of_rest["version"], of_rest["extensions"])


def failing(call: Any, *arguments: Any, **options: Any) -> tuple[str, str]:
    """Return the name of the status and the message of a call that fails."""
    with pytest.raises(grpc.RpcError) as info:
        call(*arguments, timeout=SECONDS, **options)
    return info.value.code().name, info.value.details()


def test_statuses(served: Path, server: Server, stub: Any) -> None:
    data = (served / "cat.jpg").read_bytes()
    unknown = service_pb2.ModelReadyRequest(name="tinny")
    assert failing(stub.ModelReady, unknown, metadata=KEY) == ("NOT_FOUND", "model 'tinny' is unknown; nearest: tiny")
    version = service_pb2.ModelMetadataRequest(name="tiny", version="2")
    assert failing(stub.ModelMetadata, version, metadata=KEY)[0] == "NOT_FOUND"
    request = service_pb2.ModelInferRequest(model_name="tiny")
    status, said = failing(stub.ModelInfer, request, metadata=KEY)
    assert (status, "no inputs" in said) == ("INVALID_ARGUMENT", True)
    request.inputs.add(name="image", datatype="BYTES", shape=[1], contents={"bytes_contents": [data[:60]]})
    status, said = failing(stub.ModelInfer, request, metadata=KEY)
    assert (status, said.startswith("image ")) == ("INVALID_ARGUMENT", True)
    request.inputs[0].contents.bytes_contents[0] = data
    request.parameters["timeout"].int64_param = 1  # a microsecond
    assert failing(stub.ModelInfer, request, metadata=KEY)[0] == "DEADLINE_EXCEEDED"
    before = counts_of(server)
    for key in (None, "Bearer third", "secret"):
        metadata = None if key is None else (("authorization", key),)
        for call, asked in (
            (stub.ModelInfer, request),
            (stub.ModelReady, service_pb2.ModelReadyRequest(name="tiny")),
            (stub.ModelMetadata, service_pb2.ModelMetadataRequest(name="tiny")),
        ):
            assert failing(call, asked, metadata=metadata)[0] == "UNAUTHENTICATED"
    key = "ortcam_requests_total{door=grpc,model=,outcome=unauthorised}"
    assert counts_of(server)[key] - before.get(key, 0) == 9
    for call, asked in (
        (stub.ServerLive, service_pb2.ServerLiveRequest()), (stub.ServerReady, service_pb2.ServerReadyRequest())
    ):  # fmt: skip
        call(asked, timeout=SECONDS)


def counts_of(server: Server) -> dict[str, float]:
    return counts(server, {"Authorization": "Bearer secret"})


def test_request_ids_and_metrics(served: Path, server: Server, stub: Any) -> None:
    """The id of the client is in the trailing metadata and in the log; without one there is a new one."""
    request = service_pb2.ModelInferRequest(model_name="tiny")
    image = {"bytes_contents": [(served / "cat.jpg").read_bytes()] * 2}
    request.inputs.add(name="image", datatype="BYTES", shape=[2], contents=image)
    request.parameters["budget"].int64_param = 5
    before = counts_of(server)
    answer, call = stub.ModelInfer.with_call(request, metadata=(*KEY, ("x-request-id", "mine-7")), timeout=SECONDS)
    assert dict(call.trailing_metadata())["x-request-id"] == "mine-7"
    _, call = stub.ServerLive.with_call(service_pb2.ServerLiveRequest(), timeout=SECONDS)
    assert len(dict(call.trailing_metadata())["x-request-id"]) == 32
    after = counts_of(server)
    for name, rise in {
        "ortcam_requests_total{door=grpc,model=tiny,outcome=ok}": 1,
        "ortcam_request_seconds_count{door=grpc,model=tiny}": 1,
        "ortcam_photos_total{model=tiny}": 2,
        "ortcam_masked_inputs_total{model=tiny}": 10,
    }.items():
        assert after[name] - before.get(name, 0.0) == rise, name
    (line,) = [one for one in server.lines if "mine-7" in one]
    assert "grpc tiny OK in" in line
    shapes = {one.name: list(one.shape) for one in answer.outputs}
    assert shapes == {
        "target_class": [2], "label": [2], "probability": [2], "saliency": [2, 64, 64], "scored": [2], "error": [2, 3]
    }  # fmt: skip
    assert LABELS[np.frombuffer(answer.raw_output_contents[0], np.int64)[0]].encode() in answer.raw_output_contents[1]


def test_limits_of_calls_and_memory(served: Path, engine: ortcam.ScoreCAM) -> None:
    """Calls and bytes count until the answer is sent; what is too much is refused before it becomes objects."""
    tensor = engine.model.prepare((served / "cat.jpg").read_bytes())[1]
    good = service_pb2.ModelInferRequest(model_name="tiny", raw_input_contents=[tensor.tobytes()])
    good.inputs.add(name="image", datatype="FP32", shape=tensor.shape)
    service = Service(ortcam.load_explainer, ServingLimits(connections=1, pending=400_000))
    service.load("tiny", served / "tiny.onnx")
    desk = Desk(service, Metrics(service))

    async def call(channel: Any, name: str, data: bytes) -> tuple[str, str]:
        try:
            await channel.unary_unary(f"/{SERVICE}/{name}")(data, timeout=SECONDS)
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details() or ""
        return "OK", ""

    async def check() -> None:
        server, port = make_server(desk, "127.0.0.1", 0)
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            for _ in range(9):  # what one held is given back
                assert await call(channel, "ModelInfer", good.SerializeToString()) == ("OK", "")
            many = [call(channel, "ModelInfer", good.SerializeToString()) for _ in range(8)]
            health = [call(channel, "ServerLive", b"") for _ in range(8)]
            found = await asyncio.gather(*many, *health)
            assert set(found[:8]) == {("OK", ""), ("RESOURCE_EXHAUSTED", "the server has 1 calls in work; try again")}
            assert found[8:] == [("OK", "")] * 8
            status, said = await call(channel, "ModelInfer", b"\xff" * 400_001)  # no message
            assert (status, "too large together" in said) == ("RESOURCE_EXHAUSTED", True)
            for change, words in {
                "raw_input_contents": "has 33 raw_input_contents; expected at most 32",
                "values": "has 300001 values in contents; at most 300000",
                "shape": "has 300001 values in contents; at most 300000",
            }.items():
                bad = service_pb2.ModelInferRequest(model_name="tiny")
                image = bad.inputs.add(name="image", datatype="BOOL")
                if change == "raw_input_contents":
                    bad.raw_input_contents.extend([b""] * 33)
                elif change == "values":
                    image.contents.bool_contents.extend([True] * 300_001)
                else:
                    image.shape.extend([1] * 300_001)
                status, said = await call(channel, "ModelInfer", bad.SerializeToString())
                assert (status, words in said) == ("INVALID_ARGUMENT", True), said
        await server.stop(0)

    try:
        asyncio.run(check())
        assert desk.sending == 0
    finally:
        service.close()
        desk.close()
