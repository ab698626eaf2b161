"""Runs in buffers that keep their addresses. Without a GPU the CPU runs them and ignores the graphs' numbers."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from torch import nn

import ortcam
from ortcam.core.device import Device
from ortcam.core.query import Rows
from ortcam.errors import ModelError
from ortcam.exporters import export
from ortcam.graph import names, scoring
from ortcam.runtime import captured
from ortcam.runtime.engine import Engine
from ortcam.runtime.scorer import Scorer


@pytest.fixture(scope="module")
def engine(resnet18_file: Path) -> Engine:
    return Engine(ortcam.CamModel(resnet18_file), "logits", ortcam.Provider("cpu"), 4, 2)


@pytest.fixture
def replaying(engine: Engine, resnet18_file: Path) -> Scorer:
    return Scorer(engine.session, ortcam.CamModel(resnet18_file), Device(), 4, "powers", captures=True)


def rows_of(photos: list[int], targets: int = 1) -> Rows:
    affine = np.tile(np.array([0, 0.25, 0.1], np.float32), (len(photos), 1))
    classes = np.tile(np.arange(targets), (len(photos), 1))
    return Rows(np.array(photos), np.arange(len(photos)) * 7 + 3, affine, classes)


def test_reused_buffers_score_as_fresh_ones_do(engine: Engine, replaying: Scorer) -> None:
    """Photos take turns, batches are of several sizes, of one photo and of two, and of one class and of three."""
    tensors = np.random.default_rng(5).standard_normal((5, 3, 96, 96), np.float32)
    groups = {name: engine.scorer.forward(some) for name, some in [("a", tensors[:2]), ("b", tensors[2:4])]}
    engine.scorer.batch_size = 4
    for _ in range(2):
        for name, photos, targets in [
            ("a", [0] * 6, 1), ("b", [0] * 6, 1), ("a", [1] * 4, 1),
            ("a", [0, 1, 1, 0, 1], 3), ("b", [0, 1, 1, 0, 1], 3), ("b", [1], 1), ("a", [1], 1),
        ]:  # fmt: skip
            rows = rows_of(photos, targets)
            ours, direct = (some.score(groups[name], rows) for some in (replaying, engine.scorer))
            for kind in ("logits", "log_probabilities"):
                close = np.allclose(getattr(ours, kind), getattr(direct, kind), rtol=1e-5, atol=1e-5)
                assert close, (name, photos, kind)
    assert replaying._captured is not None
    # 6 rows are 4 + 2, 5 are 4 + 1; rows of one photo, of two photos, and of three classes differ in shape.
    assert len(replaying._captured._graphs) == 5


def test_plain_passes_are_the_same(engine: Engine, replaying: Scorer) -> None:
    tensors = np.random.default_rng(6).standard_normal((2, 3, 96, 96), np.float32)
    for some in (tensors, tensors[::-1].copy(), tensors):
        ours, direct = replaying.forward(some), engine.scorer.forward(some)
        assert np.array_equal(ours.features, direct.features)
        assert np.array_equal(ours.passes[1].logits, direct.passes[1].logits)


def test_shapes_beyond_the_most_are_run_without_a_graph(
    engine: Engine, replaying: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captured, "MOST_GRAPHS", 1)
    group = engine.scorer.forward(np.zeros((1, 3, 96, 96), np.float32))
    for count in (1, 2, 4, 4, 2, 1, 4):
        rows = rows_of([0] * count)
        ours, direct = (some.score(group, rows).logits for some in (replaying, engine.scorer))
        assert np.allclose(ours, direct, rtol=1e-5, atol=1e-5)
    assert replaying._captured is not None and len(replaying._captured._graphs) == 1


def test_nothing_of_the_masking_copies_from_the_host_while_it_runs(resnet18_file: Path) -> None:
    """On CUDA these do, as of ONNX Runtime 1.30, and a replay would read memory that is no longer theirs."""
    model = ortcam.CamModel(resnet18_file)
    graph = scoring.build_scoring_graph(model.take_proto(), model.contract, "logits").graph
    assert not {node.op_type for node in graph.node} & {"GatherND", "ScatterND", "Expand"}
    shapes = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.input}
    (upsampling,) = (node for node in graph.node if names.ROWS in node.input)
    assert (upsampling.op_type, shapes[names.ROWS]) == ("MatMul", 4)  # so that each mask can have a matrix of its own


def test_a_graph_that_cannot_be_captured_is_not_kept(engine: Engine) -> None:
    """Here inputs are missing."""
    runs = captured.CapturedRuns(engine.session, "net.onnx", "cpu", 0)
    with pytest.raises(
        ModelError, match=r"cannot run net\.onnx as a CUDA graph: .*provider option enable_cuda_graph=0"
    ):
        targets = {names.TARGETS: np.zeros((1, 1), np.int64)}
        runs.run(captured.Batch(False, targets, {}, {names.TARGET_LOGITS: (1, 1)}, list))
    assert not runs._graphs


def test_nobody_uses_the_gpu_while_a_graph_is_captured() -> None:
    gate, users, seen = captured.Gate(), [0], []

    def use(_: int) -> None:
        with gate.shared():
            users[0] += 1
            time.sleep(0.001)
            users[0] -= 1

    def capture(_: int) -> None:
        with gate.alone():
            seen.append(users[0])
            time.sleep(0.001)
            seen.append(users[0])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: (capture if number % 5 == 0 else use)(number), range(200)))
    assert seen == [0] * 80


def test_graphs_are_for_operators_that_were_measured(resnet18_file: Path) -> None:
    """What an unknown operator would do in a replay shows in no error: it may read memory that is not its own."""
    model = ortcam.CamModel(resnet18_file)
    graph = scoring.build_scoring_graph(model.take_proto(), model.contract, "logits")
    assert scoring.not_captured(graph) == set()
    graph.graph.node.append(onnx.helper.make_node("Concat", ["a", "b"], ["c"], axis=1))
    graph.graph.node.append(onnx.helper.make_node("FusedMatMul", ["a", "b"], ["d"], domain="com.microsoft"))
    assert scoring.not_captured(graph) == {"Concat", "com.microsoft.FusedMatMul"}


def test_scores_of_a_sigmoid_are_captured_too(models: Path, tiny: nn.Module) -> None:
    """Their log needs a Softplus."""
    network = nn.Sequential(tiny, nn.Sigmoid()).eval()
    path = export(network, models / "captured-sigmoid.onnx", input_size=32, preprocess="imagenet").path
    model = ortcam.CamModel(path)
    graph = scoring.build_scoring_graph(model.take_proto(), model.contract, "logits")
    assert "Softplus" in {node.op_type for node in graph.graph.node}
    assert scoring.not_captured(graph) == set()


def test_options_say_whether_graphs_are_captured() -> None:
    assert ortcam.Provider("cuda").captures is None
    assert ortcam.Provider("cuda", {"enable_cuda_graph": 0}).captures is False
    wanted = ortcam.Provider("cuda", {"enable_cuda_graph": "True"})
    assert wanted.captures is True
    assert wanted.session_options({"enable_cuda_graph": "0"})["enable_cuda_graph"] == "True"  # the user's are stronger
