"""Run a stored explanation again from its record, and compare the maps."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ortcam.core.convention import Convention
from ortcam.core.files import Fingerprint
from ortcam.core.provenance import Origin
from ortcam.core.references import Box, Output, Region, Similarity
from ortcam.deploy.packed import PackedExplainer
from ortcam.errors import (
    ImageError,
    ModelError,
    OptionError,
    OrtcamError,
    OrtcamWarning,
    OutputError,
    PackedModelError,
    TargetError,
    one_line,
)
from ortcam.explain.explainer import ModelExplainer
from ortcam.methods import make_method
from ortcam.methods.scorecam import ScoreCAMMethod
from ortcam.output.record import read_record
from ortcam.runtime.providers import Provider, ProviderLike

if TYPE_CHECKING:
    from ortcam.core.method import Method
    from ortcam.explain.protocol import Explainer
    from ortcam.output.explanation import Pictures

# Other processors, providers and versions round differently; on the same machine, maps are nearly always equal.
LEAST_R = 0.9999
LARGEST_DIFFERENCE = 1e-3
_ROWS_AT_ONCE = 256  # of a map


@dataclass(frozen=True)
class Comparison:
    """The comparison of a stored map and the new map.

    Attributes:
        index, label: the class.
        r: Pearson's correlation of the maps; None if a map is flat.
        largest_difference: over all pixels of the maps, which lie in [0,1].
    """

    index: int
    label: str | None
    r: float | None
    largest_difference: float

    @property
    def agrees(self) -> bool:
        """Whether r is at least 0.9999 and no pixel differs by more than 1e-3; two equal flat maps agree."""
        return (self.r is None or self.r >= LEAST_R) and self.largest_difference <= LARGEST_DIFFERENCE


@dataclass(frozen=True)
class Reproduction:
    """The result of running a stored explanation again.

    Attributes:
        same_model: whether model file and external weights have the recorded hashes; None if none was recorded.
        same_photo: whether the photo has the recorded hash.
        maps: the comparison of each class.
        explanation: the new explanation.
    """

    same_model: bool | None
    same_photo: bool
    maps: tuple[Comparison, ...]
    explanation: Pictures

    @property
    def agrees(self) -> bool:
        """Whether model, photo and all maps agree."""
        return bool(self.same_model) and self.same_photo and all(one.agrees for one in self.maps)

    def to_dict(self) -> dict[str, Any]:
        """Return all but the explanation as plain JSON."""
        return {
            "agrees": self.agrees,
            "same_model": self.same_model,
            "same_photo": self.same_photo,
            "maps": [{**vars(one), "agrees": one.agrees} for one in self.maps],
        }


def reproduce(
    directory: str | PathLike[str],
    model: str | PathLike[str] | None = None,
    photo: str | PathLike[str] | None = None,
    provider: ProviderLike | None = None,
) -> Reproduction:
    """Run a stored explanation again, with the options in its record.

    Args:
        directory: a folder that `Explanation.save` wrote.
        model: the model file; None for the recorded path.
        photo: the photo, or a .npy file with the photo uint8 [H,W,3] or the input tensor; None for the recorded path.
        provider: the execution provider; None for the recorded one.

    Raises:
        OutputError: the record or the maps are missing, damaged, or of another format.
        ModelError: the model file is missing, or cannot run the explanation.
        ImageError: the photo is missing, or does not fit the model.
        ProviderError: the provider does not load.
    """
    directory = Path(directory)
    record = read_record(directory)
    stored = _read_maps(directory, record)
    image = _read_photo(record, photo)
    file = _find_model(record, model)
    classes = [_target_of(target) for target in record["targets"]]
    try:
        explainer, options = _open(record, file, provider)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OrtcamWarning)  # about flat maps, which are compared
            again = explainer.explain(image, classes, **options)
    except OrtcamError as error:
        if record["model"]["sha256"] in (None, Fingerprint(file).sha256):
            raise
        raise ModelError(f"{file} is not the recorded model {record['model']['name']}: {error}") from error
    _check_references(again, record)
    hashes = [file.sha256 for file in again.provenance.model]
    recorded = [record["model"]["sha256"], *(file["sha256"] for file in record["model"]["external_data"])]
    if stored.shape[1:] != again.photo_size:
        (height, width), (_, rows, columns) = again.photo_size, stored.shape
        raise ImageError(
            f"the photo has {width}x{height} pixels; the maps in {directory} have {columns}x{rows}: "
            "give the photo that was explained (--photo)"
        )
    return Reproduction(
        same_model=None if None in recorded else hashes == recorded,
        same_photo=_is_same_photo(again, record),
        maps=tuple(
            compare_maps(again.map_at(place), stored[place], target["index"], target["label"])
            for place, target in enumerate(record["targets"])
        ),
        explanation=again,
    )


def _check_references(again: Pictures, record: dict[str, Any]) -> None:
    """Refuse a reference whose file has changed: the map is of something else then."""
    for ours, theirs in zip(again.targets, record["targets"], strict=True):
        before, now = (one or {} for one in (theirs.get("place"), ours.place))
        if before.get("kind") == "similarity" and before["sha256"] != now["sha256"]:
            raise TargetError(
                f"the reference {before['path']} has another embedding than in the record; expected the file that was "
                "given then"
            )


def _target_of(target: dict[str, Any]) -> Any:
    """Return a recorded target as `explain` takes it.

    Raises:
        OutputError: the record does not hold all of it.
    """
    index, place = target["index"], target.get("place")
    if place is None:
        return index
    if place["kind"] == "box":
        return Box(tuple(place["box"]), index)
    if place["kind"] == "value":
        return Output(index, place["sign"])
    if place["kind"] == "region" and place["mask_sha256"] is None:
        return Region(index, at=None if place["at"] is None else tuple(place["at"]))
    if place["kind"] == "similarity" and place["path"] is not None:
        return Similarity(place["path"])
    raise OutputError(f"the record does not hold its {place['kind']}, which was given as an array; explain it again")


def compare_maps(ours: NDArray[np.float32], theirs: NDArray[np.float32], index: int, label: str | None) -> Comparison:
    """Compare two maps, float32 [H,W], of a class."""
    sums, difference = np.zeros(5), 0.0
    for begin in range(0, len(ours), _ROWS_AT_ONCE):  # in float64, without a copy of the whole maps
        a, b = (one[begin : begin + _ROWS_AT_ONCE].astype(np.float64) for one in (ours, theirs))
        sums += [a.sum(), b.sum(), (a * a).sum(), (b * b).sum(), (a * b).sum()]
        difference = max(difference, float(np.abs(a - b).max()))
    mean_a, mean_b, square_a, square_b, product = sums / ours.size
    variances = (square_a - mean_a**2) * (square_b - mean_b**2)
    flat = min(np.ptp(ours), np.ptp(theirs)) <= 0
    r = None if flat else float(np.clip((product - mean_a * mean_b) / np.sqrt(variances), -1, 1))
    return Comparison(index, label, r, difference)


def _read_maps(directory: Path, record: dict[str, Any]) -> NDArray[np.float32]:
    path = directory / "maps.npy"
    try:
        maps: NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise OutputError(f"{path} cannot be read: {one_line(error)}") from error
    expected = (len(record["targets"]), record["photo"]["height"], record["photo"]["width"])
    if maps.shape != expected or maps.dtype != np.float32:
        raise OutputError(
            f"{path} holds {maps.dtype} {list(maps.shape)}; expected float32 {list(expected)}, as the record says"
        )
    return maps


def _find_model(record: dict[str, Any], given: str | PathLike[str] | None) -> Path:
    recorded = record["model"]["path"]
    if given is None and recorded is None:
        raise ModelError("the record has no path of the model file; give it with --model FILE (model=)")
    path = Path(given or recorded)
    if not path.is_file():
        raise ModelError(f"the model {path} is missing; give it with --model FILE (model=)")
    return path


def _read_photo(record: dict[str, Any], given: str | PathLike[str] | None) -> Any:
    """Return the photo's path, or the array in a .npy file."""
    recorded = record["photo"]["path"]
    if given is None and recorded is None:
        kind = "an input tensor" if record["photo"]["hashed"] == "tensor" else "a photo without a path"
        hint = "as a .npy file" if record["photo"]["hashed"] != "file" else "as a file"
        raise ImageError(f"{kind} was explained; give it {hint} with --photo FILE (photo=)")
    path = Path(given or recorded)
    if not path.is_file():
        raise ImageError(f"the photo {path} is missing; give it with --photo FILE (photo=)")
    if path.suffix.lower() != ".npy":
        return path
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ImageError(f"cannot read the array {path}: {one_line(error)}") from error


def _open(record: dict[str, Any], model: Path, provider: ProviderLike | None) -> tuple[Explainer, dict[str, Any]]:
    """Return the explainer, and the options of its `explain`."""
    run, asked = record["run"], record["asked"]
    if provider is None:
        provider = Provider(run["provider"], run["provider_options"], run["device_id"])
    if record["model"]["packed"]:
        return PackedExplainer(model, provider), {}
    layers = [record["model"]["layer"], *record.get("method", {}).get("stages", [])]
    batch_size = run["batch_size"]
    try:
        explainer = ModelExplainer(model, _method_of(record), provider, batch_size, layer=layers)
    except PackedModelError as error:
        raise ModelError(f"{model} is a packed explainer; expected the model file {record['model']['name']}") from error
    return explainer, {name: asked[name] for name in ("budget", "tolerance", "selection")}


def _method_of(record: dict[str, Any]) -> Method:
    """Return the recorded method; score-cam if the record states none."""
    options = dict(record.get("method", {"name": "score-cam"}))
    name = options.pop("name")
    options.pop("stages", None)  # values of the graph, not an option
    try:
        if name != "score-cam":
            return make_method(name, options)
        if len(record["preset"]) == 1:
            raise OutputError(f"the record holds only the name of its preset, {record['preset']['name']!r}")
        return ScoreCAMMethod(Convention.from_dict(record["preset"]))
    except OptionError as error:
        raise OutputError(f"the record cannot be run again: {error}") from error


def _is_same_photo(again: Pictures, record: dict[str, Any]) -> bool:
    """Compare with the recorded hash. A photo that was given as pixels may now be a file with the same pixels."""
    recorded = record["photo"]
    origin = again.provenance.photo
    if recorded["hashed"] == "pixels" and origin.kind == "file" and again.photo is not None:
        origin = Origin.of_array(again.photo)
    return (origin.kind, origin.sha256) == (recorded["hashed"], recorded["sha256"])
