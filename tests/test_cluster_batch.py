"""ExplainBatch: rows equal to what explain returns, errors as rows, names as text."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pyarrow as pa
import pytest
from cluster_toy import write_model, write_photos
from test_tasks import toy

import ortcam
from ortcam.cluster import batch as batch_module
from ortcam.cluster.batch import SCHEMA, SPARK_SCHEMA, ExplainBatch
from ortcam.cluster.names import name_to_text, text_to_name
from ortcam.errors import ModelError, OptionError, TargetError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "toy.onnx")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_photos(tmp_path_factory.mktemp("photos"), 5)


def maps_of(row: dict[str, Any]) -> np.ndarray[Any, Any]:
    return np.stack([np.frombuffer(one, np.float16).reshape(row["map_shape"]) for one in row["map"]])


def test_each_row_holds_what_explain_returns(model: Path, pictures: list[Path]) -> None:
    batch = ExplainBatch(model, top_k=2, budget=8, threads=1)
    table = batch({"path": [str(path) for path in pictures]})
    assert table.schema == SCHEMA
    cam = ortcam.ScoreCAM(model, threads=1)
    for path, row in zip(pictures, table.to_pylist(), strict=True):
        one = cam.explain(path, top_k=2, budget=8)
        assert (row["path"], row["status"], row["error_text"]) == (str(path), "ok", None)
        assert row["targets"] == [target.index for target in one.targets]
        assert row["labels"] == [target.label for target in one.targets]
        assert row["probabilities"] == [target.probability for target in one.targets]
        assert row["places"] == [None, None]
        assert np.array_equal(maps_of(row), one.input_maps.astype(np.float16))
        assert row["estimated_error"] == [error and error.expected for error in one.errors]
        assert (row["scored"], row["ortcam_version"]) == (one.scored, ortcam.__version__)
        assert row["model_sha256"] == one.provenance.model[0].sha256


def test_bytes_and_paths_in_every_kind_of_batch_give_the_same_rows(model: Path, pictures: list[Path]) -> None:
    batch = ExplainBatch(model, threads=1)
    paths, files = [str(path) for path in pictures], [path.read_bytes() for path in pictures]
    table = pa.table({"path": paths, "bytes": files})
    by_path = batch({"path": paths})
    assert batch(table).equals(by_path)
    assert pa.Table.from_batches(batch.record_batches(table.to_batches(max_chunksize=2))).equals(by_path)
    assert batch({"path": np.array(paths), "bytes": np.array(files, object)}).equals(by_path)
    assert batch({"path": [path.as_uri() for path in pictures]}).drop("path").equals(by_path.drop("path"))
    assert batch(table.slice(0, 0)).num_rows == 0


def test_a_photo_that_cannot_be_used_is_a_row_in_its_place(model: Path, pictures: list[Path], tmp_path: Path) -> None:
    broken, pipe, good = tmp_path / "broken.png", tmp_path / "pipe.png", pictures[0]
    broken.write_bytes(good.read_bytes()[:100])
    os.mkfifo(pipe)
    paths = [str(broken), str(good), str(tmp_path / "gone.png"), str(tmp_path), str(pipe), str(good), ""]
    rows = ExplainBatch(model, threads=1)({"path": paths}).to_pylist()
    assert [row["path"] for row in rows] == paths
    assert [row["status"] for row in rows] == ["error", "ok", "error", "error", "error", "ok", "error"]
    assert [row["error_text"] for row in rows] == [
        f"{broken} is cut short: its end is missing; get the whole file again",
        None,
        f"cannot read {tmp_path}/gone.png: no such file",
        f"cannot read {tmp_path}: it is not a file",
        f"cannot read {pipe}: it is not a file",
        None,
        "path is empty; expected the path of a photo",
    ]
    assert rows[0]["map"] is None and rows[0]["model_sha256"] == rows[1]["model_sha256"]
    rows = ExplainBatch(model, threads=1)({"path": ["a", "b"], "bytes": [None, b""]}).to_pylist()
    assert [row["error_text"] for row in rows] == [
        "a has no bytes; expected the bytes of a picture file",
        "b is empty (0 bytes); expected an image such as JPEG or PNG",
    ]


def test_a_photo_with_too_many_pixels_is_an_error_before_it_is_decoded(
    model: Path, pictures: list[Path], tmp_path: Path
) -> None:
    large = tmp_path / "large.png"
    cv2.imwrite(str(large), np.zeros((10_000, 10_000), np.uint8))
    rows = ExplainBatch(model, threads=1)({"path": [str(large), str(pictures[0])]}).to_pylist()
    assert rows[0]["error_text"].startswith(f"{large} has 10000x10000 pixels (100 million); at most 50 million")
    assert rows[1]["status"] == "ok"
    (row,) = ExplainBatch(model, threads=1, max_pixels=2399)({"path": [str(pictures[0])]}).to_pylist()
    assert row["status"] == "error"  # 60 x 40


def test_overlays_and_no_maps(model: Path, pictures: list[Path]) -> None:
    (row,) = ExplainBatch(model, threads=1, maps="png")({"path": [str(pictures[0])]}).to_pylist()
    overlay = cv2.cvtColor(cv2.imdecode(np.frombuffer(row["map"][0], np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    assert row["map_shape"] == [40, 60, 3]
    with ortcam.load_explainer(model, "auto", threads=1) as explainer:
        assert np.array_equal(overlay, explainer.explain(pictures[0]).overlay())
    (row,) = ExplainBatch(model, threads=1, maps="none")({"path": [str(pictures[0])]}).to_pylist()
    assert (row["map"], row["map_shape"], row["status"]) == (None, None, "ok")


def test_a_batch_is_pickled_without_its_engine(model: Path, pictures: list[Path]) -> None:
    batch = ExplainBatch(model, targets=("dog",), threads=1)
    before = batch({"path": [str(pictures[0])]})
    data = pickle.dumps(batch)
    assert len(data) < 2000  # the path and the options alone
    assert pickle.loads(data)({"path": [str(pictures[0])]}).equals(before)
    assert before["labels"].to_pylist() == [["dog"]]


def test_wrong_options_and_models_are_one_line(model: Path, pictures: list[Path], tmp_path: Path) -> None:
    path = {"path": [str(pictures[0])]}
    with pytest.raises(OptionError, match="maps is 'jpeg'; expected float16, png, none"):
        ExplainBatch(model, maps="jpeg")
    with pytest.raises(OptionError, match="the batch has the columns name; expected path"):
        ExplainBatch(model, threads=1)({"name": ["x"]})
    with pytest.raises(TargetError, match=r"label .bird. is unknown"):
        ExplainBatch(model, targets=("bird",), threads=1)(path)
    with pytest.raises(ModelError, match="no such file"):
        ExplainBatch(tmp_path / "gone.onnx")(path)
    other = write_model(tmp_path / "other.onnx", seed=4)
    hashes = ExplainBatch(model).hashes_found
    with pytest.raises(ModelError, match="is another file here"):
        ExplainBatch(other, hashes=hashes)(path)


def test_the_schema_for_spark_is_the_schema() -> None:
    words = {
        pa.string(): "string", pa.int64(): "bigint", pa.int32(): "int", pa.float64(): "double", pa.binary(): "binary",
    }  # fmt: skip
    shown = [
        f"{one.name} array<{words[one.type.value_type]}>"
        if pa.types.is_list(one.type)
        else f"{one.name} {words[one.type]}"
        for one in SCHEMA
    ]
    assert ", ".join(shown) == SPARK_SCHEMA


def test_many_maps_become_several_chunks(model: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    batch, paths = ExplainBatch(model, threads=1), {"path": [str(path) for path in pictures]}
    whole = batch(paths)
    monkeypatch.setattr(batch_module, "_MOST_CHUNK", 2000)  # bytes: a map has 1152
    chunked = batch(paths)
    assert chunked["map"].num_chunks == 3
    assert chunked.combine_chunks().equals(whole.combine_chunks())


def test_a_detection_has_its_box(pictures: list[Path], tmp_path: Path) -> None:
    onnx.save(toy("detect"), tmp_path / "detect.onnx")
    cam = ortcam.ScoreCAM(tmp_path / "detect.onnx", threads=1)
    (target,) = cam.explain(pictures[0]).targets
    (row,) = ExplainBatch(tmp_path / "detect.onnx", threads=1)({"path": [str(pictures[0])]}).to_pylist()
    assert target.place is not None and json.loads(row["places"][0]) == dict(target.place)
    assert (row["targets"], row["probabilities"]) == ([target.index], [target.probability])


def test_a_packed_explainer_with_maps_of_the_photos_size(model: Path, pictures: list[Path], tmp_path: Path) -> None:
    packed = ortcam.pack(model, tmp_path / "packed.onnx", budget=8, verify=False).path
    with pytest.raises(OptionError, match=r"packed with maps of the photo's size; expected maps png or none"):
        ExplainBatch(packed, threads=1)({"path": [str(pictures[0])]})
    broken = tmp_path / "broken.png"
    rows = ExplainBatch(packed, maps="none", threads=1)({"path": [str(broken), str(pictures[0])]}).to_pylist()
    assert [row["status"] for row in rows] == ["error", "ok"]
    assert rows[1]["targets"] == ExplainBatch(model, threads=1)({"path": [str(pictures[0])]})["targets"][0].as_py()


# Names


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("photos/é 1.jpg", "photos/é 1.jpg"),
        ("caf\udce9.jpg", r"caf\xe9.jpg"),
        (r"caf\xe9.jpg", r"caf\x5cxe9.jpg"),
        ("a\\\udcff", r"a\\xff"),
        (r"C:\xylo\u12", r"C:\xylo\u12"),
        ("\ud800\\ud800", r"\ud800\x5cud800"),
        (r"\x5c", r"\x5cx5c"),
    ],
)
def test_names_become_text_and_come_back(name: str, text: str) -> None:
    assert name_to_text(name) == text
    assert text_to_name(text) == name
    text.encode()


def test_a_name_that_is_no_utf8_is_read_and_named(model: Path, pictures: list[Path], tmp_path: Path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    Path(name).write_bytes(pictures[0].read_bytes())
    batch = ExplainBatch(model, threads=1)
    rows = batch({"path": [name, name.replace("caf", "bar")]}).to_pylist()
    assert [row["path"] for row in rows] == [rf"{tmp_path}/caf\xe9.png", rf"{tmp_path}/bar\xe9.png"]
    assert [row["error_text"] for row in rows] == [None, rf"cannot read {tmp_path}/bar\xe9.png: no such file"]
    assert batch({"path": pa.array([rows[0]["path"]])})["status"].to_pylist() == ["ok"]
