"""Execution providers: their options, what is said where they do not load, and what is kept between starts."""

from __future__ import annotations

import importlib.util
import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

import ortcam
from ortcam.errors import OptionError, OrtcamWarning, ProviderError
from ortcam.graph.scoring import tensorrt_profile
from ortcam.model.cam_model import CamModel
from ortcam.runtime import cache
from ortcam.runtime.engine import Engine
from ortcam.runtime.providers import PROVIDERS, Provider, count_nodes
from ortcam.runtime.session import make_options
from ortcam.runtime.threads import calm_blas


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory of its own."""
    monkeypatch.setenv("ORTCAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"name": "cud"}, ProviderError, "nearest: cuda"),
        ({"name": None}, ProviderError, "expected a name"),
        ({"name": "cuda", "device_id": -1}, OptionError, "device_id is -1"),
        ({"name": "cuda", "options": None}, OptionError, "options is None"),
        ({"name": "cuda", "options": ["use_tf32=1"]}, OptionError, "expected names and values"),
        ({"name": "cpu", "device_id": 1}, OptionError, "takes no device_id"),
        ({"name": "cuda", "options": {"device_id": "1"}}, OptionError, "give it as device_id"),
        ({"name": "cpu", "options": {"use_tf32": "1"}}, OptionError, "takes no options"),
        ({"name": "auto", "options": {"use_tf32": "1"}}, OptionError, "takes no options"),
        ({"name": "tensorrt", "options": {"trt_cuda_graph_enable": 1}}, OptionError, "leave it off"),
    ],
)
def test_bad_providers(arguments: dict[str, object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        Provider(**arguments)


def test_cuda_keeps_float32_unless_told_otherwise() -> None:
    """TF32 rounds to 10 bits of mantissa; off is the default here, and on is ONNX Runtime's."""
    assert Provider("CUDAExecutionProvider").session_options({}) == {"use_tf32": "0", "device_id": "0"}
    chosen = Provider("cuda", {"use_tf32": 1, "prefer_nhwc": "1"}, device_id=np.int64(2)).session_options({})
    assert chosen == {"use_tf32": "1", "prefer_nhwc": "1", "device_id": "2"}


def test_tensorrt_gets_profiles_and_a_cache(resnet18_file: Path, kept: Path) -> None:
    """Built as ONNX Runtime's documentation asks; TensorRT itself was not run with them."""
    model = CamModel(resnet18_file)
    profile = tensorrt_profile(model, 16, 32)
    smallest, largest = (dict(part.split(":") for part in profile[f"trt_profile_{end}_shapes"].split(","))
                         for end in ("min", "max"))  # fmt: skip
    assert smallest["ortcam.photos"] == "1x3x96x96"
    assert smallest["ortcam.activations"] == "1x1x1"  # the plain pass has no masks
    assert largest["ortcam.activations"] == "8192x3x3"
    assert (smallest["ortcam.channels"], largest["ortcam.channels"]) == ("1", "32")
    assert (smallest["ortcam.photo_index"], largest["ortcam.photo_index"]) == ("1", "32")
    assert (smallest["ortcam.rows"], smallest["ortcam.columns"]) == ("1x1x96x1", "1x96")
    assert (largest["ortcam.rows"], largest["ortcam.columns"]) == ("32x1x96x3", "3x96")
    assert (smallest["ortcam.targets"], largest["ortcam.targets"]) == ("1x1", "32x1000")
    engine = Engine(CamModel(resnet18_file), "logits", Provider("cpu"), None, None)
    assert smallest.keys() == largest.keys() == {value.name for value in engine.session.get_inputs()}
    provider = Provider("tensorrt", {"trt_fp16_enable": "1"})
    folders = engine._opening._engine_cache(provider)
    assert folders["trt_engine_cache_path"] == folders["trt_timing_cache_path"]
    assert Path(folders["trt_engine_cache_path"]).parent == kept
    other = Engine(CamModel(resnet18_file), "output", Provider("cpu"), None, None)
    assert other._opening._engine_cache(provider) != folders  # an engine holds weights and graph: nobody else's will do
    options = provider.session_options(profile | folders)
    assert options == {**profile, **folders, "trt_fp16_enable": "1", "device_id": "0"}


@pytest.mark.parametrize("name", [name for name in PROVIDERS if name != "cpu"])
def test_a_provider_that_was_asked_for_and_does_not_load_is_an_error(resnet18_file: Path, name: str) -> None:
    if PROVIDERS[name][0] in ort.get_available_providers():
        pytest.skip(f"this build of ONNX Runtime has {name}")
    if name == "openvino" and importlib.util.find_spec("onnxruntime_ep_openvino") is not None:
        pytest.skip("openvino is here as a plugin")
    with pytest.raises(ProviderError, match=f"'{name}' does not load.*install"):
        ortcam.ScoreCAM(resnet18_file, provider=name)


def test_openvino_runs_or_says_what_it_lacks(resnet18_file: Path, photos: dict[str, Path]) -> None:
    """Its plugin finds no device on a processor that is not Intel's."""
    exact = ortcam.ScoreCAM(resnet18_file).explain(photos["chelsea"])
    try:
        cam = ortcam.ScoreCAM(resnet18_file, provider="openvino")
    except ProviderError as error:
        assert "finds no device that it supports" in str(error)
        assert "--provider cpu" in str(error)
        with pytest.raises(ProviderError, match="finds no device"):  # and says it again
            ortcam.ScoreCAM(resnet18_file, provider="openvino")
    else:
        assert np.abs(cam.explain(photos["chelsea"]).input_maps - exact.input_maps).max() < 1e-2


def test_nodes_are_counted_by_provider(resnet18_file: Path) -> None:
    engine = Engine(CamModel(resnet18_file), "logits", Provider("cpu"), None, None, record_assignment=True)
    nodes = count_nodes(engine.session)
    assert list(nodes) == ["CPUExecutionProvider"]
    assert nodes["CPUExecutionProvider"]["Conv"] == 20  # ResNet-18's
    assert nodes["CPUExecutionProvider"]["GatherElements"] == 1


def test_a_prepared_graph_is_kept_and_gives_the_same_map(
    resnet18_file: Path, photos: dict[str, Path], kept: Path
) -> None:
    first = ortcam.ScoreCAM(resnet18_file).explain(photos["chelsea"])
    (graph,) = kept.glob("*.onnx")
    written = graph.stat().st_ino
    second = ortcam.ScoreCAM(resnet18_file).explain(photos["chelsea"])
    assert np.array_equal(first.input_maps, second.input_maps)
    assert graph.stat().st_ino == written
    ortcam.ScoreCAM(resnet18_file, preset="tf-keras-vis")  # the same scores of a model that ends in logits
    assert [path.suffix for path in kept.iterdir()].count(".onnx") == 2
    assert graph.stat().st_ino == written


@pytest.mark.slow
def test_a_kept_graph_that_was_damaged_is_made_again(resnet18_file: Path, photos: dict[str, Path], kept: Path) -> None:
    """Weights are data: a runtime loads zeros in their place without a word."""
    first = ortcam.ScoreCAM(resnet18_file).explain(photos["chelsea"])
    (graph,) = kept.glob("*.onnx")
    whole = graph.read_bytes()
    middle = len(whole) // 2
    for broken in (whole[:middle] + bytes(4096) + whole[middle + 4096 :], whole[:middle], resnet18_file.read_bytes()):
        graph.write_bytes(broken)
        with pytest.warns(OrtcamWarning, match="is damaged; it is made again"):
            again = ortcam.ScoreCAM(resnet18_file).explain(photos["chelsea"])
        assert np.array_equal(first.input_maps, again.input_maps)
        assert [path.read_bytes() for path in kept.glob("*.onnx")] == [whole]
    # As it was written, but of a runtime that wrote what this one does not load.
    (kept / graph.name[: -len("-12345678.onnx")]).with_suffix(".onnx").write_bytes(b"no graph")
    cache.seal_graph(next(path for path in kept.glob("*.onnx") if path != graph))
    graph.unlink()
    with pytest.warns(OrtcamWarning, match="does not load; it is made again"):
        again = ortcam.ScoreCAM(resnet18_file).explain(photos["chelsea"])
    assert np.array_equal(first.input_maps, again.input_maps)
    assert [path.read_bytes() for path in kept.glob("*.onnx")] == [whole]


@pytest.mark.slow
def test_the_best_batch_is_measured_once(resnet18_file: Path, kept: Path) -> None:
    cam = ortcam.ScoreCAM(resnet18_file, batch_size="auto")
    (entry,) = kept.glob("*.json")
    facts = json.loads(entry.read_text())
    assert cam.batch_size == facts["batch_size"]
    assert facts["seconds_per_image"][str(cam.batch_size)] <= 1.02 * min(facts["seconds_per_image"].values())
    entry.write_text(json.dumps({"batch_size": 3}))
    assert ortcam.ScoreCAM(resnet18_file, batch_size="auto").batch_size == 3
    for broken in ("{", "[" * 100_000, "[]", '{"batch_size": 0}', '{"batch_size": "many"}', '{"batch_size": true}'):
        entry.write_text(broken)
        with pytest.warns(OrtcamWarning, match="cannot be read"):
            ortcam.ScoreCAM(resnet18_file, batch_size="auto")
        assert json.loads(entry.read_text())["batch_size"] >= 1


def test_a_cache_that_cannot_be_written_is_a_notice(
    resnet18_file: Path, photos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ORTCAM_CACHE", str(tmp_path / "file"))
    with pytest.warns(OrtcamWarning, match="cannot be written"):
        cam = ortcam.ScoreCAM(resnet18_file)
    assert cam.explain(photos["chelsea"]).maps.max() > 0.9
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o600)
    monkeypatch.setenv("ORTCAM_CACHE", str(closed / "cache"))
    if os.geteuid():  # the superuser may enter anything
        with pytest.warns(OrtcamWarning, match="cannot be written"):
            ortcam.ScoreCAM(resnet18_file)
    monkeypatch.setenv("ORTCAM_CACHE", "~there is nobody of this name/cache")
    with pytest.warns(OrtcamWarning, match="no such directory can be found"):
        ortcam.ScoreCAM(resnet18_file)
    monkeypatch.setenv("ORTCAM_CACHE", "")
    assert cache.cache_directory() is None
    ortcam.ScoreCAM(resnet18_file)


def test_graphs_that_were_not_used_for_long_make_room(kept: Path) -> None:
    kept.mkdir()
    for age, name in enumerate(("new", "old", "older")):
        (kept / f"{name}.onnx").write_bytes(bytes(100))
        os.utime(kept / f"{name}.onnx", (time.time() - 1000 * age,) * 2)
    cache.make_room(limit=250)
    assert sorted(path.stem for path in kept.iterdir()) == ["new", "old"]


def test_threads_rest_between_photos(resnet18_file: Path, photos: dict[str, Path]) -> None:
    """ONNX Runtime's threads wait busily for work by default: that would eat an embedding program's processor."""
    cam = ortcam.ScoreCAM(resnet18_file, threads=2)
    cam.explain(photos["chelsea"])
    begin = time.process_time()
    time.sleep(1)
    assert time.process_time() - begin < 0.2


def test_blas_threads_come_back() -> None:
    """Blocks of several threads that overlap: one thread inside, all of them after the last."""
    from threadpoolctl import threadpool_info

    def count() -> int:
        return max(library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas")

    before = count()
    first, second = calm_blas(), calm_blas()
    first.__enter__()
    thread = threading.Thread(target=second.__enter__)
    thread.start()
    thread.join()
    first.__exit__(None, None, None)
    assert count() == 1
    second.__exit__(None, None, None)
    assert count() == before


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or os.cpu_count() == 1, reason="needs two processors")
def test_no_more_threads_than_processors_that_may_be_used() -> None:
    """With more, ONNX Runtime binds threads to processors that a container forbids, and prints an error for each."""
    may_be_used = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(may_be_used)})
        assert make_options(None).intra_op_num_threads == 1
        assert make_options(3).intra_op_num_threads == 3
    finally:
        os.sched_setaffinity(0, may_be_used)
    if len(may_be_used) == os.cpu_count():
        assert make_options(None).intra_op_num_threads == 0  # ONNX Runtime's own choice: one per physical core
