"""Thousands of mutated requests: the server refuses or answers each, never fails, and stays alive throughout."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf.message import DecodeError
from serving_attacks import PATIENCE, Running, ask, check_message, infer_body, request, serve, write_tiny_model
from serving_mutations import bodies, mutated_infer, mutated_message, mutated_request, valid_messages

from ortcam.serving.limits import ServingLimits
from ortcam.serving.messages import SERVICE, message
from ortcam.serving.protocol import read_infer
from ortcam.serving.questions import Facts, read_question
from ortcam.serving.refusal import Kind, Refusal
from ortcam.serving.rpc import _read

TOGETHER = 16  # requests at once
_SLOW = pytest.mark.slow
_REFUSED = {400, 404, 405, 408, 413, 415, 431, 503, 504}
_STATUSES = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    model = write_tiny_model(tmp_path_factory.mktemp("serving") / "tiny.onnx")
    with serve(f"tiny={model}") as running:
        yield running
    assert not [line for line in running.log if "Traceback" in line or " ERROR " in line]


async def _send(port: int, data: bytes) -> int:
    """Send a request; return the status of its answer, 0 if the server hung up because the request has no end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
    try:
        writer.write(data)
        waiting = asyncio.create_task(reader.readuntil(b"\r\n\r\n"))
        done, _ = await asyncio.wait({waiting}, timeout=0.3)
        if not done:  # the server may wait for more
            with contextlib.suppress(OSError):  # it has answered in between
                writer.write_eof()
        try:
            head = await waiting
        except (asyncio.IncompleteReadError, ConnectionResetError):
            assert not done, data
            return 0
        lines = head.decode("latin-1").lower().split("\r\n")
        status, headers = int(lines[0].split()[1]), dict(line.split(": ", 1) for line in lines[1:-2])
        if status == 100:
            return 100
        body = await reader.readexactly(int(headers["content-length"]))
        assert status in _REFUSED | {200}, (status, body[:300], data)
        if status != 200:
            assert headers["content-type"] == "application/json", (headers, data)
            check_message(json.loads(body)["error"])
        return status
    finally:
        writer.close()


async def _ask_for_health(port: int) -> bytes:
    """Return the first line of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request("/v2/health/live", method="GET"))
        return await reader.readline()
    finally:
        writer.close()


async def _attack(server: Running, seed: int, count: int) -> Counter[int]:
    """Send mutated requests, and ask for the health all the while."""
    random, statuses, gate = np.random.default_rng(seed), Counter[int](), asyncio.Semaphore(TOGETHER)

    async def one(data: bytes) -> None:
        async with gate, asyncio.timeout(PATIENCE):
            statuses[await _send(server.port, data)] += 1

    async def ask_for_health() -> None:
        while True:
            async with asyncio.timeout(PATIENCE):
                assert await _ask_for_health(server.port) == b"HTTP/1.1 200 OK\r\n"
            await asyncio.sleep(0.05)

    async with asyncio.TaskGroup() as group:
        health = group.create_task(ask_for_health())
        try:
            async with asyncio.TaskGroup() as attacks:
                for _ in range(count):
                    attacks.create_task(one(mutated_request(random)))
        finally:
            health.cancel()
    return statuses


@pytest.mark.parametrize(("seed", "count"), [(0, 200), pytest.param(1, 7000, marks=_SLOW)])
def test_mutated_requests_over_rest_are_answered_or_refused(server: Running, seed: int, count: int) -> None:
    statuses = asyncio.run(_attack(server, seed, count))
    assert statuses.total() == count
    # The mutations are neither all harmless nor all broken at the surface.
    assert statuses[200] > count / 20 and statuses[400] > count / 4, statuses
    assert statuses[0] < count / 10, statuses
    reply = ask(server.port, request("/v2/models/tiny/infer", json.dumps(infer_body()).encode()))
    assert (reply.status, reply.json["outputs"][0]["data"]) == (200, [2])


@pytest.mark.parametrize(("seed", "count"), [(2, 100), pytest.param(3, 3000, marks=_SLOW)])
def test_mutated_messages_over_grpc_are_answered_or_refused(server: Running, seed: int, count: int) -> None:
    random, statuses = np.random.default_rng(seed), Counter[str]()
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        for begin in range(0, count, TOGETHER):
            sent = [mutated_message(random) for _ in range(min(TOGETHER, count - begin))]
            for data, future in [(data, infer.future(data, timeout=PATIENCE)) for data in sent]:
                code, details = future.code().name, future.details()
                assert code in _STATUSES, (code, details, data)
                if code != "OK":
                    check_message(details)
                statuses[code] += 1
        good = infer(valid_messages()[0].SerializeToString(), timeout=PATIENCE)
        made = message("ModelInferResponse").FromString(good)
        assert (made.outputs[0].shape, len(made.raw_output_contents[0])) == ([1, 8, 8], 8 * 8 * 4)
    assert statuses["OK"] > count / 20 and statuses["INVALID_ARGUMENT"] > count / 4, statuses


def _facts(
    task: str, takes: tuple[str, ...] = ("photos", "tensors"), sizes: tuple[str, ...] = ("input", "photo")
) -> Facts:
    return Facts(task, (3, 8, 8), (8, 8), frozenset(takes), sizes, task == "classify", True)


FACTS = [
    *(_facts(task) for task in ("classify", "detect", "segment", "embed", "value")),
    _facts("classify", ("photos",), ("photo",)),
    _facts("classify", ("tensors",)),
    Facts("classify", (3, None, None), (None, None), frozenset({"photos", "tensors"}), ("input", "photo"), True, False),
]


@pytest.mark.parametrize(("seed", "count"), [(4, 1000), pytest.param(5, 20_000, marks=_SLOW)])
def test_mutated_requests_without_a_network_are_read_or_refused(seed: int, count: int, tmp_path: Path) -> None:
    random, limits, outcomes = np.random.default_rng(seed), ServingLimits(), Counter[str]()
    for number in range(count):
        facts = FACTS[number % len(FACTS)]
        try:
            if number % 3:
                asked = read_infer(*mutated_infer(random), limits.json)
            else:
                try:
                    given = message("ModelInferRequest").FromString(mutated_message(random))
                except DecodeError:  # the door refuses these
                    outcomes["broken"] += 1
                    continue
                asked = _read(given)
            question = read_question(asked, facts, limits)
        except Refusal as refusal:
            assert refusal.kind in (Kind.INVALID, Kind.TOO_LARGE), refusal
            check_message(str(refusal))
            outcomes["refused"] += 1
        else:
            assert 1 <= len(question.images) <= limits.images
            assert 1 <= question.rows <= limits.targets
            outcomes["read"] += 1
    assert outcomes["read"] > count / 30 and outcomes["refused"] > count / 3, outcomes


def test_the_requests_are_valid_before_they_are_mutated(server: Running) -> None:
    for body in bodies():
        assert ask(server.port, request("/v2/models/tiny/infer", json.dumps(body).encode())).status == 200
