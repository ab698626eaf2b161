"""What attacks on the server need: a tiny model, a server as a process, raw requests, and seeded mutations of them."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
from onnx import TensorProto, helper, numpy_helper

from ortcam.model.contract import Contract, ExposedLayer
from ortcam.model.preprocessing import Preprocessing

SIZE, CHANNELS = 8, 4
LABELS = ("cat", "dog", "bird")
PATIENCE = 20.0  # seconds within which anything must have happened, on a machine that is busy with other things


def write_tiny_model(path: Path) -> Path:
    """Write a classifier of 8x8 photos, whose explanation takes about a millisecond."""
    random = np.random.default_rng(0)
    constants = {
        "kernel": random.normal(0, 1, (CHANNELS, 3, 3, 3)).astype(np.float32),
        "weights": random.normal(0, 1, (CHANNELS, len(LABELS))).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["convolved"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["convolved"], ["activations"]),
        helper.make_node("GlobalAveragePool", ["activations"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["row"]),
        helper.make_node("MatMul", ["row", "weights"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(LABELS)]),
            helper.make_tensor_value_info("activations", TensorProto.FLOAT, ["batch", CHANNELS, SIZE, SIZE]),
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    seen = Preprocessing(SIZE, SIZE, scale=1 / 255, mean=(0.5,) * 3, std=(0.25,) * 3)
    contract = Contract(
        (ExposedLayer("relu", "relu", "NCHW"),), activation="softmax", preprocessing=seen, labels=LABELS
    )
    helper.set_model_props(model, contract.to_metadata())
    path.write_bytes(model.SerializeToString())
    return path


def draw_photo(side: int = 12, suffix: str = ".jpg") -> bytes:
    """Return a small photo as a file."""
    pixels = np.random.default_rng(1).integers(0, 256, (side, side, 3), np.uint8)
    return bytes(cv2.imencode(suffix, pixels)[1])


@dataclass
class Running:
    """A server that runs as a process.

    Attributes:
        process: the process.
        port, grpc_port: its ports.
        log: the lines that it has written.
    """

    process: subprocess.Popen[str]
    port: int = 0
    grpc_port: int = 0
    log: list[str] = field(default_factory=list)

    @property
    def memory(self) -> int:
        """The bytes of memory that the process has now."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def wait_for_log(self, text: str, start: int = 0) -> str:
        """Return the first line from `start` that has a text."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            for line in self.log[start:]:
                if text in line:
                    return line
            time.sleep(0.01)
        raise AssertionError(f"the log has no {text!r}: {self.log[start:]}")


_SHORT = """
import sys
from pathlib import Path
import ortcam
from ortcam.serving.limits import ServingLimits
from ortcam.serving.logs import write_logs
from ortcam.serving.server import Doors, run
from ortcam.serving.service import Service

write_logs("text")
service = Service(ortcam.load_explainer, ServingLimits(**eval(sys.argv[2])))
service.load("tiny", Path(sys.argv[1]))
run(service, Doors(port=0, grpc_port=0))
"""


def serve(*arguments: str | Path) -> AbstractContextManager[Running]:
    """Run ``ortcam serve`` on free ports, and end it; it must end well."""
    return _run(sys.executable, "-m", "ortcam", "serve", *map(str, arguments), "--port", "0", "--grpc-port", "0")


def serve_within(model: Path, **limits: float) -> AbstractContextManager[Running]:
    """Run a server with limits that have no options, such as the seconds in which a request must come."""
    return _run(sys.executable, "-c", _SHORT, str(model), repr(limits))


@contextmanager
def _run(*command: str) -> Iterator[Running]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    running = Running(process)

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            running.log.append(line.rstrip("\n"))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        line = running.wait_for_log("listening:")
        found = re.search(r"REST on http://127\.0\.0\.1:(\d+), gRPC on 127\.0\.0\.1:(\d+)", line)
        assert found is not None, line
        running.port, running.grpc_port = int(found[1]), int(found[2])
        yield running
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
        reader.join(PATIENCE)


@dataclass
class Reply:
    """An answer over HTTP.

    Attributes:
        status: its status.
        headers: its headers, names in small letters.
        body: its body.
    """

    status: int
    headers: dict[str, str]
    body: bytearray

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def request(
    path: str, body: bytes = b"", method: str = "POST", headers: dict[str, str] | None = None, length: int | None = None
) -> bytes:
    """Return a whole request over HTTP."""
    lines = [f"{method} {path} HTTP/1.1", "Host: here"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if method == "POST":
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class Wire:
    """A connection to the REST door that sends any bytes."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self._read = bytearray()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, data: bytes) -> Wire:
        """Send bytes; a server that has hung up is found out by the reader."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self._socket.sendall(data)
        return self

    def end(self) -> Wire:
        """Say that nothing more follows."""
        self._socket.shutdown(socket.SHUT_WR)
        return self

    def _more(self) -> None:
        part = self._socket.recv(262_144)
        if not part:
            raise EOFError(f"the server hung up after {bytes(self._read[:200])!r}")
        self._read += part

    def reply(self, head_only: bool = False) -> Reply:
        """Read an answer."""
        while b"\r\n\r\n" not in self._read:
            self._more()
        head = self._take(self._read.index(b"\r\n\r\n") + 4)[:-4]
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        status = int(first.split(" ")[1])
        size = 0 if head_only or status < 200 else int(headers["content-length"])
        body = bytearray(size)
        got = min(size, len(self._read))
        body[:got] = self._take(got)
        while got < size:
            count = self._socket.recv_into(memoryview(body)[got:])
            if not count:
                raise EOFError(f"the server hung up after {got} of {size} bytes")
            got += count
        return Reply(status, headers, body)

    def _take(self, size: int) -> bytes:
        taken = bytes(self._read[:size])
        del self._read[:size]
        return taken

    def is_closed(self) -> bool:
        """Wait until the server hangs up; return whether nothing more came before."""
        try:
            return not self._read and self._socket.recv(1) == b""
        except ConnectionResetError:
            return True


def ask(port: int, data: bytes, head_only: bool = False) -> Reply:
    """Send bytes over a connection of their own, and return the answer."""
    with Wire(port) as wire:
        return wire.send(data).reply(head_only)


def infer_body(**changes: Any) -> dict[str, Any]:
    """Return a valid JSON request for an explanation, with changed keys."""
    pixels = np.random.default_rng(2).integers(0, 256, (SIZE, SIZE, 3))
    image = {"name": "image", "datatype": "UINT8", "shape": [SIZE, SIZE, 3], "data": pixels.reshape(-1).tolist()}
    return {"inputs": [image], **changes}


def check_refusal(reply: Reply, *words: str, status: tuple[int, ...] = (400, 404, 405, 408, 413, 415, 431)) -> str:
    """Check that an answer is a clear refusal in the form of the protocol; return its message."""
    assert reply.status in status, (reply.status, reply.body[:500])
    assert reply.headers["content-type"] == "application/json", reply.headers
    said = reply.json
    assert list(said) == ["error"], said
    message = said["error"]
    check_message(message, *words)
    return str(message)


def check_message(message: str, *words: str) -> None:
    """Check that a message is a line for people that tells nothing of the server."""
    assert 10 < len(message) < 500, message
    assert "\n" not in message and "Traceback" not in message and "/" + "tmp" not in message, message
    assert ".onnx" not in message and "object at 0x" not in message, message
    for word in words:
        assert word in message, (word, message)
