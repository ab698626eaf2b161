"""pack: one ONNX file that explains photos by itself, in any runtime. See docs/explainer.md."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

import ortcam
from ortcam.core.budget import Limits
from ortcam.core.convention import Convention, default_preset
from ortcam.core.files import replace_files
from ortcam.core.scores import guess
from ortcam.deploy.packed import PackedExplainer
from ortcam.deploy.rehearsal import ANY_BOX, compare, input_shape, rehearse_method
from ortcam.errors import ModelError, OptionError, OrtcamWarning, OutputError, one_line, whole
from ortcam.explain.explainer import ModelExplainer
from ortcam.graph.explainer import build_explainer
from ortcam.graph.onepass import METHODS as ONE_PASS
from ortcam.graph.onepass import count_tails
from ortcam.graph.packing import Packing
from ortcam.graph.tails import rows_at_once
from ortcam.methods import make_method, with_preset
from ortcam.model.cam_model import CamModel
from ortcam.model.contract import EXPLAINER, EXPLAINER_FORMATS, Task
from ortcam.model.source import external_files
from ortcam.runtime.engine import DEFAULT_BATCH

if TYPE_CHECKING:
    from ortcam.core.method import Method

_MOST_BYTES = (1 << 31) - (1 << 20)  # of a protobuf file
_LARGEST_BUDGET = 2**31 - 1  # no layer has so many channels


@dataclass(frozen=True, repr=False)
class PackReport:
    """What was packed. ``print(report)`` shows it in a few lines.

    Attributes:
        path: the file.
        facts: the metadata entry `ortcam.explainer`: method, preset, budget, batch size, kind of input, source.
        r: Pearson's correlation of its map with the engine's, on a synthetic photo; None if it was not run.
        largest_difference: the largest difference of the two maps, in [0,1]; None if it was not run.
        notices: notices for the user.
    """

    path: Path
    facts: dict[str, Any]
    r: float | None
    largest_difference: float | None
    notices: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the file, the method, the agreement with the engine and the notices, a line each."""
        size = f", {self.path.stat().st_size / 1e6:.1f} MB" if self.path.is_file() else ""
        if self.r is None or self.largest_difference is None:
            checked = "not checked against the engine"
        else:
            checked = f"agrees with the engine: r {self.r:.6f}, largest difference {self.largest_difference:.1g}"
        notes = (f"note: {notice}" for notice in self.notices)
        return "\n".join([f"{self.path}: {self._method}{size}", checked, *notes])

    def __repr__(self) -> str:
        return f"<PackReport of {self.path}: {self._method}>"

    @property
    def _method(self) -> str:
        name, budget = self.facts["method"]["name"], self.facts["budget"]
        preset = f", preset {self.facts['preset']}" if name == "score-cam" else ""
        return f"{name}{preset}{'' if budget is None else f', budget {budget}'}, source {self.facts['source']['file']}"


def pack(
    model: str | PathLike[str],
    path: str | PathLike[str],
    *,
    method: str | Method = "score-cam",
    preset: str | Convention | None = None,
    budget: int | None = None,
    raw: bool = True,
    batch_size: int | None = None,
    target: Any = None,
    verify: bool = True,
    layer: str | None = None,
) -> PackReport:
    """Write a model file and a method around it as one ordinary ONNX file that needs no Python.

    Its inputs are ``image``, a photo uint8 [H,W,3] RGB of any size (the preprocessed tensor float32 [1,C,H,W] with
    ``raw=False``), and ``target`` int64 [T], class indices, -1 for the top class. Its outputs are the model's own
    scores float32 [N], ``target_class`` int64 [T], ``saliency`` float32 [T,H,W] in [0,1], ``scored`` int64 [1], how
    many masked images were run (for a method of one pass: how many tails), and ``error`` float32 [T,3], the
    `ErrorEstimate` of every map: 0 for exact maps, NaN where it is unknown. Models of other tasks share ``image``,
    ``saliency``, ``scored`` and ``error``, and have other inputs and outputs: see docs/explainer.md, "Other tasks".

    Args:
        model: a file that ortcam exported.
        path: the file to write.
        method: ``score-cam``, ``cam``, ``recipro-cam``, ``ablation-cam``, ``eigen-cam`` or ``fused``, or a method with
            options, such as ``ReciproCAM(kernel="gaussian")``. ``fused`` is packed without masked images:
            ``Fused(passes=0)``.
        preset: the definition of Score-CAM: a name in `ortcam.PRESETS`, or a Convention; None for that of `ScoreCAM`:
            ``official`` for classifiers.
        budget: run at most this many masked images, as in `ScoreCAM.explain`; None for all, the exact map.
        raw: pack the preprocessing too, so that the file takes photos.
        batch_size: masked images per run, or rows of the tail per run; None for 8 images, 64 MB of features, or the
            model's own fixed batch.
        target: the default of the input ``target``: a class index, a label or -1. The inputs ``box`` and ``sign``
            then have defaults too. None: these inputs are required. Runtimes for JavaScript do not support defaults.
        layer: the target layer, as for `ScoreCAM`.
        verify: explain a synthetic photo with the file and with the engine, and refuse a file that differs.

    Raises:
        ModelError: the model cannot be packed, or the packed file does not agree with the engine.
        OptionError: an argument is invalid.
        TargetError: the model lacks the target.
        LayerError: the layer does not suit the method.
        OutputError: the file cannot be written.
    """
    path = Path(path)
    known = model if isinstance(model, CamModel) else CamModel(model)
    chosen = _choose_method(method, preset, known.contract.task)
    budget = None if budget is None else whole("budget", budget)
    chosen.check(Limits(budget))
    if budget is not None and chosen.convention.weight == "centred logit":
        raise OptionError("a budget predicts scores that have logarithms, and plain values have none; leave budget out")
    _check_path(path, known)
    cam = ModelExplainer(known, chosen, provider="cpu", layer=layer, detecting=ANY_BOX)
    known = cam.model
    classes, shape = cam.rehearse()
    references, cells = (0, 0), (0, 0)
    if not known.contract.classifies:
        references = known.reference_sizes
        classes = references[1] if known.contract.task in ("detect", "segment") else references[0]
        rows, columns = known.result_shapes[0][1:] if known.contract.task == "segment" else (0, 0)
        cells = rows or 0, columns or 0  # `reference_sizes` has checked them
    if raw and known.contract.preprocessing is None:
        raise OptionError(
            f"{known.shown} does not say how to preprocess a photo; export it with --preprocess, "
            "or pack it for preprocessed tensors (--no-raw, raw=False)"
        )
    if known.batch and batch_size not in (None, known.batch):
        raise OptionError(f"batch_size is {batch_size}; {known.name} takes only batches of {known.batch}")
    described = chosen.describe()
    default, most, stage = DEFAULT_BATCH, shape[0], None
    if chosen.name != "score-cam":
        rehearse_method(cam)
        stage = known.stages[0] if known.stages else None
        stage_shape = shape if stage is None else stage.shape
        most = max(1, count_tails(described, shape, stage_shape))
        default = rows_at_once(stage_shape, most)
    plan = Packing(
        convention=chosen.convention,
        budget=None if budget is None else min(budget, _LARGEST_BUDGET),
        batch_size=known.batch or min(most, whole("batch_size", batch_size or default)),
        fixed_batch=known.batch is not None,
        raw=raw,
        target=None if target is None else _default_target(known, target, classes),
        input_shape=input_shape(known),
        layer_shape=shape,
        method=described,
        stage=stage,
        sequence=known.sequence,
        references=references,
        cells=cells,
    )
    source = _read_whole(known)
    explainer = build_explainer(source, known.contract, plan)
    facts = _describe(known, plan, explainer.graph.output[0].name, classes)
    layer_alone = replace(known.contract.layers[0], output=None)
    contract = replace(known.contract, layers=(layer_alone,))
    if contract.classifies:
        contract = replace(contract, outputs={"scores": facts["scores"]})
    for key, text in {**contract.to_metadata(), EXPLAINER: json.dumps(facts)}.items():
        explainer.metadata_props.add(key=key, value=text)
    explainer.producer_name, explainer.producer_version = "ortcam", ortcam.__version__
    refusal = _refusal(explainer)
    with replace_files(path) as folder:
        made = folder / path.name
        try:
            made.write_bytes(explainer.SerializeToString())
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
        del explainer, source
        # ONNX Runtime runs operators that ONNX's checker refuses; then it has the last word.
        packed = _load(made, known, refusal) if verify or refusal else None
        r, difference = compare(cam, packed, budget) if packed and verify else (None, None)
    if refusal:
        warnings.warn(
            f"{path.name} runs in ONNX Runtime; ONNX's checker refuses the file, so other runtimes may refuse it too: "
            f"{refusal}",
            OrtcamWarning,
            stacklevel=2,
        )
    notices = []
    if known.contract.classifies and known.contract.is_in_doubt(classes):
        notices.append(guess(known.name))
    if verify and r is None:
        notices.append(
            f"{known.name} sees nothing in synthetic photos, so the packed file was not compared with the engine"
        )
    return PackReport(path, facts, r, difference, tuple(notices))


def _choose_method(method: str | Method, preset: str | Convention | None, task: Task) -> Method:
    """Return the method to pack, for a model of a task.

    Raises:
        OptionError: the method or the preset is unknown, or the method cannot be packed.
    """
    if preset is None and method == "score-cam":
        preset = default_preset(task)
    chosen = with_preset(name_packed(method) if isinstance(method, str) else method, preset)
    if chosen.name not in ("score-cam", *ONE_PASS):
        raise OptionError(f"method {chosen.name} cannot be packed; expected score-cam, {', '.join(ONE_PASS)}")
    if chosen.describe().get("passes"):
        raise OptionError(
            f"method fused runs {chosen.describe()['passes']} masked images, which cannot be packed; give passes=0 "
            "(--method-option passes=0)"
        )
    return chosen


def name_packed(name: str, options: Mapping[str, Any] | None = None) -> Method:
    """Make a method to pack, as `make_method`; fused runs no masked images unless the options say so.

    Raises:
        OptionError: the name or an option is unknown, or a value is invalid.
    """
    return make_method(name, ({"passes": 0} if name == "fused" else {}) | dict(options or {}))


def _default_target(model: CamModel, target: Any, classes: int) -> int:
    task = model.contract.task
    if task == "embed":
        raise OptionError(
            f"target is {target!r}, and {model.name} returns an embedding, which has no default reference"
        )
    if isinstance(target, int | str) and str(target).strip() == "-1" and task != "value":
        return -1
    if isinstance(target, str) and target.strip() == "all":
        raise OptionError("target is 'all'; expected one class index or label, or -1 for the top class")
    if task == "value" and str(target).strip() == "-1":
        raise OptionError(f"target is -1; expected the number of a value of {model.name}, 0 to {classes - 1}")
    indices = model.resolve_targets(target, classes)
    if indices is None or len(indices) != 1:
        raise OptionError(f"target is {target!r}; expected one class index or label, or -1 for the top class")
    return indices[0].index


def _check_path(path: Path, model: CamModel) -> None:
    if path.suffix != ".onnx":
        raise OptionError(f"output is {str(path)!r}; expected a name that ends in .onnx")
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a directory; give the name of a file")
    if path.exists() and model.path is not None and path.samefile(model.path):
        raise OptionError(f"{path} is the model that is packed; give the explainer another name")


def _read_whole(model: CamModel) -> onnx.ModelProto:
    """Return the parsed file with its weights inside."""
    proto = model.take_proto()
    size = model.source.size
    if model.has_external_data:
        folder = model.external_data_directory
        size += sum((folder / name).stat().st_size for name in external_files(proto))
    if size > _MOST_BYTES:
        raise ModelError(
            f"{model.name} has {size / 1e9:.1f} GB; an explainer is one file, and protobuf's end at 2 GB: "
            "export it with --precision fp16"
        )
    if model.has_external_data:
        onnx.load_external_data_for_model(proto, str(model.external_data_directory))
    return proto


def _describe(model: CamModel, plan: Packing, scores: str, classes: int) -> dict[str, Any]:
    return {
        "format": EXPLAINER_FORMATS[0 if model.contract.classifies else 1],
        "method": dict(plan.method),
        "preset": plan.convention.name,
        "convention": asdict(plan.convention),
        "budget": plan.budget,
        "batch_size": plan.batch_size,
        "raw": plan.raw,
        "default_target": plan.target,
        "input_shape": list(plan.input_shape),
        "classes": classes,
        "scores": scores,
        "source": {"file": model.name, "sha256": model.sha256},
        "ortcam": ortcam.__version__,
        **({} if model.contract.classifies else {"task": model.contract.task}),
    }


def _load(made: Path, model: CamModel, refusal: str | None) -> PackedExplainer:
    try:
        return PackedExplainer(made, provider="cpu", detecting=ANY_BOX)
    except ModelError as error:
        reason = refusal or str(error).replace(str(made), made.name)
        raise ModelError(f"{model.name} cannot be packed: {reason}") from error


def _refusal(explainer: onnx.ModelProto) -> str | None:
    """Return why ONNX's checker refuses a file; None where it takes it."""
    try:
        onnx.checker.check_model(explainer, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return one_line(error).split(" ==> Context")[0]
    return None
