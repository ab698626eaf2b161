"""The record of an explanation, what may replace it, and running it again."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import FlatLayer, Tiny
from jsonschema import Draft202012Validator
from PIL import Image
from typer.testing import CliRunner

import ortcam
from ortcam.cli.app import app
from ortcam.core.files import replace_directory
from ortcam.errors import ImageError, ModelError, OccupiedError, OutputError
from ortcam.exporters import export
from ortcam.model.image import read_photo
from ortcam.output.schema import find_violation, schema


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    Draft202012Validator.check_schema(schema())
    return Draft202012Validator(schema())


@pytest.fixture(scope="module")
def tiny_file(models: Path) -> Path:
    return export(
        Tiny().eval(),
        models / "record.onnx",
        preprocess="imagenet",
        input_size=64,
        labels=[f"label {n}" for n in range(10)],
    ).path


@pytest.fixture(scope="module")
def cam(tiny_file: Path) -> ortcam.ScoreCAM:
    return ortcam.ScoreCAM(tiny_file)


@pytest.fixture(scope="module")
def packed(tiny_file: Path) -> ortcam.PackedExplainer:
    path = tiny_file.with_name("record.explainer.onnx")
    mine = dataclasses.replace(ortcam.PRESETS["official"], name="mine", mask_align_corners=True)
    ortcam.pack(tiny_file, path, preset=mine, budget=6, verify=False)
    return ortcam.PackedExplainer(path)


@pytest.fixture
def cat(photos: dict[str, Path]) -> Path:
    return photos["chelsea"]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "explanation.json").read_text())
    return found


def channels_last(source: Path, path: Path) -> Path:
    """Write the same network for images [batch,H,W,C]."""
    proto = onnx.load(source)
    graph = proto.graph
    for node in graph.node:
        node.input[:] = ["first" if name == "image" else name for name in node.input]
    graph.node.insert(0, onnx.helper.make_node("Transpose", ["image"], ["first"], perm=[0, 3, 1, 2]))
    graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["batch", 64, 64, 3]))
    entries = {entry.key: entry.value for entry in proto.metadata_props}
    onnx.helper.set_model_props(proto, entries | {"ortcam.image_layout": '"NHWC"'})
    onnx.save(proto, path)
    return path


KINDS: dict[str, dict[str, Any]] = {
    "exact": {},
    "several": {"targets": [3, "label 5"]},
    "all": {"targets": "all"},
    "top": {"top_k": 2},
    "numpy": {"targets": np.array([2, 7])},
    "budget": {"budget": 5},
    "too few for an error": {"budget": 3},
    "tolerance": {"tolerance": 0.01},
    "top-std": {"budget": 5, "selection": "top-std"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_record_fits_the_schema(
    kind: str, cam: ortcam.ScoreCAM, cat: Path, tmp_path: Path, validator: Draft202012Validator
) -> None:
    explanation = cam.explain(cat, **KINDS[kind])
    record = manifest(explanation.save(tmp_path / "x"))
    validator.validate(record)
    assert record == explanation.to_dict()
    assert [target["index"] for target in record["targets"]] == [target.index for target in explanation.targets]
    asked = {name: KINDS[kind].get(name) for name in ("budget", "tolerance")}
    assert {name: record["asked"][name] for name in asked} == asked


def test_records_of_other_images_presets_and_models_fit_the_schema(
    cam: ortcam.ScoreCAM,
    packed: ortcam.PackedExplainer,
    tiny_file: Path,
    cat: Path,
    tmp_path: Path,
    validator: Draft202012Validator,
) -> None:
    photo = read_photo(cat)
    tensor = cam.model.prepare(photo)[1]
    images = {
        "pixels": photo,
        "grey": np.asarray(Image.open(cat).convert("L")),
        "pillow": Image.open(cat),
        "tensor": tensor,
        "bytes": cat.read_bytes(),
    }
    for image in images.values():
        validator.validate(cam.explain(image).to_dict())
    for preset in ("paper", "pytorch-grad-cam", "torchcam", "tf-keras-vis"):
        found = ortcam.ScoreCAM(tiny_file, preset=preset, batch_size=4).explain(cat).to_dict()
        validator.validate(found)
        assert found["preset"] == {**dataclasses.asdict(ortcam.PRESETS[preset]), "steps": found["preset"]["steps"]}
        assert (found["asked"]["batch_size"], found["run"]["batch_size"]) == (4, 4)
    last = ortcam.ScoreCAM(channels_last(tiny_file, tmp_path / "last.onnx"))
    for image in (cat, last.model.prepare(cat)[1]):
        validator.validate(last.explain(image).to_dict())
    for explanation in cam.explain_batch([cat, photo], budget=6):
        validator.validate(explanation.to_dict())
    bare = export(Tiny().eval(), tmp_path / "bare.onnx", input_size=64)  # no labels, no preprocessing
    found = ortcam.ScoreCAM(bare.path).explain(tensor).to_dict()
    validator.validate(found)
    assert (found["preprocessing"], found["targets"][0]["label"]) == (None, None)
    for explanation in (packed.explain(cat, top_k=2), *packed.explain_batch([photo], targets=[3])):
        found = explanation.to_dict()
        validator.validate(found)
        assert (found["model"]["packed"], found["asked"]["budget"], found["preset"]["name"]) == (True, 6, "mine")
        assert found["preset"]["mask_align_corners"] is True


def test_a_flat_map_has_null_and_the_file_is_json(tmp_path: Path, cat: Path, validator: Draft202012Validator) -> None:
    report = export(FlatLayer(), tmp_path / "flat.onnx", preprocess="imagenet", input_size=32)
    with pytest.warns(ortcam.OrtcamWarning, match="flat"):
        explanation = ortcam.ScoreCAM(report.path).explain(cat, top_k=2)
    folder = explanation.save(tmp_path / "x")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    record = json.loads((folder / "explanation.json").read_text(), parse_constant=refuse)
    validator.validate(record)
    for target in record["targets"]:
        for name in ("maximum", "half_maximum_box", "share_above_half", "share_at_edge"):
            assert target[name] is None
    assert record["map_correlations"] == [[None, None], [None, None]]
    assert ortcam.reproduce(folder).agrees


def test_the_record_names_photo_and_model_by_their_content(
    cam: ortcam.ScoreCAM, packed: ortcam.PackedExplainer, tiny_file: Path, cat: Path
) -> None:
    record = cam.explain(cat, targets=3, budget=6).to_dict()
    assert record["photo"] == {
        "name": "chelsea.png",
        "path": str(cat),
        "hashed": "file",
        "sha256": sha256(cat.read_bytes()),
        "height": 300,
        "width": 451,
    }
    assert record["model"]["sha256"] == sha256(tiny_file.read_bytes())
    assert record["model"]["name"] == "record.onnx"
    assert record["preprocessing"] == {
        **cam.model.contract.preprocessing.to_dict(),  # type: ignore[union-attr]
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    assert record["asked"] == {
        "targets": [3],
        "top_k": 1,
        "budget": 6,
        "tolerance": None,
        "selection": "predict",
        "batch_size": None,
    }
    assert record["run"]["channels"]["scored"] == 6
    assert packed.explain(cat).to_dict()["model"]["sha256"] == sha256(packed.path.read_bytes())
    photo = read_photo(cat)
    tensor = cam.model.prepare(photo)[1]
    for image, kind, data in ((photo, "pixels", photo), (Image.open(cat), "pixels", photo), (tensor, "tensor", tensor)):
        found = cam.explain(image).to_dict()["photo"]
        assert (found["hashed"], found["sha256"], found["path"]) == (kind, sha256(data.tobytes()), None)
    assert packed.explain(photo).to_dict()["photo"]["sha256"] == sha256(photo.tobytes())


def test_what_changes_later_does_not_change_the_record(
    tiny_file: Path, cat: Path, photos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, model, pixels = tmp_path / "photo.png", tmp_path / "model.onnx", read_photo(cat).copy()
    shutil.copy(cat, file)
    shutil.copy(tiny_file, model)
    cam = ortcam.ScoreCAM(model)
    of_file, of_pixels = cam.explain(file), cam.explain(pixels)
    expected = sha256(pixels.tobytes())
    shutil.copy(photos["coffee"], file)
    pixels[:] = 0
    model.write_bytes(tiny_file.read_bytes() + b"\0")
    assert of_file.to_dict()["photo"]["sha256"] == sha256(cat.read_bytes())
    assert of_pixels.to_dict()["photo"]["sha256"] == expected
    assert of_file.to_dict()["model"]["sha256"] == sha256(tiny_file.read_bytes())
    # Without the cache nobody hashed the file before it changed: its hash is unknown then, not that of another file.
    monkeypatch.setenv("ORTCAM_CACHE", "")
    shutil.copy(tiny_file, model)
    explanation = ortcam.ScoreCAM(model).explain(cat)
    model.write_bytes(tiny_file.read_bytes() + b"\0")
    folder = explanation.save(tmp_path / "x")
    assert manifest(folder)["model"]["sha256"] is None
    with pytest.raises(OccupiedError, match="another model"):
        explanation.save(folder)


def test_external_weights_are_part_of_the_model(tiny_file: Path, cat: Path, tmp_path: Path) -> None:
    proto = onnx.load(tiny_file)
    onnx.save(
        proto, tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=100,
        convert_attribute=False,
    )  # fmt: skip
    folder = ortcam.ScoreCAM(tmp_path / "m.onnx").explain(cat).save(tmp_path / "x")
    weights = tmp_path / "weights.bin"
    assert manifest(folder)["model"]["external_data"] == [
        {"name": "weights.bin", "sha256": sha256(weights.read_bytes())}
    ]
    values = np.fromfile(weights, np.float32)
    (values * 1.5).astype(np.float32).tofile(weights)
    with pytest.raises(OccupiedError, match="another model"):
        ortcam.ScoreCAM(tmp_path / "m.onnx").explain(cat).save(folder)
    assert ortcam.reproduce(folder).same_model is False


def test_only_the_same_explanation_is_replaced(
    cam: ortcam.ScoreCAM,
    packed: ortcam.PackedExplainer,
    tiny_file: Path,
    cat: Path,
    photos: dict[str, Path],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "x"
    cam.explain(cat, targets=3, budget=6).save(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    other_model = tmp_path / "other.onnx"
    proto = onnx.load(tiny_file)
    proto.doc_string = "another file"
    onnx.save(proto, other_model)
    paper = ortcam.ScoreCAM(tiny_file, preset="paper")
    renamed = tmp_path / "other.png"
    shutil.copy(cat, renamed)
    refused: list[tuple[ortcam.Explanation | ortcam.PackedExplanation, str]] = [
        (cam.explain(photos["coffee"], targets=3, budget=6), "of another photo"),
        (cam.explain(renamed, targets=3, budget=6), "of another photo"),
        (cam.explain(read_photo(cat), targets=3, budget=6), "of another photo"),
        (ortcam.ScoreCAM(other_model).explain(cat, targets=3, budget=6), "with another model"),
        (paper.explain(cat, targets=3, budget=6), "with another method or preset"),
        (cam.explain(cat, targets=4, budget=6), "of other targets"),
        (cam.explain(cat, targets=[3, 4], budget=6), "of other targets"),
        (cam.explain(cat, targets=3), "with other options"),
        (cam.explain(cat, targets=3, budget=7), "with other options"),
        (cam.explain(cat, targets=3, budget=6, tolerance=0.1), "with other options"),
        (cam.explain(cat, targets=3, budget=6, selection="top-std"), "with other options"),
        (ortcam.ScoreCAM(tiny_file, batch_size=3).explain(cat, targets=3, budget=6), "with other options"),
        (packed.explain(cat, targets=3), "with another model"),
    ]
    for explanation, reason in refused:
        with pytest.raises(
            OccupiedError, match=f"it holds an explanation {reason}; give another directory, or overwrite"
        ):
            explanation.save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    shutil.copy(tiny_file, other_model)  # the same content elsewhere, the class by its label
    ortcam.ScoreCAM(other_model).explain(cat, targets="label 3", budget=6).save(folder)
    assert (folder / "maps.npy").read_bytes() == before["maps.npy"]
    assert manifest(folder)["model"]["name"] == "other.onnx"
    cam.explain(cat, targets=4).save(folder, overwrite=True)
    assert [target["index"] for target in manifest(folder)["targets"]] == [4]
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(OccupiedError, match="holds other files"):
        cam.explain(cat, targets=4).save(folder, overwrite=True)


@pytest.mark.parametrize(
    "text", ["{}", '{"source": "cat.png", "targets": []}', "[", "null", '{"format": 2}', '{"format": 1}']
)
def test_a_record_that_cannot_be_compared_is_not_replaced(
    text: str, cam: ortcam.ScoreCAM, cat: Path, tmp_path: Path
) -> None:
    explanation = cam.explain(cat)
    folder = explanation.save(tmp_path / "x")
    (folder / "explanation.json").write_text(text)
    with pytest.raises(OccupiedError, match="holds an explanation"):
        explanation.save(folder)
    with pytest.raises(OutputError, match=r"explanation\.json"):
        ortcam.reproduce(folder)
    explanation.save(folder, overwrite=True)
    assert ortcam.reproduce(folder).agrees


def test_what_another_process_wrote_meanwhile_is_kept(tmp_path: Path) -> None:
    """Two commands that write to one folder: the second finds the folder free and, when it is done, taken."""

    def refusal(folder: Path) -> str | None:
        return "it is another's" if (folder / "theirs").exists() else None

    folder = tmp_path / "x"
    with pytest.raises(OccupiedError, match="another's"), replace_directory(folder, refusal) as unfinished:
        (unfinished / "ours").write_text("ours")
        folder.mkdir()
        (folder / "theirs").write_text("theirs")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["x", "x/theirs"]


def damaged(value: Any) -> Iterator[Any]:
    """Yield copies of a record, each without one part, with an unknown part or with a part of another type."""
    if isinstance(value, dict):
        yield {**value, "unknown": 1}
        for key, one in value.items():
            yield {name: other for name, other in value.items() if name != key}
            for wrong in (True, "text", -3, 1.5, None, [], {}):
                yield {**value, key: wrong}
            yield from ({**value, key: inner} for inner in damaged(one))
    elif isinstance(value, list):
        yield from ([inner, *value[1:]] for one in value[:1] for inner in damaged(one))


def test_damage_is_found_as_the_schema_defines_it(
    cam: ortcam.ScoreCAM, cat: Path, validator: Draft202012Validator
) -> None:
    """The reader's own check against jsonschema's, on 700 damaged records."""
    record = cam.explain(cat, top_k=2).to_dict()
    assert find_violation(record, schema()) is None
    cases = list(damaged(record))
    assert len(cases) > 700
    for case in cases:
        found = find_violation(case, schema())
        assert (found is None) == validator.is_valid(case), found
        assert found is None or "\n" not in found


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda record: record.pop("asked"), "is damaged: asked is missing"),
        (
            lambda record: record["targets"][0].update(index="x"),
            r"is damaged: targets\[0\].index is 'x'; expected integer",
        ),
        (lambda record: record.update(format=7), "has format 7; this ortcam reads format 1"),
        (lambda record: record.pop("format"), "states no format: an older ortcam wrote it"),
        (lambda record: record["model"].update(layer="other"), "layer 'other' is not in record.onnx"),
        (
            lambda record: record["photo"].update(path="/nowhere/cat.png"),
            "photo /nowhere/cat.png is missing; give it with",
        ),
        (
            lambda record: record["model"].update(path="/nowhere/m.onnx"),
            "model /nowhere/m.onnx is missing; give it with",
        ),
        (lambda record: record["run"].update(provider="cudo"), "'cudo' is unknown"),
    ],
)
def test_a_record_that_cannot_be_run_again_is_one_line(
    damage: Callable[[dict[str, Any]], Any], said: str, cam: ortcam.ScoreCAM, cat: Path, tmp_path: Path
) -> None:
    folder = cam.explain(cat).save(tmp_path / "x")
    record = copy.deepcopy(manifest(folder))
    damage(record)
    (folder / "explanation.json").write_text(json.dumps(record))
    with pytest.raises(ortcam.OrtcamError, match=said) as caught:
        ortcam.reproduce(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_an_explanation_is_reproduced_to_the_bit(kind: str, cam: ortcam.ScoreCAM, cat: Path, tmp_path: Path) -> None:
    explanation = cam.explain(cat, **KINDS[kind])
    found = ortcam.reproduce(explanation.save(tmp_path / "x"))
    assert found.agrees
    assert (found.same_model, found.same_photo) == (True, True)
    assert [one.index for one in found.maps] == [target.index for target in explanation.targets]
    assert all(one.largest_difference == 0 for one in found.maps)


def test_other_presets_packed_files_and_arrays_are_reproduced(
    tiny_file: Path, packed: ortcam.PackedExplainer, cat: Path, tmp_path: Path
) -> None:
    mine = dataclasses.replace(ortcam.PRESETS["torchcam"], name="mine", steps=("upsample", "relu", "normalize"))
    assert ortcam.reproduce(ortcam.ScoreCAM(tiny_file, preset=mine).explain(cat).save(tmp_path / "mine")).agrees
    assert ortcam.reproduce(packed.explain(cat, top_k=2).save(tmp_path / "packed")).agrees
    cam = ortcam.ScoreCAM(tiny_file)
    photo = read_photo(cat)
    for name, array in (("photo", photo), ("tensor", cam.model.prepare(photo)[1])):
        folder = cam.explain(array, budget=6).save(tmp_path / name)
        with pytest.raises(ImageError, match=r"give it as a \.npy file with --photo"):
            ortcam.reproduce(folder)
        np.save(tmp_path / f"{name}.npy", array)
        assert ortcam.reproduce(folder, photo=tmp_path / f"{name}.npy").agrees
    assert ortcam.reproduce(tmp_path / "photo", photo=cat).same_photo  # a file of the same pixels
    with pytest.raises(ModelError, match="is not a packed explainer"):
        ortcam.reproduce(tmp_path / "packed", model=tiny_file)
    with pytest.raises(ModelError, match=r"is a packed explainer; expected the model file record\.onnx"):
        ortcam.reproduce(tmp_path / "mine", model=packed.path)


def test_what_differs_is_told(tiny_file: Path, cam: ortcam.ScoreCAM, cat: Path, tmp_path: Path) -> None:
    folder = cam.explain(cat, top_k=2).save(tmp_path / "x")
    cut = tmp_path / "cut.png"
    turned = np.ascontiguousarray(read_photo(cat)[:, ::-1])
    Image.fromarray(turned).save(cut)
    found = ortcam.reproduce(folder, photo=cut)
    assert (found.same_model, found.same_photo, found.agrees) == (True, False, False)
    assert found.maps[0].r is not None
    assert found.maps[0].r < 0.99
    assert found.maps[0].r == pytest.approx(
        np.corrcoef(np.load(folder / "maps.npy")[0].ravel(), found.explanation.map_at(0).ravel())[0, 1]
    )
    proto = onnx.load(tiny_file)
    proto.doc_string = "another file"
    onnx.save(proto, tmp_path / "other.onnx")
    found = ortcam.reproduce(folder, model=tmp_path / "other.onnx")  # the maps agree, but the file is another
    assert (found.same_model, found.same_photo, found.agrees) == (False, True, False)
    assert all(one.agrees for one in found.maps)
    maps = np.load(folder / "maps.npy")
    maps[1, 100, 200] += 0.01
    np.save(folder / "maps.npy", maps)
    found = ortcam.reproduce(folder)
    assert [one.agrees for one in found.maps] == [True, False]
    assert found.maps[1].largest_difference == pytest.approx(0.01, abs=1e-6)
    assert not found.agrees
    np.save(folder / "maps.npy", maps[:1])
    with pytest.raises(OutputError, match=r"holds float32 \[1, 300, 451\]; expected float32 \[2, 300, 451\]"):
        ortcam.reproduce(folder)


def call(*arguments: object, given: bytes | None = None) -> Any:
    """Run the command line in this process."""
    return CliRunner().invoke(app, [*map(str, arguments)], input=given)


def explained(result: Any) -> dict[str, str]:
    assert result.exit_code == 0, (result.stderr, result.exception)
    return {entry["source"]: entry["directory"] for entry in json.loads(result.stdout)["explanations"]}


@pytest.fixture
def work(tiny_file: Path, photos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with three photos called `same`."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(tiny_file, "m.onnx")
    for name, photo in (("a/same.jpg", "rocket"), ("a/same.png", "chelsea"), ("b/same.jpg", "imagenet_00")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(photos[photo], name)
    return tmp_path


def test_photos_of_one_name_never_share_a_folder(work: Path) -> None:
    """In several commands, in one command, in any order; and a command that runs again makes no new folder."""
    names = ["a/same.jpg", "a/same.png", "b/same.jpg"]
    for name in names:
        explained(call("explain", "m.onnx", name, "-o", "o", "--json"))
    expected = dict(zip(names, ["o/same", "o/same-2", "o/same-3"], strict=True))
    for order in (names, names[::-1], names[1:], names[:1]):
        found = explained(call("explain", "m.onnx", *order, "-o", "o", "--json"))
        assert found == {name: expected[name] for name in order}
    assert sorted(path.name for path in (work / "o").iterdir()) == ["same", "same-2", "same-3"]
    for name, folder in expected.items():
        assert manifest(work / folder)["source"] == name
    twins = work / "c" / "same.jpg"  # the same bytes twice in one command
    twins.parent.mkdir()
    shutil.copy("a/same.jpg", twins)
    for _ in range(2):
        found = explained(call("explain", "m.onnx", "a/same.jpg", "c/same.jpg", "-o", "twins", "--json"))
        assert found == {"a/same.jpg": "twins/same", "c/same.jpg": "twins/same-2"}


def test_other_options_get_a_folder_of_their_own(work: Path) -> None:
    assert explained(call("explain", "m.onnx", "a/same.png", "-o", "o", "--json")) == {"a/same.png": "o/same"}
    for number, options in enumerate((["-t", "label 3"], ["--budget", "6"], ["--preset", "paper"], ["-k", "2"]), 2):
        for _ in range(2):
            result = call("explain", "m.onnx", "a/same.png", "-o", "o", "--json", *options)
            assert explained(result) == {"a/same.png": f"o/same-{number}"}
            assert (
                f"o/same holds another explanation, which was kept; the new one is in o/same-{number}" in result.stderr
            )
    assert explained(call("explain", "m.onnx", "a/same.png", "-o", "o", "--json", "-t", "9", "--overwrite")) == {
        "a/same.png": "o/same"
    }
    assert [target["index"] for target in manifest(work / "o" / "same")["targets"]] == [9]
    (work / "o" / "same" / "notes.txt").write_text("mine")
    found = explained(call("explain", "m.onnx", "a/same.png", "-o", "o", "--json", "-t", "8", "--overwrite"))
    assert found == {"a/same.png": "o/same-2"}
    assert (work / "o" / "same" / "notes.txt").read_text() == "mine"


def test_an_explanation_never_lies_in_another(work: Path) -> None:
    (work / "photos" / "same").mkdir(parents=True)
    shutil.copy("a/same.png", "photos/same/cat.png")
    shutil.copy("a/same.jpg", "photos/same.jpg")
    assert explained(call("explain", "m.onnx", "photos/same.jpg", "-o", "o", "--json")) == {"photos/same.jpg": "o/same"}
    for _ in range(2):
        found = explained(call("explain", "m.onnx", "photos", "-o", "o", "--json"))
        assert found == {"photos/same.jpg": "o/same", "photos/same/cat.png": "o/same-2/cat"}
    assert manifest(work / "o" / "same")["source"] == "photos/same.jpg"


def test_a_picture_comes_from_standard_input(work: Path, validator: Draft202012Validator) -> None:
    data = (work / "a" / "same.png").read_bytes()
    result = call("explain", "m.onnx", "-", "a/same.jpg", "-o", "o", "--json", given=data)
    assert explained(result) == {"-": "o/stdin", "a/same.jpg": "o/same"}
    entry = json.loads(result.stdout)["explanations"][0]
    validator.validate(entry)
    assert entry["photo"] == {**entry["photo"], "name": None, "path": None, "sha256": sha256(data)}
    expected = ortcam.load_explainer("m.onnx", "auto").explain(data)
    assert np.abs(np.load(work / "o/stdin/maps.npy")[0] - expected.map_at(0)).max() < 1e-6
    for given, said in (
        (b"", "standard input: image is empty"),
        (b"no picture", "standard input: image is not an image"),
    ):
        result = call("explain", "m.onnx", "-", "-o", "x", given=given)
        assert (result.exit_code, said in result.stderr) == (1, True)
    assert "- is given twice" in str(call("explain", "m.onnx", "-", "-", given=data).exception)


def test_one_overlay_is_written_to_a_file(work: Path) -> None:
    explanation = ortcam.load_explainer("m.onnx", "fused").explain("a/same.png", 3)
    assert isinstance(explanation, ortcam.Explanation)
    for name in ("new/x.png", "x.PNG", "x.jpg"):
        for _ in range(2):  # the same picture again
            result = call("explain", "m.onnx", "a/same.png", "-t", "3", "-o", name)
            assert result.exit_code == 0, result.stderr
        with Image.open(name) as picture:
            assert picture.size[1] > explanation.overlay().shape[0]  # a caption stands below
            pixels = np.asarray(picture)[: explanation.overlay().shape[0]].astype(int)
        difference = np.abs(pixels - explanation.overlay())
        assert difference.mean() <= (3 if name == "x.jpg" else 0)  # JPEG at a quality of 95
    entry = json.loads(call("explain", "m.onnx", "a/same.png", "-t", "3", "-o", "x.png", "--json").stdout)
    assert (entry["explanations"][0]["picture"], entry["explanations"][0]["directory"]) == ("x.png", None)
    result = call("explain", "m.onnx", "a/same.png", "-t", "4", "-o", "x.png")
    assert result.exit_code == 1
    assert "cannot write x.png: it is another picture; give another name, or --overwrite" in result.stderr
    assert call("explain", "m.onnx", "a/same.png", "-t", "4", "-o", "x.png", "--overwrite").exit_code == 0
    assert Path("x.png").read_bytes() != Path("new/x.png").read_bytes()
    (work / "link.png").symlink_to("a/same.png")
    before = {path: path.read_bytes() for path in work.rglob("*") if path.is_file()}
    for arguments, said in (
        (["a/same.png", "a/same.jpg", "-o", "y.png"], "but the command has 2 photos; give a folder"),
        (["a", "-o", "y.png"], "but the command has 2 photos"),
        (["a/same.png", "-o", "y.png", "-k", "2"], "but the command has several classes"),
        (["a/same.png", "-o", "y.png", "-t", "all"], "but the command has several classes"),
        (["a/same.png", "-o", "a/same.png"], "is an input, which would be replaced"),
        (["a/same.png", "-o", "link.png"], "is an input, which would be replaced"),
    ):
        result = call("explain", "m.onnx", *arguments)
        assert said in str(result.exception), arguments
        assert isinstance(result.exception, ortcam.OrtcamError)
    assert {path: path.read_bytes() for path in work.rglob("*") if path.is_file()} == before


def test_reproduce_from_the_command_line(work: Path) -> None:
    call("explain", "m.onnx", "a/same.png", "-o", "o", "-k", "2", "--budget", "9")
    result = call("reproduce", "o/same")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("model: the same\nphoto: the same\n")
    assert result.stdout.count("1.000000") == 2
    shutil.copy("b/same.jpg", "other.jpg")
    Image.open("a/same.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save("turned.png")
    shutil.move("m.onnx", "moved.onnx")
    assert "m.onnx is missing; give it with --model" in str(call("reproduce", "o/same").exception)
    assert call("reproduce", "o/same", "--model", "moved.onnx").exit_code == 0
    result = call("reproduce", "o/same", "--model", "moved.onnx", "--photo", "turned.png", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert (found["agrees"], found["same_model"], found["same_photo"]) == (False, True, False)
    assert [one["agrees"] for one in found["maps"]] == [False, False]
