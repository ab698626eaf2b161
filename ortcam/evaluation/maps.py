"""Maps to evaluate: by a method, given by the user, or by a control that does not look at the model."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from ortcam.core.budget import Limits, Selecting
from ortcam.core.convention import Floats, normalize, upsample
from ortcam.core.forward import Forward
from ortcam.core.pictures import Crop
from ortcam.errors import DatasetError, OptionError, TargetError
from ortcam.evaluation.fingerprints import hash_array, hash_file
from ortcam.methods import make_method, with_preset
from ortcam.output.explanation import Explanation

if TYPE_CHECKING:
    from ortcam.core.method import Method

CONTROLS = {
    "random": "uniform noise for each pixel of the model's input, seeded by the seed and the photo's name",
    "centre": "a Gaussian around the centre of the input; its deviation is a quarter of the height and of the width",
    "activations": "the sum of the target layer's channels, upsampled and min-max normalised",
}
AT_THE_DOOR = (
    "a map with values outside [0,1] is min-max normalised; a map of the photo's size is cut to the part that the "
    "model saw, and is 0 over the padding of a letterbox; any other map is resized bilinearly (half-pixel centres) to "
    "the model's input size"
)


@dataclass(frozen=True)
class Contestant:
    """A method with its options, under a name.

    Attributes:
        name: the name in tables.
        method: the method of explanation.
        limits: the budget, the tolerance and the selection.
        layer: the target layer; None for the first that the file exposes.
    """

    name: str
    method: Method
    limits: Limits = field(default_factory=Limits)
    layer: str | None = None

    def describe(self) -> dict[str, Any]:
        """Return what the record says of the method."""
        limits = self.limits
        return {
            **self.method.describe(),
            "preset": self.method.convention.name,
            "convention": asdict(self.method.convention),
            "budget": limits.budget,
            "tolerance": limits.tolerance,
            "selection": limits.selection,
            "layer": self.layer,
        }


# Where given maps are found: a folder of .npy files named after the photos; maps by the name of the sample; or a
# function of the sample's name and the explained class.
Given = str | PathLike[str] | Mapping[str, Any] | Callable[[str, int], Any]


def parse_method(spec: str, budget: int | None = None, usual: str | None = None) -> Contestant:
    """Return the contestant of a text such as ``score-cam:budget=32,preset=paper``.

    Args:
        spec: the name of a method, and behind a colon its options: those of the method, and budget, tolerance,
            selection, preset (of score-cam) and layer. The text is the contestant's name.
        budget: the budget if the text states none; None for all masked inputs.
        usual: the preset of score-cam if the text states none; None for ``official``.

    Raises:
        OptionError: the name or an option is unknown, or a value is invalid.
    """
    kind, options = split_spec(spec, "method")
    numbers: dict[str, Any] = {"budget": budget}
    for name, number in (("budget", int), ("tolerance", float)):
        if name in options:
            text = options.pop(name)
            try:
                numbers[name] = number(text)
            except ValueError as error:
                kind_of_number = "a whole number" if number is int else "a number"
                raise OptionError(f"{name} of {spec!r} is {text!r}; expected {kind_of_number}") from error
    selection, preset, layer = (options.pop(name, None) for name in ("selection", "preset", "layer"))
    if preset is not None and kind != "score-cam":
        raise OptionError(f"method {spec!r} has a preset; only score-cam has presets")
    if preset is None and kind == "score-cam":
        preset = usual
    method = with_preset(make_method(kind, options), preset)
    name = spec if budget is None or ("budget=" in spec) else f"{spec}{',' if ':' in spec else ':'}budget={budget}"
    limits = Limits(numbers["budget"], numbers.get("tolerance"), cast("Selecting", selection or "predict"))
    method.check(limits)
    return Contestant(name, method, limits, layer)


def split_spec(spec: str, what: str) -> tuple[str, dict[str, str]]:
    """Return the name of ``NAME:KEY=VALUE,...`` and its options; of ``NAME:WORD,KEY=VALUE`` the word is option ``""``.

    Raises:
        OptionError: a part is not KEY=VALUE, or a key is there twice.
    """
    name, _, rest = spec.partition(":")
    options: dict[str, str] = {}
    for at, part in enumerate(filter(None, rest.split(","))):
        key, equals, value = part.partition("=")
        if not equals and (at > 0 or what == "method"):
            raise OptionError(f"{what} {spec!r} has the option {part!r}; expected KEY=VALUE")
        key, value = (key.strip(), value.strip()) if equals else ("", key.strip())
        if key in options:
            raise OptionError(f"{what} {spec!r} has the option {key!r} twice; give it once")
        options[key] = value
    return name.strip(), options


def control_map(name: str, forward: Forward, photo: str, seed: int) -> Floats:
    """Return the map [H,W] of a control for one photo; CONTROLS describes each."""
    height, width = forward.size
    if name == "random":
        noise: Floats = np.random.default_rng([seed, zlib.crc32(photo.encode())]).random((height, width), np.float32)
        return noise
    if name == "centre":
        down, across = (((np.arange(length) + 0.5) / length - 0.5) / 0.25 for length in (height, width))
        gaussian: Floats = np.exp(-(down[:, None] ** 2 + across**2) / 2).astype(np.float32)
        return gaussian
    summed: Floats = forward.activations.sum(axis=0, dtype=np.float32)
    upsampled: Floats = normalize(upsample(summed[None], forward.size))[0]
    return upsampled


class GivenMaps:
    """Maps that the user has, under a name."""

    def __init__(self, name: str, given: Given) -> None:
        """Take the maps.

        Raises:
            DatasetError: a folder is missing.
            OptionError: the maps are of another type.
        """
        self.name, self._given = name, given
        if isinstance(given, str | PathLike):
            if not Path(given).is_dir():
                raise DatasetError(f"the folder {given} of the maps {name!r} is missing; expected .npy files in it")
        elif not isinstance(given, Mapping) and not callable(given):
            raise OptionError(
                f"the maps {name!r} are a {type(given).__name__}; expected a folder of .npy files, a mapping from the "
                "names of the photos, or a function of name and class"
            )

    def describe(self) -> dict[str, Any]:
        folder = isinstance(self._given, str | PathLike)
        return {"name": "given", "from": str(self._given) if folder else type(self._given).__name__}

    def fingerprint(self, photo: str) -> str:
        """Return a hash of the map of a sample; empty if it has none, or if a function makes it."""
        given = self._given
        if isinstance(given, str | PathLike):
            path = self._path_of(photo)
            return "" if path is None else hash_file(path)
        if not isinstance(given, Mapping) or photo not in given:
            return ""
        one = given[photo]
        try:
            return hash_array(one.input_maps if isinstance(one, Explanation) else _numbers(one))
        except Exception:  # noqa: BLE001 - of any library; `find` reports it
            return ""

    def find(self, photo: str, target: int, crop: Crop, size: tuple[int, int], photo_size: tuple[int, int]) -> Floats:
        """Return the map of a sample at the model's input size, float32 [H,W] in [0,1].

        Args:
            photo: the sample's name.
            target: the explained class.
            crop: the part of the photo that the model saw.
            size: the model's input size.
            photo_size: the photo's size.

        Raises:
            DatasetError: the map is missing, or is no map.
        """
        return as_map(
            self._look_up(photo, target), f"the map of {photo} in {self.name!r}", target, crop, size, photo_size
        )

    def _look_up(self, photo: str, target: int) -> Any:
        given = self._given
        if isinstance(given, Mapping):
            if photo not in given:
                raise DatasetError(f"the maps {self.name!r} have none for {photo}; expected one for each photo")
            return given[photo]
        if not isinstance(given, str | PathLike):
            return given(photo, target)
        path = self._path_of(photo)
        if path is None:
            expected = Path(given, _map_files(photo)[2])
            raise DatasetError(f"the maps {self.name!r} have no file for {photo}; expected {expected}")
        try:
            return np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DatasetError(f"cannot read {path}: {error}; expected a NumPy array of numbers") from error

    def _path_of(self, photo: str) -> Path | None:
        """Return the file of a sample's map; None if it is missing."""
        paths = (Path(cast("str", self._given), name) for name in _map_files(photo))
        return next((path for path in paths if path.is_file()), None)


def _map_files(photo: str) -> tuple[str, ...]:
    """Return the names that the file of a sample's map may have, the best first."""
    plain = Path(photo.partition("#")[0])
    return f"{photo}.npy", f"{plain}.npy", f"{plain.with_suffix('')}.npy", f"{plain.stem}.npy"


def as_map(
    given: Any, what: str, target: int, crop: Crop, size: tuple[int, int], photo_size: tuple[int, int]
) -> Floats:
    """Return a given map at the model's input size, float32 [H,W] in [0,1]; AT_THE_DOOR says how.

    Args:
        given: an array [h,w] (or [1,h,w], [1,1,h,w]) of any library, or an Explanation.
        what: its name in messages.
        target, crop, size, photo_size: as in `GivenMaps.find`.

    Raises:
        DatasetError: it has another shape, holds NaN or infinite values, or is an Explanation of other classes.
    """
    if isinstance(given, Explanation):
        try:
            place = given.place_of(target)
        except TargetError as error:
            raise DatasetError(f"{what}: {error}") from error
        given = given.input_maps[place] if given.input_size == size else given.map_at(place)
    try:
        values = _numbers(given)
    except Exception as error:  # any error of torch and other libraries
        raise DatasetError(f"{what} is a {type(given).__name__}; expected an array [h,w] of numbers") from error
    while values.ndim > 2 and len(values) == 1:
        values = values[0]
    if values.ndim != 2 or 0 in values.shape:
        raise DatasetError(f"{what} has the shape {list(values.shape)}; expected [h,w]")
    if not np.isfinite(values).all():
        raise DatasetError(f"{what} holds NaN or infinite values; expected finite numbers")
    if values.min() < 0 or values.max() > 1:
        values = normalize(values[None])[0]
    if values.shape == size:
        return values
    if values.shape == photo_size:
        values = values[crop.inside]
        if crop.is_padded:
            return _letterboxed(values, crop, size)
    resized: Floats = np.clip(upsample(values[None], size)[0], 0, 1)
    return resized


def _letterboxed(values: Floats, crop: Crop, size: tuple[int, int]) -> Floats:
    """Return a map [h,w] of the crop at the size (H, W) of the model's input, float32; 0 over the padding."""
    edges = crop.to_input([crop.left, crop.top, crop.right, crop.bottom], size)
    left, top, right, bottom = np.rint(edges).astype(int)  # a letterbox begins and ends between pixels of the input
    whole = np.zeros(size, np.float32)
    whole[top:bottom, left:right] = np.clip(upsample(values[None], (bottom - top, right - left))[0], 0, 1)
    return whole


def _numbers(given: Any) -> NDArray[Any]:
    """Return the values of an array of any library.

    Raises:
        TypeError: it holds no real numbers.
    """
    if hasattr(given, "detach") and hasattr(given, "cpu"):  # a torch tensor, on any device, of any float type
        given = given.detach().cpu()
        given = given.float() if given.is_floating_point() else given
    values = np.asarray(given)
    if values.dtype.kind not in "biuf":
        raise TypeError(f"the type of its values is {values.dtype}")
    with np.errstate(over="ignore"):  # a value beyond float32 becomes infinite, which is refused
        return values.astype(np.float32)
