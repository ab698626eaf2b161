"""A server as a process, for tests, and the models and photos that it serves."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import onnx
from conftest import Tiny
from numpy.typing import NDArray
from test_tasks import read_photo, toy

import ortcam
from ortcam.exporters import export
from ortcam.model.contract import Contract
from ortcam.output.render import encode_png

Array = NDArray[Any]
ORTCAM = Path(sys.executable).with_name("ortcam")
SECONDS = 30.0  # for whatever should take less than one
CLIENT = httpx.Client(timeout=SECONDS, verify=False, trust_env=False)
TASKS = ("detect", "segment", "embed", "value")
LABELS = [f"class {number}" for number in range(10)]


@dataclass
class Server:
    """A server that runs.

    Attributes:
        process: its process.
        rest: the URL of its REST door.
        rpc: the address of its gRPC door.
        lines: the lines that it has logged.
    """

    process: subprocess.Popen[str]
    rest: str = ""
    rpc: str = ""
    lines: list[str] = field(default_factory=list)

    @property
    def host(self) -> str:
        return self.rest.removeprefix("http://")


@contextmanager
def serving(*words: str | Path) -> Iterator[Server]:
    """Run ``ortcam serve`` at free ports; after the block it must end by itself, and well."""
    command = [str(ORTCAM), "serve", *map(str, words), "--port", "0", "--grpc-port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    server, listening = Server(process), threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            server.lines.append(line.rstrip("\n"))
            found = re.search(r"REST on (http://\S+), gRPC on ([^\s\"]+)", line)
            if found is not None:
                server.rest, server.rpc = found[1], found[2]
                listening.set()
        listening.set()  # it has ended

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        assert listening.wait(SECONDS) and server.rest, server.lines
        yield server
        process.terminate()
        assert process.wait(SECONDS) == 0, server.lines
    finally:
        process.kill()
        process.wait()
        reader.join(SECONDS)


def make_files(folder: Path, photos: dict[str, Path]) -> None:
    """Write small models, and two photos of one size.

    tiny: a classifier with labels; bare: one without labels and preprocessing; packed, tensors: tiny, packed to take
    photos or tensors; and a toy of each other task, with its packed file.
    """
    export(Tiny().eval(), folder / "tiny.onnx", preprocess="imagenet", input_size=64, labels=LABELS)
    bare = onnx.load(folder / "tiny.onnx")
    contract = Contract.from_metadata({one.key: one.value for one in bare.metadata_props}, "tiny")
    onnx.helper.set_model_props(bare, replace(contract, preprocessing=None, labels=None).to_metadata())
    onnx.save(bare, folder / "bare.onnx")
    ortcam.pack(folder / "tiny.onnx", folder / "packed.onnx", budget=8, verify=False)
    ortcam.pack(folder / "tiny.onnx", folder / "tensors.onnx", budget=8, raw=False, verify=False)
    for task in TASKS:
        onnx.save(toy(task), folder / f"{task}.onnx")
        ortcam.pack(folder / f"{task}.onnx", folder / f"{task}-packed.onnx", verify=False)
    (folder / "cat.jpg").write_bytes(jpeg(photos["chelsea"], 90, 60))
    (folder / "cup.jpg").write_bytes(jpeg(photos["coffee"], 90, 60))
    cat = read_photo(photos["chelsea"])[60:180]  # the toys see what their targets name
    (folder / "cat.png").write_bytes(encode_png(np.ascontiguousarray(cat)))
    (folder / "mirrored.png").write_bytes(encode_png(np.ascontiguousarray(cat[:, ::-1])))


def jpeg(photo: Path, width: int, height: int) -> bytes:
    """Return a small JPEG file of a photo."""
    small = cv2.resize(cv2.imread(str(photo)), (width, height), interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode(".jpg", small)
    assert done
    return data.tobytes()


def counts(server: Server, headers: dict[str, str] | None = None) -> dict[str, float]:
    """Return the metrics, as Prometheus reads them, by name and labels: ``name{door=rest,model=tiny}``."""
    from prometheus_client.parser import text_string_to_metric_families

    text = CLIENT.get(f"{server.rest}/metrics", headers=headers).raise_for_status().text
    return {
        f"{one.name}{{{','.join(f'{key}={value}' for key, value in sorted(one.labels.items()))}}}": one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def rows_of(explanation: Any, size: str = "input") -> Array:
    """Return the maps of an explanation, float32 [T,h,w]."""
    if size == "photo":
        return np.stack([explanation.map_at(place) for place in range(len(explanation.targets))])
    maps: Array = explanation.input_maps
    return maps
