"""Other processes: pickles, pools, forked children, users without a home directory, models and photos without files."""

from __future__ import annotations

import copy
import io
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import onnx
import pytest
from conftest import Tiny

import ortcam
from ortcam.errors import ImageError, LayerError, ModelError, OptionError, OrtcamError, PackedModelError
from ortcam.exporters import export

ORTCAM = Path(sys.executable).with_name("ortcam")
HANGS = 60  # seconds; a child that hangs does so for ever, and one that works takes two


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, photos: dict[str, Path]) -> Path:
    """A folder with a model, the same with another layer, the same packed, and a photo."""
    folder = tmp_path_factory.mktemp("small")
    export(Tiny().eval(), folder / "model.onnx", preprocess="imagenet", input_size=64)
    export(Tiny().eval(), folder / "other.onnx", "features.1", preprocess="imagenet", input_size=64)
    ortcam.pack(folder / "model.onnx", folder / "packed.onnx", budget=4)
    shutil.copy(photos["chelsea"], folder / "cat.png")
    return folder


def run_script(script: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=HANGS,
    )  # fmt: skip


def test_pickles_explain_alike(small: Path) -> None:
    """With the options as they were resolved: a batch size that was measured is not measured again."""
    cam = ortcam.ScoreCAM(small / "model.onnx", threads=1, batch_size=3, preset="paper", layer="features.1")
    packed = ortcam.PackedExplainer(small / "packed.onnx")
    for explainer in (cam, packed):
        expected = explainer.explain(small / "cat.png")
        again: Any
        for again in (
            pickle.loads(pickle.dumps(explainer)),
            pickle.loads(cloudpickle.dumps(explainer)),
            copy.deepcopy(explainer),
        ):
            found = again.explain(small / "cat.png")
            assert np.array_equal(found.maps, expected.maps)
            assert (found.layer, found.provider) == (expected.layer, expected.provider)
            carried = pickle.loads(pickle.dumps(found))
            assert np.array_equal(carried.maps, expected.maps)
            assert carried.to_dict()["model"] == expected.to_dict()["model"]
    again = pickle.loads(pickle.dumps(cam))
    assert (again.batch_size, again.convention, again.model.contract.layer) == (3, cam.convention, "features.1")
    automatic = ortcam.ScoreCAM(small / "model.onnx", provider="auto", batch_size="auto")
    carried = pickle.loads(pickle.dumps(automatic))
    assert (carried.batch_size, carried.provider) == (automatic.batch_size, "cpu")
    assert carried._running._reopen.args[0].batch_size == automatic.batch_size
    provider = ortcam.Provider("cuda", {"use_tf32": "1"}, 1)
    assert pickle.loads(pickle.dumps(provider)) == provider
    assert pickle.loads(pickle.dumps(cam.model.contract)) == cam.model.contract


def test_a_pickle_finds_a_file_by_its_content(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(small / "model.onnx", tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    cam = ortcam.ScoreCAM("model.onnx")
    expected = cam.explain(small / "cat.png").maps
    data = pickle.dumps(cam)
    monkeypatch.chdir("/")
    shutil.copy(small / "model.onnx", tmp_path / "another")
    (tmp_path / "another").replace(tmp_path / "model.onnx")  # the same file to a reader, and no longer the same inode
    assert np.array_equal(pickle.loads(data).explain(small / "cat.png").maps, expected)
    shutil.copy(small / "other.onnx", tmp_path / "model.onnx")
    cam._running = copy.copy(cam._running)  # without what another pickle opened
    cam._running._mark = ""
    changed = pickle.loads(pickle.dumps(cam))
    with pytest.raises(ModelError, match="changed after it was loaded; load it again"):
        changed.explain(small / "cat.png")


@pytest.mark.parametrize("method", ["forkserver", pytest.param("spawn", marks=pytest.mark.slow), "fork"])
def test_process_pools(small: Path, method: str) -> None:
    cam = ortcam.ScoreCAM(small / "model.onnx")
    expected = cam.explain(small / "cat.png").maps
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        for found in pool.map(cam.explain, [small / "cat.png"] * 2, timeout=HANGS):
            assert np.array_equal(found.maps, expected)


@pytest.mark.slow
def test_pools_of_other_libraries(small: Path) -> None:
    """multiprocessing.Pool, joblib's loky, and the workers of torch's DataLoader."""
    done = run_script(
        """
        import multiprocessing, sys
        import joblib, numpy as np, ortcam
        from torch.utils.data import DataLoader, Dataset

        class Maps(Dataset):
            def __init__(self, cam): self.cam = cam
            def __len__(self): return 2
            def __getitem__(self, index): return self.cam.explain("cat.png").maps

        cam = ortcam.ScoreCAM("model.onnx")
        expected = cam.explain("cat.png").maps
        for method in ("spawn", "fork"):
            with multiprocessing.get_context(method).Pool(1) as pool:
                assert np.array_equal(pool.map(cam.explain, ["cat.png"])[0].maps, expected)
            if method == "fork":  # with spawn, `Maps` must stand in a file
                for maps in DataLoader(Maps(cam), num_workers=1, multiprocessing_context=method):
                    assert np.array_equal(maps[0].numpy(), expected)
        found, = joblib.Parallel(2)([joblib.delayed(cam.explain)("cat.png")])
        assert np.array_equal(found.maps, expected)
        """,
        small,
    )
    assert done.returncode == 0, done.stderr


FORK = """
import os, sys, threading, time
{first}
import numpy as np, ortcam
cam = ortcam.ScoreCAM("model.onnx"{options})
packed = ortcam.PackedExplainer("packed.onnx")
expected = ortcam.ScoreCAM("model.onnx").explain("cat.png").maps
{before}
child = os.fork()
if child == 0:
    assert np.array_equal(cam.explain("cat.png").maps, expected)
    packed.explain("cat.png")
    assert len(list(cam.explain_batch(["cat.png"] * 3, budget=4))) == 3
    del cam
    {end}
deadline = time.time() + 20
while time.time() < deadline:
    ended, status = os.waitpid(child, os.WNOHANG)
    if ended:
        print("child", os.waitstatus_to_exitcode(status))
        sys.exit()
    time.sleep(0.01)
os.kill(child, 9)
print("child hangs")
"""
USED = 'cam.explain("cat.png"); packed.explain("cat.png"); list(cam.explain_batch(["cat.png"] * 3, budget=4))'
BUSY = """
for _ in range(2):
    work = lambda: [list(cam.explain_batch(["cat.png"] * 8, budget=4)) for _ in range(1000)]
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.2)
"""


@pytest.mark.parametrize(
    ("before", "end", "code", "first"),
    [
        ("", "sys.exit(3)", 3, ""),
        (USED, "sys.exit(3)", 3, "import onnxruntime"),  # with its telemetry, and the thread that this takes
        pytest.param(USED, "os._exit(0)", 0, "", marks=pytest.mark.slow),
        pytest.param(USED, "raise ValueError", 1, "import onnxruntime", marks=pytest.mark.slow),
        pytest.param("", "sys.exit()", 0, "import onnxruntime", marks=pytest.mark.slow),
        pytest.param(BUSY, "os._exit(0)", 0, "", marks=pytest.mark.slow),
    ],
)
def test_forked_children_explain_and_end(small: Path, before: str, end: str, code: int, first: str) -> None:
    done = run_script(FORK.format(before=before, end=end, first=first, options=""), small)
    assert f"child {code}\n" in done.stdout, done.stdout + done.stderr


def test_a_batch_does_not_go_on_in_a_forked_child(small: Path) -> None:
    """Nor does it hang there: the threads that decode are the parent's."""
    done = run_script(
        """
        import os, sys, ortcam
        cam = ortcam.ScoreCAM("model.onnx")
        try:
            for number, one in enumerate(cam.explain_batch(["cat.png"] * 3)):
                child = os.fork() if number == 0 else child
        except ortcam.OrtcamError as error:
            print(error)
            sys.exit(5)
        print(number, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """,
        small,
    )
    said = "this explain_batch began before a fork; call explain_batch again in the child"
    assert done.stdout.splitlines() == [said, "2 5"], done.stdout + done.stderr


def test_a_fork_cannot_take_a_device_along(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cam = ortcam.ScoreCAM(small / "model.onnx")
    monkeypatch.setattr(cam._running, "forks", False)  # as for every provider but the CPU's
    child = os.fork()
    if child == 0:
        try:
            cam.explain(small / "cat.png")
        except OrtcamError as error:
            os._exit(7 if "was forked" in str(error) and "spawn" in str(error) else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_model_without_a_file(small: Path) -> None:
    expected = ortcam.ScoreCAM(small / "model.onnx").explain(small / "cat.png")
    data = (small / "model.onnx").read_bytes()
    proto = onnx.load(small / "model.onnx")
    for model in (data, bytearray(data), memoryview(data), proto, ortcam.CamModel(data)):
        cam = ortcam.ScoreCAM(model)
        found = pickle.loads(pickle.dumps(cam)).explain(small / "cat.png")
        assert np.array_equal(found.maps, expected.maps)
        known = found.to_dict()["model"]
        assert (known["name"], known["path"]) == (None, None)
    assert proto.SerializeToString() == onnx.load(small / "model.onnx").SerializeToString()  # left as it was
    assert (
        ortcam.ScoreCAM(data).explain(small / "cat.png").to_dict()["model"]["sha256"]
        == (expected.to_dict()["model"]["sha256"])
    )
    layer = ortcam.ScoreCAM(data, layer="features.1").explain(small / "cat.png")
    assert layer.raw_maps.shape[1:] == (32, 32)
    with pytest.raises(ModelError, match=r"the model \(bytes\) is not an ONNX model"):
        ortcam.ScoreCAM(data[:500])
    with pytest.raises(PackedModelError, match=r"the model \(bytes\) is a packed explainer"):
        ortcam.ScoreCAM((small / "packed.onnx").read_bytes())
    with pytest.raises(ModelError, match=r"the model \(ModelProto\) exposes no target layer.*ortcam export"):
        del proto.metadata_props[:]
        ortcam.ScoreCAM(proto)
    with pytest.raises(ModelError, match=r"expected the path of an ONNX file, its bytes or an onnx\.ModelProto"):
        ortcam.ScoreCAM(3)  # type: ignore[arg-type]


def test_bytes_have_no_folder_for_weights(tmp_path: Path) -> None:
    export(Tiny().eval(), tmp_path / "model.onnx", input_size=32, external_data_bytes=100)
    with pytest.raises(ModelError, match=r"the model \(bytes\) has weights in another file, 'model.onnx.data'"):
        ortcam.ScoreCAM((tmp_path / "model.onnx").read_bytes())
    whole = ortcam.ScoreCAM(onnx.load(tmp_path / "model.onnx"))  # which takes the weights in
    photo = np.random.default_rng(0).standard_normal((1, 3, 32, 32), np.float32)
    assert np.array_equal(whole.explain(photo).maps, ortcam.ScoreCAM(tmp_path / "model.onnx").explain(photo).maps)


def test_photos_without_a_path(small: Path) -> None:
    class Upload:
        """As web frameworks hand a file over."""

        def read(self) -> bytes:
            return data

    class Asynchronous:
        async def read(self) -> bytes:
            return data

    data = (small / "cat.png").read_bytes()
    for explainer in (ortcam.ScoreCAM(small / "model.onnx"), ortcam.PackedExplainer(small / "packed.onnx")):
        expected = explainer.explain(small / "cat.png").maps
        with (small / "cat.png").open("rb") as file:
            given = [data, bytearray(data), memoryview(data), io.BytesIO(data), file, Upload()]
            for found in explainer.explain_batch(given):
                assert np.array_equal(found.maps, expected)
                assert found.source is None
            with pytest.raises(ImageError, match=r"read to its end; go back to its beginning with seek\(0\)"):
                explainer.explain(file)
        with pytest.raises(ImageError, match="cannot be read: read of closed file"):
            explainer.explain(file)
        for wrong, said in (
            (io.StringIO("text"), "a StringIO, returns a str from read.*mode 'rb'"),
            (Asynchronous(), "returns a coroutine from read.*await"),
            (b"", "is empty"),
            (data[:100], "cut short"),
            (b"text", "is not an image that can be decoded"),
        ):
            with pytest.raises(ImageError, match=said):
                explainer.explain(wrong)
        for one in (data, io.BytesIO(data)):
            with pytest.raises(OptionError, match="expected several images, or use explain"):
                list(explainer.explain_batch(one))


def test_a_layer_named_at_run_time_is_that_of_an_export(small: Path, tmp_path: Path) -> None:
    """By the module's name and by the value's, for every preset; the record and a packed file have it too."""
    for preset in ("official", "tf-keras-vis"):
        expected = ortcam.ScoreCAM(small / "other.onnx", preset=preset).explain(small / "cat.png", targets=[1, 2])
        for layer in ("features.1", "relu"):
            cam = ortcam.ScoreCAM(small / "model.onnx", preset=preset, layer=layer)
            found = cam.explain(small / "cat.png", targets=[1, 2])
            # The same nodes, in one optimised graph and in another: nothing but rounding may differ.
            np.testing.assert_allclose(found.maps, expected.maps, rtol=0, atol=1e-5)
            assert (found.layer, found.to_dict()["model"]["layer"]) == (layer, layer)
    own = ortcam.ScoreCAM(small / "model.onnx")
    assert ortcam.ScoreCAM(small / "model.onnx", layer="features").model.contract == own.model.contract
    assert np.array_equal(own.explain(small / "cat.png").raw_maps.shape[1:], (16, 16))
    with pytest.raises(LayerError, match=r"layer 'features.11' is not in model.onnx; nearest: features.1"):
        ortcam.ScoreCAM(small / "model.onnx", layer="features.11")
    with pytest.raises(LayerError, match="has 2 dimensions"):
        ortcam.ScoreCAM(small / "model.onnx", layer="fc")
    report = ortcam.pack(small / "model.onnx", tmp_path / "packed.onnx", layer="features.1")
    assert report.r is not None and report.r >= 0.9999  # against the engine with that layer
    assert ortcam.PackedExplainer(tmp_path / "packed.onnx").contract.layer == "features.1"


@pytest.mark.slow
def test_a_layer_of_a_transformer(tmp_path: Path, photos: dict[str, Path]) -> None:
    """Tokens become a map, as at export, and what was measured with one image does not bind the batches."""
    import timm
    import torch

    torch.manual_seed(0)
    module = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=5, depth=4, img_size=96).eval()
    for layer in ("blocks.1", "blocks.2"):
        export(module, tmp_path / f"{layer}.onnx", layer, preprocess="imagenet", input_size=96)
    expected = ortcam.ScoreCAM(tmp_path / "blocks.1.onnx").explain(photos["chelsea"], budget=32)
    found = ortcam.ScoreCAM(tmp_path / "blocks.2.onnx", layer="blocks.1").explain(photos["chelsea"], budget=32)
    assert found.raw_maps.shape == expected.raw_maps.shape == (1, 6, 6)
    np.testing.assert_allclose(found.maps, expected.maps, rtol=0, atol=1e-3)  # a transformer's sums, rounded otherwise


NO_HOME = ["unshare", "-U", "--map-user=54321", "--map-group=54321", "env", "-u", "HOME", "-u", "ORTCAM_CACHE"]


def can_unshare() -> bool:
    try:
        return subprocess.run([*NO_HOME, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


needs_users = pytest.mark.skipif(not can_unshare(), reason="no user namespaces here")


@needs_users
def test_a_user_without_a_home_directory(small: Path, tmp_path: Path) -> None:
    """As a container's user that has no HOME and is in no list: no cache, one warning, and everything works."""
    for model in ("model.onnx", "packed.onnx"):
        command = [*NO_HOME, ORTCAM, "explain", small / model, small / "cat.png", "-o", tmp_path / model]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        warnings = [line for line in done.stderr.splitlines() if line.startswith("warning:")]
        said = "warning: cache: this user has no home directory, so nothing is kept; set ORTCAM_CACHE to a directory to"
        assert warnings == ([f"{said} keep it in"] if model == "model.onnx" else [])
        assert (tmp_path / model / "cat" / "explanation.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "packed.onnx"]


@pytest.mark.slow
@needs_users
def test_exports_without_a_home_directory(tmp_path: Path) -> None:
    """Frameworks get a temporary one: Keras and torch would make a folder that is named ~."""
    (tmp_path / "net.py").write_text(
        "def build():\n    import keras\n    x = keras.Input((32, 32, 3))\n"
        "    y = keras.layers.Conv2D(8, 3, activation='relu')(x)\n"
        "    return keras.Model(x, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(y)))\n"
    )
    for source in ("net.py:build", "timm:test_resnet"):
        command = [*NO_HOME, ORTCAM, "export", source, "-o", "model.onnx"]
        command += ["--weights", "random"] if source.startswith("timm") else []
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("warning:") == 1
        assert not (tmp_path / "~").exists()


def test_a_cache_that_cannot_be_written_warns_once(small: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    script = """
        import ortcam
        for _ in range(2):
            ortcam.ScoreCAM("model.onnx", batch_size="auto").explain("cat.png")
        """
    done = run_script(script, small, ORTCAM_CACHE=str(tmp_path / "file"))
    assert done.returncode == 0
    assert done.stderr.count("Warning") == 1, done.stderr
    assert f"{tmp_path / 'file'} cannot be written (file is a file, not a directory)" in done.stderr
