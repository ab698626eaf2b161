"""The sanity check of Adebayo et al. 2018 (arXiv 1810.03292): do maps change when the weights become random?

The weights of an ONNX file are randomised from the scores downwards, and the maps of every stage are compared with
those of the original file. A map that stays the same does not depend on what the model has learned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import combinations, islice
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import onnx

from ortcam import __version__
from ortcam.core.budget import Limits
from ortcam.core.convention import Convention, default_preset
from ortcam.core.provenance import now
from ortcam.core.references import Asked, Detecting
from ortcam.errors import ModelError, OptionError, OrtcamError, whole
from ortcam.evaluation.earlier import Question, hash_photos
from ortcam.evaluation.samples import name_photos
from ortcam.evaluation.sanity_maps import Explaining, Known, PhotoMaps, explain_original, explain_stage
from ortcam.evaluation.sanity_result import (
    FLAT,
    FLAT_ORIGINAL,
    MEASURES,
    MODES,
    Mode,
    PhotoStage,
    SanityResult,
    Stage,
    Strip,
    Summary,
    check_directory,
    options_of,
    summarise,
)
from ortcam.evaluation.sanity_verdict import judge
from ortcam.evaluation.similarity import Similarity, require_packages
from ortcam.explain.explainer import ModelExplainer
from ortcam.graph.randomise import (
    Draw,
    WeightedLayer,
    check_draw,
    count_parameters,
    load_weights,
    randomise,
    weighted_layers,
)
from ortcam.methods import make_method, with_preset
from ortcam.model.cam_model import CamModel, ModelLike
from ortcam.runtime.providers import ProviderLike
from ortcam.runtime.session import RUNTIME_VERSION

if TYPE_CHECKING:
    from ortcam.core.method import Method
    from ortcam.core.pictures import Image

STEPS = 8
BUDGET = 32  # of Score-CAM
_PICTURES = 8  # photos in the strip
_PAIRS = 200  # of different photos
_DEFINITIONS = {
    "maps": "at the size of the model's input; Spearman before ReLU and scaling, SSIM and HOG of the map in [0,1]",
    "spearman": "ties have their mean rank; spearman_abs ranks absolute values",
    "ssim": "Gaussian weights, sigma 1.5, window 11 x 11, population covariance, data range 1",
    "hog": "Pearson's r; 9 orientations, cells of 16 x 16 pixels (or a third of a side), blocks of 3 x 3 cells",
    "control": "the same measures of the plain sum of the target layer's channels",
    "flat maps": "counted, and left out of the means; the original map is never compared with itself",
}


@dataclass(frozen=True)
class _Plan:
    """One stage to run: the layers that it adds, and all layers to randomise."""

    added: tuple[WeightedLayer, ...]
    randomised: tuple[WeightedLayer, ...]

    @property
    def weights(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for layer in self.randomised for name in layer.weights))


def sanity(
    model: ModelLike,
    photos: Iterable[Image],
    method: str | Method = "score-cam",
    *,
    method_options: Mapping[str, Any] | None = None,
    preset: str | Convention | None = None,
    budget: int | Literal["exact"] | None = None,
    target: int | str | Asked | None = None,
    mode: Mode = "cascading",
    draw: Draw = "gaussian",
    seed: int = 0,
    steps: int | Literal["all"] = STEPS,
    layer: str | None = None,
    provider: ProviderLike = "auto",
    batch_size: int | Literal["auto"] | None = None,
    threads: int | None = None,
    on_error: Callable[[Any, OrtcamError], None] | None = None,
    on_progress: Callable[[str, float], None] | None = None,
    detecting: Detecting | None = None,
    folder: str | PathLike[str] | None = None,
    overwrite: bool = False,
) -> SanityResult:
    """Randomise the weights of a model from the scores downwards, and measure how much its maps change.

    The maps of every stage explain the class that the original model predicts; of a model of another task, its
    surest box, its largest region, or the given target, which stays the same in all stages. Every stored tensor is
    drawn on its own: an export folds batch normalisation into the convolution before it, and the draw replaces the
    folded weights. SciPy and scikit-image are needed.

    Args:
        model: a file that ortcam exported: its path, its bytes, an onnx.ModelProto, or its CamModel.
        photos: images as for `ModelExplainer.explain`. Paths give the photos their names.
        method: ``score-cam``, ``recipro-cam`` or ``rise``, or a method such as ``RISE(masks=1000)``.
        method_options: the options of a method that is given by its name.
        preset: the definition of Score-CAM; None for ``official``.
        budget: the number of masked inputs per map; ``exact`` for all of them. None for 32 with Score-CAM, and for
            what the method runs by itself otherwise, and for plain values, which are run exactly.
        target: a class index or label to explain in every photo; None for each photo's top class. For a model of
            another task, a target as for `ModelExplainer.explain`; None for its surest box or largest region.
        mode: ``cascading``: each stage adds layers to those of the stages before it. ``independent``: each stage
            randomises one layer alone.
        draw: ``gaussian``: values with the mean and standard deviation of the tensor that they replace (integers are
            permuted). ``permutation``: the tensor's own values in another order.
        seed: the seed of the draw, from 0. Each tensor's generator depends on the seed and the tensor's name alone.
        steps: the number of stages, spread evenly over the layers; ``all`` for one stage per layer. One stage ends
            right above the target layer, if layers are there.
        layer: the target layer, as for `ModelExplainer`.
        provider, batch_size, threads: as for `ModelExplainer`.
        on_error: called with each photo that cannot be explained and its error; the others go on. If None, the error
            is raised.
        on_progress: called with the current stage in words, and the part of the work that is done, in [0,1].
        detecting: which boxes of a detector count, as for `ModelExplainer`.
        folder: where `SanityResult.save` writes the result; None for nowhere. An earlier result of the same model,
            photos and options is replaced.
        overwrite: replace any earlier result. Other files are never deleted.

    Raises:
        OptionError: an option is invalid, or SciPy or scikit-image is missing; with `folder`, matplotlib.
        OccupiedError: the folder holds another result, or other files.
        DatasetError: no photo was given, or none can be explained.
        ModelError: the file cannot be used, or no layer of it has weights.
    """
    _check(mode, draw, seed, steps)
    require_packages()
    named = name_photos(photos)
    original = model if isinstance(model, CamModel) else CamModel(model)
    if preset is None and method == "score-cam":
        preset = default_preset(original.contract.task)
    chosen = _choose_method(method, method_options, preset)
    predicts = chosen.name == "score-cam" and original.contract.task != "value"  # plain values are not predicted
    limit = None if budget == "exact" else BUDGET if budget is None and predicts else budget
    chosen.check(Limits(limit))
    explaining = Explaining(chosen, limit, layer, provider, batch_size, threads, detecting)
    with explaining.open(original) as explainer:
        layers = weighted_layers(explainer.model.take_proto())
        if not layers:
            raise ModelError(f"{original.shown} stores no weights of a layer; expected convolutions or products")
        plans = _plan(layers, mode, steps)
        settings = _settings(explainer, explaining, layers)
        settings |= {"mode": mode, "draw": draw, "seed": int(seed), "steps": steps}
        settings["target"] = target.to_json() if isinstance(target, Asked) else target
        if folder is not None:  # before the work
            check_directory(folder, None if overwrite else Question(options_of(settings), hash_photos(named)))
        progress = _Progress(on_progress, len(plans), len(named))
        progress.begin("original model")
        known, failures = explain_original(
            explaining, explainer, named, target, _PICTURES, on_error, progress.photo_done
        )
    explaining = replace(explaining, batch_size=explainer.batch_size)
    base = original.take_file()
    load_weights(base, original.external_data_directory)
    stages, rows, overlays = list[Stage](), list[PhotoStage](), list[list[Any]]([] for _ in known[:_PICTURES])
    for number, plan in enumerate(plans, 1):
        progress.begin(f"stage {number} of {len(plans)}")
        maps = explain_stage(explaining, _randomised(base, plan, draw, seed), known, progress.photo_done)
        compared = [_compare(one, found, number) for one, found in zip(known, maps, strict=True)]
        rows += compared
        stages.append(_describe(number, plan, compared, original.contract.classifies))
        for kept, found, row in zip(overlays, maps, compared, strict=False):
            kept.append(row.problem if row.problem or isinstance(found, str) else found.overlay)
    settings |= {"photos": _photos(known), "parameters": count_parameters(base)}
    result = SanityResult(
        settings=settings,
        stages=tuple(stages),
        rows=tuple(rows),
        unrelated=_unrelated(known),
        verdict=judge(stages, mode, settings["model"]["layer"]),
        failures=tuple(failures),
        strips=tuple(
            Strip(one.name, one.maps.explained.name, one.picture, (one.maps.overlay, *kept))
            for one, kept in zip(known, overlays, strict=False)
            if one.picture is not None and one.maps.overlay is not None
        ),
    )
    if folder is not None:
        result.save(folder, overwrite)
    return result


class _Progress:
    """Reports the part of the work that is done: photos of stages."""

    def __init__(self, report: Callable[[str, float], None] | None, stages: int, photos: int) -> None:
        self._report, self._stages, self._photos = report, stages + 1, photos
        self._stage, self._done, self._text = 0, 0, ""

    def begin(self, text: str) -> None:
        self._stage, self._done, self._text = self._stage + 1, 0, text
        self._tell()

    def photo_done(self) -> None:
        self._done += 1
        self._tell()

    def _tell(self) -> None:
        if self._report is not None:
            self._report(self._text, (self._stage - 1 + self._done / self._photos) / self._stages)


def _check(mode: object, draw: object, seed: object, steps: object) -> None:
    if mode not in MODES:
        raise OptionError(f"mode is {mode!r}; expected {' or '.join(MODES)}")
    check_draw(draw, seed)
    if steps != "all":
        whole("steps", steps, ", or 'all'")


def _choose_method(method: str | Method, options: Mapping[str, Any] | None, preset: str | Convention | None) -> Method:
    if not isinstance(method, str) and options:
        raise OptionError("got method_options with a method that has its options; give them to the method")
    return with_preset(make_method(method, options) if isinstance(method, str) else method, preset)


def _plan(layers: Sequence[WeightedLayer], mode: Mode, steps: int | Literal["all"]) -> list[_Plan]:
    """Return the stages: evenly spread over the layers, one of them right above the target layer."""
    total = len(layers)
    count = total if steps == "all" else min(int(steps), total)
    ends = sorted({max(1, round(total * number / count)) for number in range(1, count + 1)})
    above = sum(not layer.changes_activations for layer in layers)
    if 0 < above < total and above not in ends and len(ends) > 1:
        nearest = min(ends[:-1], key=lambda end: abs(end - above))
        ends = sorted({*ends, above} - {nearest})
    if mode == "independent":
        return [_Plan((layers[end - 1],), (layers[end - 1],)) for end in ends]
    return [_Plan(tuple(layers[begin:end]), tuple(layers[:end])) for begin, end in zip([0, *ends], ends, strict=False)]


def _randomised(base: onnx.ModelProto, plan: _Plan, draw: Draw, seed: int) -> CamModel:
    proto = onnx.ModelProto()
    proto.CopyFrom(base)
    randomise(proto, plan.weights, draw, seed)
    model = CamModel(proto)
    model.is_kept = False  # nobody runs it again
    return model


def _compare(one: Known, found: PhotoMaps | str, stage: int) -> PhotoStage:
    explained = one.maps.explained.index
    if isinstance(found, str):
        return PhotoStage(one.name, stage, explained, None, None, None, None, found)
    similarity = one.maps.compare(found)
    problem = ""
    if similarity is None:
        problem = FLAT_ORIGINAL if one.maps.is_flat else FLAT
    return PhotoStage(
        one.name, stage, explained, found.score, found.top, similarity, one.maps.compare_sums(found),
        problem,
    )  # fmt: skip


def _describe(number: int, plan: _Plan, rows: Sequence[PhotoStage], classifies: bool) -> Stage:
    probabilities = summarise(row.probability for row in rows)
    return Stage(
        number=number,
        layers=tuple(layer.name for layer in plan.added),
        count=len(plan.randomised),
        parameters=_parameters(plan.randomised),
        changes_activations=any(layer.changes_activations for layer in plan.randomised),
        measures=_summaries([row.similarity for row in rows]),
        control=_summaries([row.control for row in rows]),
        probability=None if probabilities is None else probabilities.mean,
        same_class=sum(row.top == row.explained for row in rows) if classifies else None,
        flat=sum(row.problem == FLAT for row in rows),
        flat_original=sum(row.problem == FLAT_ORIGINAL for row in rows),
        failed=sum(row.probability is None for row in rows),
    )


def _parameters(layers: Iterable[WeightedLayer]) -> int:
    """Return the number of values in layers; a tensor that several layers share counts once."""
    return sum({name: size for layer in layers for name, size in layer.weights.items()}.values())


def _summaries(similarities: Sequence[Similarity | None]) -> dict[str, Summary | None]:
    return {name: summarise(None if one is None else getattr(one, name) for one in similarities) for name in MEASURES}


def _unrelated(known: Sequence[Known]) -> dict[str, Summary | None]:
    """Compare the original maps of different photos."""
    pairs = islice(combinations(known, 2), _PAIRS)
    return _summaries([one.maps.compare(other.maps) for one, other in pairs])


def _settings(explainer: ModelExplainer, explaining: Explaining, layers: Sequence[WeightedLayer]) -> dict[str, Any]:
    """Return what a reader needs to repeat the run."""
    packages = ("numpy", "onnx", "scipy", "scikit-image")
    return {
        "ortcam": __version__,
        "versions": {"onnxruntime": RUNTIME_VERSION, **{name: version(name) for name in packages}},
        "created": now(),
        "model": {
            "name": explainer.model.name,
            "path": None if explainer.model.path is None else str(explainer.model.path.absolute()),
            "sha256": [print_.sha256 for print_ in explainer.model.fingerprints],
            "layer": explainer.model.contract.layer,
            "task": explainer.model.contract.task,
        },
        "method": {**explaining.method.describe(), "convention": asdict(explaining.method.convention)},
        "budget": explaining.budget,
        "detecting": asdict(explainer.detecting) if explainer.model.contract.task == "detect" else None,
        "definitions": _DEFINITIONS,
        "provider": explainer.provider,
        "batch_size": explainer.batch_size,
        "layers": [asdict(layer) for layer in layers],
        "above": sum(not layer.changes_activations for layer in layers),
    }


def _photos(known: Sequence[Known]) -> list[dict[str, Any]]:
    return [
        {
            "name": one.name,
            "sha256": one.origin.sha256,
            "path": None if one.origin.path is None else str(one.origin.path),
            "explained": one.maps.explained.index,
            "label": one.maps.explained.label,
            "probability": one.maps.explained.probability,
            "flat": one.maps.is_flat,
            **({} if one.maps.explained.place is None else {"place": dict(one.maps.explained.place)}),
        }
        for one in known
    ]
