"""The command line as a user meets it: in processes of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image
from torch import nn

import ortcam
from ortcam.cli.folders import find_photos
from ortcam.exporters import export
from ortcam.model.image import read_photo
from ortcam.model.preprocessing import Preprocessing

ORTCAM = Path(sys.executable).with_name("ortcam")


def run(*arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ORTCAM, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def assert_one_line_error(done: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in lines[0]


@pytest.fixture
def small(resnet18_file: Path, photos: dict[str, Path], tmp_path: Path) -> Path:
    """A folder with a model and two photos."""
    shutil.copy(resnet18_file, tmp_path / "model.onnx")
    shutil.copy(photos["chelsea"], tmp_path / "cat.png")
    shutil.copy(photos["imagenet_00"], tmp_path / "dog.jpg")
    return tmp_path


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "ortcam", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"ortcam {ortcam.__version__}\n"


def test_explain_writes_overlays_and_prints_a_table(small: Path) -> None:
    done = run(
        "explain", "model.onnx", "cat.png", "dog.jpg", "-o", "out", "--top-k", "2", "--method", "score-cam", cwd=small
    )
    assert done.returncode == 0, done.stderr
    assert "cat.png" in done.stdout
    assert "of 512" in done.stdout
    assert "written to out" in done.stderr
    for name in ("cat", "dog"):
        assert len(list((small / "out" / name).glob("overlay-*.png"))) == 2
        assert np.load(small / "out" / name / "maps.npy").shape[0] == 2


def test_a_budget_is_kept_and_its_error_stated(small: Path) -> None:
    done = run("explain", "model.onnx", "cat.png", "dog.jpg", "-o", "out", "--budget", "12", cwd=small)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("12 of 512") == 2
    assert "90 % interval" in done.stderr
    for name in ("cat", "dog"):
        manifest = json.loads((small / "out" / name / "explanation.json").read_text())
        error = manifest["targets"][0]["error"]
        assert 0 < error["low"] < error["expected"] < error["high"]
    assert not any(line.startswith("error") for line in done.stderr.splitlines())  # the legend is no failure


def test_hundreds_of_megabytes_are_asked_for(small: Path) -> None:
    """All 1000 classes of a photo of 451x300 pixels are 541 MB of maps."""
    everything = ["explain", "model.onnx", "cat.png", "-o", "out", "--top-k", "2000", "--budget", "4", "--json"]
    assert_one_line_error(run(*everything, cwd=small), 1, "1000 classes", "about 679 MB", "--yes")
    assert not (small / "out").exists()


@pytest.mark.slow
def test_hundreds_of_megabytes_are_written_on_request(small: Path) -> None:
    done = run(
        "explain", "model.onnx", "cat.png", "-o", "out", "-t", "all", "--budget", "4", "--json", "--yes", cwd=small
    )
    assert len(json.loads(done.stdout)["explanations"][0]["targets"]) == 1000


def test_the_batch_size_is_measured_on_request(small: Path) -> None:
    done = run(
        "explain", "model.onnx", "cat.png", "--budget", "4", "--batch-size", "auto", cwd=small, ORTCAM_CACHE="kept"
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.suffix for path in (small / "kept").iterdir()) == [".json", ".onnx"]


def test_explain_prints_json_alone_on_standard_output(small: Path) -> None:
    done = run("explain", "model.onnx", "cat.png", "-o", "out", "--target", "3", "-t", "500", "--json", cwd=small)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    (explanation,) = result["explanations"]
    assert [target["index"] for target in explanation["targets"]] == [3, 500]
    assert explanation["directory"] == "out/cat"
    assert explanation["run"]["channels"]["scored"] <= 512
    assert result["errors"] == []


@pytest.mark.slow
def test_folders_keep_their_layout_and_names_never_collide(small: Path) -> None:
    (small / "photos" / "deep").mkdir(parents=True)
    shutil.copy(small / "cat.png", small / "photos" / "deep" / "cat.png")
    shutil.copy(small / "dog.jpg", small / "photos" / "cat.jpg")
    shutil.copy(small / "cat.png", small / "photos" / "cat.png")
    shutil.copy(small / "cat.png", small / "photos" / "deep.png")
    (small / "photos" / "notes.txt").write_text("no photo")
    done = run("explain", "model.onnx", "photos", "dog.jpg", "-o", "photos/out", "--json", cwd=small)
    assert done.returncode == 0, done.stderr
    where = {entry["source"]: entry["directory"] for entry in json.loads(done.stdout)["explanations"]}
    assert where == {
        "photos/cat.jpg": "photos/out/cat",
        "photos/cat.png": "photos/out/cat-2",
        "photos/deep.png": "photos/out/deep-2",  # not the folder that holds the explanation of deep/cat.png
        "photos/deep/cat.png": "photos/out/deep/cat",
        "dog.jpg": "photos/out/dog",
    }
    again = run("explain", "model.onnx", "photos", "-o", "photos/out", "--json", cwd=small)
    assert len(json.loads(again.stdout)["explanations"]) == 4  # its own overlays are no photos


def test_a_bad_photo_is_reported_and_the_others_go_on(small: Path) -> None:
    (small / "text.jpg").write_text("this is no photo")
    (small / "cut.jpg").write_bytes((small / "dog.jpg").read_bytes()[:20_000])
    done = run("explain", "model.onnx", "text.jpg", "cut.jpg", "none.jpg", "cat.png", "-o", "out", "--json", cwd=small)
    assert done.returncode == 1
    result = json.loads(done.stdout)
    assert [entry["source"] for entry in result["explanations"]] == ["cat.png"]
    assert [entry["source"] for entry in result["errors"]] == ["text.jpg", "cut.jpg", "none.jpg"]
    assert done.stderr.count("error:") == 3
    assert [path.name for path in (small / "out").iterdir()] == ["cat"]


def test_photos_beside_their_explanations_are_found(small: Path) -> None:
    (small / "photos").mkdir()
    shutil.copy(small / "cat.png", small / "photos" / "cat.png")
    for _ in range(2):
        done = run("explain", "model.onnx", "photos", "empty-as-yet", "-o", ".", "--json", cwd=small)
        assert [entry["directory"] for entry in json.loads(done.stdout)["explanations"]] == ["cat"]


def test_plots_beside_their_numbers_are_no_photos(small: Path) -> None:
    (folder := small / "plots").mkdir()
    for name in ("grid-2.png", "grid.jpg", "curves.png", "strip.png", "photo.png"):
        shutil.copy(small / "cat.png", folder / name)
    (folder / "comparison.json").write_text("{}")
    (folder / "results.json").write_text("{}")
    found = find_photos([folder], lambda *_: None)
    assert [photo.source.name for photo in found] == ["grid.jpg", "photo.png", "strip.png"]  # no sanity.json is there


@pytest.mark.slow
def test_names_that_are_no_text_are_no_obstacle(small: Path) -> None:
    odd = os.fsdecode(b"caf\xe9-\xff.png")
    shutil.copy(small / "cat.png", small / odd)
    (small / os.fsdecode(b"bad\xff.jpg")).write_text("no photo")
    done = run("explain", "model.onnx", odd, os.fsdecode(b"bad\xff.jpg"), "-o", "out", "--json", cwd=small)
    assert done.returncode == 1
    result = json.loads(done.stdout)
    assert len(result["explanations"]) == len(result["errors"]) == 1
    assert "fault" not in done.stderr
    done = run("explain", "model.onnx", odd, "-o", "out", cwd=small, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr


def test_an_empty_folder_is_reported_and_the_photos_go_on(small: Path) -> None:
    (small / "empty").mkdir()
    done = run("explain", "model.onnx", "empty", "cat.png", "-o", "out", "--json", cwd=small)
    assert done.returncode == 1
    result = json.loads(done.stdout)
    assert [entry["source"] for entry in result["explanations"]] == ["cat.png"]
    assert "holds no images" in result["errors"][0]["error"]


def test_explain_imports_no_training_framework(small: Path) -> None:
    code = (
        "import sys; from ortcam.cli import main; sys.argv = ['ortcam', 'explain', 'model.onnx', 'cat.png']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('HEAVY', {'torch', 'tensorflow', 'onnxscript', 'onnx_ir', 'sympy', 'timm'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=small, capture_output=True, text=True, check=False)
    assert "HEAVY set()" in done.stdout, done.stdout + done.stderr
    assert (small / "explanations" / "cat").is_dir()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["none.onnx", "cat.png"], ["none.onnx", "no such file"]),
        (["cat.png", "cat.png"], ["cat.png is not an ONNX model"]),
        (["random.onnx", "cat.png"], ["random.onnx is not an ONNX model"]),
        (["plain.onnx", "cat.png"], ["exposes no target layer", "ortcam export plain.onnx"]),
        (["model.onnx", "empty"], ["empty holds no images"]),
        (["model.onnx", "cat.png", "--target", "1000"], ["out of range", "0 to 999"]),
        (["model.onnx", "cat.png", "--target", "cat"], ["no labels"]),
        (["model.onnx", "cat.png", "--preset", "papr"], ["nearest: paper"]),
        (["model.onnx", "cat.png", "--provider", "cuda"], ["'cuda' does not load", "ortcam[gpu]"]),
        (["model.onnx", "cat.png", "--provider", "cudo"], ["nearest: cuda"]),
        (["model.onnx", "cat.png", "--colormap", "trubo"], ["nearest: turbo"]),
        (["model.onnx", "cat.png", "-o", "overlay.webp"], ["of type .webp; expected .png or .jpg"]),
        (["model.onnx", "cat.png", "-o", "dog.jpg"], ["cannot write dog.jpg: it is another picture"]),
        (["model.onnx", "cat.png", "-o", "random.onnx"], ["cannot write random.onnx/cat: random.onnx is a file"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(small: Path, arguments: list[str], parts: list[str]) -> None:
    (small / "empty").mkdir()
    (small / "random.onnx").write_bytes(np.random.default_rng(0).bytes(3000))
    proto = onnx.load(small / "model.onnx")
    del proto.metadata_props[:]
    onnx.save(proto, small / "plain.onnx")
    before = sorted(small.rglob("*"))
    done = run("explain", *arguments, cwd=small)
    assert_one_line_error(done, 1, *parts)
    assert done.stdout == ""
    assert sorted(small.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["explain"],
        ["explain", "model.onnx"],
        ["explain", "model.onnx", "cat.png", "--top-k", "0"],
        ["explain", "model.onnx", "cat.png", "--top-k", "2", "--target", "1"],
        ["explain", "model.onnx", "cat.png", "--batch-size", "many"],
        ["explain", "model.onnx", "cat.png", "--no-such-option"],
        ["export"],
        ["export", "torchvision:resnet18", "-o", "x.onnx", "--input-size", "big"],
        ["no-such-command"],
    ],
)
def test_wrong_usage_exits_with_two(small: Path, arguments: list[str]) -> None:
    done = run(*arguments, cwd=small)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_debug_shows_the_traceback(small: Path) -> None:
    for arguments in (["--debug", "explain", "none.onnx", "cat.png"], ["explain", "none.onnx", "cat.png", "--debug"]):
        done = run(*arguments, cwd=small)
        assert done.returncode == 1
        assert "Traceback" in done.stderr
        assert "ModelError" in done.stderr
    done = run("explain", "model.onnx", "none.png", "--debug", cwd=small)
    assert "Traceback" in done.stderr
    assert "ImageError" in done.stderr


def test_help_has_examples_and_version_is_printed() -> None:
    import ortcam

    assert run("--version").stdout == f"ortcam {ortcam.__version__}\n"
    for command in ("export", "inspect", "explain", "doctor", "demo"):
        done = run(command, "--help", COLUMNS="100")
        assert done.returncode == 0
        assert "Examples:" in done.stdout
        assert f"ortcam {command}" in done.stdout
    everything = run("--help").stdout
    for command in ("export", "inspect", "explain", "doctor", "demo"):
        assert command in everything


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("ortcam re", "reproduce"),
        ("ortcam explain model.onnx cat.png --col", "--colormap"),
        ("ortcam explain model.onnx cat.png --preset t", "torchcam\ntf-keras-vis"),
        ("ortcam export net.h5 --preprocess ca", "caffe"),
    ],
)
def test_a_shell_completes_commands_options_and_values(words: str, completed: str) -> None:
    """As bash asks, by the script that --show-completion prints."""
    place = str(len(words.split()) - 1)
    done = run(_ORTCAM_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=place)
    assert done.stdout.strip() == completed
    assert done.stderr == ""


def _take_interrupts() -> None:
    """Let Ctrl-C reach a command, also where the tests run in the background of a shell, which ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [
        (signal.SIGINT, 130, "interrupted"),
        pytest.param(signal.SIGTERM, 143, "terminated", marks=pytest.mark.slow),
    ],
)
def test_interrupting_leaves_nothing_half_written(
    number: int, code: int, word: str, resnet18_file: Path, photos: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [ORTCAM, "explain", resnet18_file, *photos.values(), "-o", out, "--batch-size", "1"],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_take_interrupts,
    )
    time.sleep(2.0)  # in the middle of 512 passes of one of the 27 photos
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert errors.splitlines() == [f"error: {word}"]
    written = list(out.iterdir()) if out.exists() else []
    assert len(written) < len(photos)
    for folder in written:  # of the photos that were done
        facts = json.loads((folder / "explanation.json").read_text())
        target = facts["targets"][0]["index"]
        with Image.open(folder / f"overlay-{target}.png") as overlay:
            overlay.load()
        maps = [np.load(folder / name) for name in ("maps.npy", "raw_maps.npy", "weights.npy")]
        assert all(np.isfinite(values).all() for values in maps)


@pytest.mark.slow
def test_an_interrupt_that_is_lost_ends_the_command_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "stubborn.py").write_text(
        "import time\n\ndef build():\n    print('begun', flush=True)\n    while True:\n"
        "        try:\n            time.sleep(60)\n        except KeyboardInterrupt:\n            pass\n"
    )
    process = subprocess.Popen(
        [ORTCAM, "export", "stubborn.py:build", "-o", "x.onnx"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_take_interrupts,
    )
    assert process.stderr is not None
    while "begun" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines() == ["error: interrupted"]


def test_inspect_shows_contract_and_layers(small: Path) -> None:
    done = run("inspect", "model.onnx", cwd=small)
    assert done.returncode == 0, done.stderr
    for part in ("image", "logits", "activations", "layer4", "512 x 3 x 3", "opset"):
        assert part in done.stdout
    facts = json.loads(run("inspect", "model.onnx", "--json", cwd=small).stdout)
    assert facts["contract"]["layer"] == "layer4"
    assert facts["candidates"][0]["name"] == "layer4"
    assert facts["candidates"][0]["shape"] == [512, 3, 3]


@pytest.mark.slow
def test_inspect_of_a_plain_file_says_how_to_expose_a_layer(small: Path) -> None:
    proto = onnx.load(small / "model.onnx")
    del proto.metadata_props[:]
    onnx.save(proto, small / "plain.onnx")
    done = run("inspect", "plain.onnx", cwd=small)
    assert done.returncode == 0
    assert "ortcam export plain.onnx -o plain.cam.onnx" in done.stderr
    itself = run("export", "plain.onnx", "-o", "plain.onnx", cwd=small)
    assert_one_line_error(itself, 1, "output plain.onnx is the source itself")
    exported = run("export", "plain.onnx", "--preprocess", "imagenet", cwd=small)  # to plain.cam.onnx
    assert exported.returncode == 0, exported.stderr
    explained = run("explain", "plain.cam.onnx", "cat.png", cwd=small)
    assert explained.returncode == 0, explained.stderr
    assert_one_line_error(run("inspect", "cat.png", cwd=small), 1, "not an ONNX model")


@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("torchvision:resnet50", "resnet50.cam.onnx"),
        ("timm:hf_hub:timm/resnet18.a1_in1k", "resnet18.a1_in1k.cam.onnx"),
        ("nets/net.py:build", "build.cam.onnx"),
        ("nets/cat.h5", "nets/cat.cam.onnx"),
        ("saved", "saved.cam.onnx"),
    ],
)
def test_exports_have_a_name_by_default(source: str, output: str) -> None:
    from ortcam.cli.export import default_output

    assert default_output(source) == Path(output)


@pytest.mark.slow
def test_export_from_the_command_line(tmp_path: Path) -> None:
    arguments = ["torchvision:squeezenet1_1", "-o", "net.onnx", "--weights", "random", "--input-size", "64x96"]
    done = run("export", *arguments, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["layer"] == "features"
    assert report["preprocessing"]["height"] == 64
    assert report["verified"]["same_top1"] is True
    assert_one_line_error(
        run(
            "export",
            "torchvision:squeezenet1_1",
            "-o",
            "b.onnx",
            "--weights",
            "random",
            "--layer",
            "featurs",
            cwd=tmp_path,
        ),
        1,
        "'featurs' is not in torchvision:squeezenet1_1",
        "nearest: features",
    )
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


@pytest.mark.slow
def test_doctor_tells_what_loads() -> None:
    done = run("doctor")
    assert done.returncode == 0, done.stderr
    assert "onnxruntime" in done.stdout
    facts = json.loads(run("doctor", "--json").stdout)
    providers = {provider["name"]: provider for provider in facts["providers"]}
    assert providers["cpu"] == {"name": "cpu", "loads": True, "reason": None}
    for name in ("cuda", "tensorrt"):
        assert providers[name]["loads"] or providers[name]["reason"]
    assert run("doctor", "--provider", "cpu").returncode == 0
    assert_one_line_error(run("doctor", "--provider", "cudda"), 1, "'cudda' is unknown", "nearest: cuda")
    if not providers["tensorrt"]["loads"]:
        assert_one_line_error(run("doctor", "--provider", "tensorrt"), 1, "'tensorrt' does not load")
    done = run("doctor", "--device-id", "1")
    assert (done.returncode, "ortcam doctor MODEL" in done.stderr) == (2, True)


def test_doctor_counts_the_nodes_of_a_model(small: Path) -> None:
    done = run("doctor", "model.onnx", cwd=small)
    assert done.returncode == 0, done.stderr
    assert "20 Conv" in done.stdout
    assert "no node falls back" in done.stderr
    facts = json.loads(run("doctor", "model.onnx", "--json", cwd=small).stdout)
    assert facts["provider"] == "cpu"
    assert facts["nodes"]["cpu"]["Conv"] == 20
    assert_one_line_error(run("doctor", "cat.png", cwd=small), 1, "cat.png")


@pytest.mark.slow
def test_the_demo_shows_the_job(tmp_path: Path) -> None:
    done = run("demo", "-o", "out", "--photos", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for part in ("bull mastiff", "buckeye", "thatch", "of 1280", "ortcam export", "ortcam explain"):
        assert part in done.stdout
    assert (tmp_path / "out" / "overview.png").stat().st_size > 50_000
    assert (tmp_path / "out" / "imagenet_00_243" / "overlay-243-bull-mastiff.png").is_file()
    again = run("demo", "-o", "out", "--photos", "1", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "using out/efficientnet-lite0.onnx" in again.stderr


def test_a_packed_explainer_from_the_command_line(small: Path) -> None:
    """pack, explain, inspect; what is wrong is one line."""
    done = run("pack", "model.onnx", "-o", "packed.onnx", "--budget", "9", "--json", cwd=small)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["budget"], facts["preset"], facts["path"]) == (9, "official", "packed.onnx")
    assert facts["r"] > 0.9999
    done = run("explain", "packed.onnx", "cat.png", "dog.jpg", "-o", "out", "--target", "3", "--target", "4", cwd=small)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((small / "out" / "cat" / "explanation.json").read_text())
    assert [target["index"] for target in manifest["targets"]] == [3, 4]
    assert manifest["run"]["channels"] == {"total": None, "live": None, "scored": 9}
    assert "error (90 %)" in done.stdout
    for target in manifest["targets"]:
        assert target["error"]["high"] > target["error"]["expected"] > 0
        assert f"{target['error']['expected']:.1g} (" in done.stdout
    assert np.load(small / "out" / "dog" / "maps.npy").shape[0] == 2
    again = run("explain", "packed.onnx", "cat.png", "-o", "out", "-k", "2", "--json", cwd=small)
    assert again.returncode == 0, again.stderr
    assert len(json.loads(again.stdout)["explanations"][0]["targets"]) == 2
    done = run("inspect", "packed.onnx", cwd=small)
    assert "official Score-CAM with a budget of 9 masked images" in done.stdout
    assert "of model.onnx (sha256 " in done.stdout
    done = run("pack", "model.onnx", "--triton", "models", "--no-verify", "--budget", "2", cwd=small)
    assert done.returncode == 0, done.stderr
    assert (small / "models" / "model-explainer" / "1" / "model.onnx").is_file()


@pytest.mark.slow
def test_a_packed_method_from_the_command_line(small: Path) -> None:
    """pack with an option of the method, explain, inspect; Triton's folder holds the same file."""
    options = ["--method", "recipro-cam", "--method-option", "score=logit", "--triton", "models", "--json"]
    done = run("pack", "model.onnx", "-o", "packed.onnx", *options, cwd=small)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    method = {"name": "recipro-cam", "score": "logit", "kernel": "single"}
    assert (facts["method"], facts["budget"]) == (method, None)
    assert facts["r"] > 0.9999
    assert (small / "models" / "packed" / "1" / "model.onnx").read_bytes() == (small / "packed.onnx").read_bytes()
    done = run("explain", "packed.onnx", "cat.png", "-o", "out", "--json", cwd=small)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["explanations"][0]["method"] == method
    done = run("inspect", "packed.onnx", cwd=small)
    assert "packed  recipro-cam (score logit, kernel single), batches of" in done.stdout


@pytest.mark.slow
def test_packing_what_cannot_be_packed(small: Path) -> None:
    (small / "broken.onnx").write_bytes((small / "model.onnx").read_bytes()[:1000])
    assert_one_line_error(run("pack", "broken.onnx", cwd=small), 1, "is not an ONNX model, or is cut short")
    assert_one_line_error(run("pack", "nothing.onnx", cwd=small), 1, "no such file")
    assert_one_line_error(run("pack", "model.onnx", "--target", "dog", cwd=small), 1, "label 'dog' is unknown")
    assert_one_line_error(run("pack", "model.onnx", "--preset", "x", cwd=small), 1, "preset 'x' is unknown")
    assert_one_line_error(run("pack", "model.onnx", "--method", "rise", cwd=small), 1, "method rise cannot be packed")
    assert_one_line_error(
        run("pack", "model.onnx", "--method", "cam", "--budget", "2", cwd=small), 1, "cam runs no masked images"
    )
    assert_one_line_error(run("page", "model.onnx", cwd=small), 1, "is not a packed explainer")
    assert run("pack", "model.onnx", "-o", "p.onnx", "--budget", "2", "--no-verify", cwd=small).returncode == 0
    assert_one_line_error(run("pack", "p.onnx", cwd=small), 1, "is a packed explainer")
    assert_one_line_error(
        run("explain", "p.onnx", "cat.png", "-t", "2000", cwd=small), 1, "target 2000 is out of range"
    )
    assert_one_line_error(
        run("page", "p.onnx", "--runtime", ".", cwd=small), 1, "expected the npm package onnxruntime-web"
    )
    for option, message in (
        ("--budget=3", "leave budget, tolerance and selection out"),
        ("--preset=paper", "leave preset out"),
    ):
        assert_one_line_error(run("explain", "p.onnx", "cat.png", option, cwd=small), 1, message)
    assert sorted(path.name for path in small.glob("*.onnx")) == ["broken.onnx", "model.onnx", "p.onnx"]


def test_preprocessing_shows_every_named_one(tiny: nn.Module, photos: dict[str, Path], tmp_path: Path) -> None:
    """Classes and probabilities are those of the model itself on what `Preprocessing.named` makes of the photo."""
    report = export(tiny, tmp_path / "model.onnx", input_size=(48, 64))
    assert any("imagenet, tf, caffe, lite, raw" in notice for notice in report.notices)
    assert any("ortcam preprocessing" in notice for notice in report.notices)
    (tmp_path / "photos").mkdir()
    shutil.copy(photos["chelsea"], tmp_path / "photos" / "cat.png")
    shutil.copy(photos["imagenet_00"], tmp_path / "photos" / "dog.jpg")
    (tmp_path / "names.txt").write_text("\n".join(f"{index} name {index}" for index in range(10)))
    arguments = ("preprocessing", "model.onnx", "photos", "--labels", "names.txt")
    done = run(*arguments, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for seen in result["photos"]:
        assert [row["preprocessing"] for row in seen["predictions"]] == ["imagenet", "tf", "caffe", "lite", "raw"]
        for row in seen["predictions"]:
            known = Preprocessing.named(row["preprocessing"], 48, 64)
            logits = session.run(["logits"], {"image": known.apply(read_photo(tmp_path / seen["source"]))})[0][0]
            probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
            order = np.argsort(-logits, kind="stable")[:5]
            assert [target["index"] for target in row["targets"]] == order.tolist()
            assert [target["label"] for target in row["targets"]] == [f"name {index}" for index in order]
            np.testing.assert_allclose([t["probability"] for t in row["targets"]], probabilities[order], rtol=1e-4)
    tops = [[row["targets"][0]["probability"] for row in seen["predictions"]] for seen in result["photos"]]
    np.testing.assert_allclose(list(result["mean_top_probability"].values()), np.mean(tops, axis=0))
    shown = run(*arguments, cwd=tmp_path)
    assert "proves nothing" in shown.stderr
    assert "mean of 2 photos" in shown.stdout


def test_preprocessing_names_what_the_file_states(small: Path) -> None:
    done = run("preprocessing", "model.onnx", "cat.png", "none.png", cwd=small)
    assert_one_line_error(done, 1, "none.png", "no such file")
    assert "imagenet (the file's own)" in done.stdout
    onnx.save(onnx.helper.make_model(onnx.load(small / "model.onnx").graph), small / "plain.onnx")
    assert_one_line_error(run("preprocessing", "plain.onnx", "cat.png", cwd=small), 1, "run `ortcam export")


def test_libraries_write_nothing_to_standard_error(small: Path) -> None:
    """libjpeg's remark on a damaged photo, which no setting of OpenCV turns off."""
    data = bytearray((small / "dog.jpg").read_bytes())
    scan = data.find(b"\xff\xda") + 2000
    data[scan : scan + 4] = b"\0\xff\xd0\0"  # a restart marker where none belongs
    (small / "damaged.jpg").write_bytes(data)
    noisy = subprocess.run(
        [sys.executable, "-c", "import cv2; cv2.imread('damaged.jpg')"], cwd=small, capture_output=True, check=True
    )
    assert b"Corrupt JPEG data" in noisy.stderr
    done = run("explain", "model.onnx", "damaged.jpg", "none.jpg", "--budget", "4", cwd=small)
    ours = ("error: cannot read none.jpg", "column error", "layer layer4")
    assert [line for line in done.stderr.splitlines() if not line.startswith(ours)] == []
    assert "damaged.jpg" in done.stdout


def test_inspect_prints_a_stretched_crop(tiny: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_processor_type": "DeiTImageProcessor", "size": 40, "crop_size": 32}'
    )
    export(tiny, tmp_path / "model.onnx", preprocess=tmp_path / "preprocessor_config.json")
    done = run("inspect", "model.onnx", cwd=tmp_path)
    assert "photos  RGB 32x32, stretched to 40x40, centre cut, bicubic; (value * 0.00392157 - 0.5) / 0.5" in done.stdout
