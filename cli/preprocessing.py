"""ortcam preprocessing: show what a model sees in photos with each named preprocessing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ortcam.cli import console, options
from ortcam.errors import ImageError, OrtcamError

if TYPE_CHECKING:
    from ortcam.model.cam_model import CamModel
    from ortcam.model.preprocessing import Preprocessing

_MOST_PHOTOS = 20
_SHOWN = 2  # classes a row
_LONGEST_LABEL = 22  # characters: two labels a row fit 80 columns
_UNNAMED = "the file's own"


def preprocessing(
    model: Annotated[Path, typer.Argument(help="The model file that `ortcam export` wrote.", show_default=False)],
    images: Annotated[
        list[Path],
        typer.Argument(help=f"Photos, or folders of photos; the first {_MOST_PHOTOS} are read.", show_default=False),
    ],
    labels: Annotated[
        str | None, typer.Option(help="Class names, as for `ortcam export`. Default: the file's own.")
    ] = None,
    provider: options.ProviderName = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines on standard output.")] = False,
) -> None:
    """Show what a model sees in photos with each named preprocessing.

    Compare the classes with the photos. A high probability proves nothing: a model can be confident and wrong.

    Examples:

      ortcam preprocessing model.onnx photos/

      ortcam preprocessing model.onnx cat.jpg dog.jpg --labels names.txt
    """
    from ortcam import CamModel, ScoreCAM

    known = CamModel(model)
    known.require_classes("preprocessing")
    names = _read_labels(labels, known)
    candidates = _candidates(known)
    cam = ScoreCAM(known, provider=provider)
    seen: list[dict[str, Any]] = []
    errors: list[dict[str, str]] = []
    for photo in _find_photos(images):
        try:
            seen.append({"source": str(photo), "predictions": _predict(cam, photo, candidates, names)})
        except OrtcamError as error:
            errors.append({"source": str(photo), "error": str(error)})
            console.fail(str(error))
    sure = {name: _mean(seen, row) for row, name in enumerate(candidates)} if seen else {}
    if as_json:
        console.print_json({"model": str(model), "mean_top_probability": sure, "photos": seen, "errors": errors})
    elif seen:
        _print_results(seen, sure, known)
    if errors:
        raise typer.Exit(1)


def _read_labels(labels: str | None, model: CamModel) -> tuple[str, ...] | None:
    from ortcam.exporters.labels import fit_labels, read_labels

    if labels is None:
        return model.labels
    names, notice = fit_labels(read_labels(labels), model.classes, given=True)
    if notice is not None:
        console.note(f"note: {notice}")
    return names


def _candidates(model: CamModel) -> dict[str, Preprocessing]:
    """Return the preprocessings to compare, by their names in the table.

    Raises:
        ImageError: the model does not take photos: it has another number of channels.
    """
    from ortcam.model.preprocessing import NAMES, Preprocessing

    shape, stated = model.usual_shape, model.contract.preprocessing
    channels, height, width = shape if model.contract.image_layout == "NCHW" else (shape[2], *shape[:2])
    if channels not in (None, 1, 3):
        raise ImageError(f"{model.shown} takes {channels} channels; expected 1 or 3, as in photos")
    found = {name: Preprocessing.named(name, height or 224, width or 224, channels=channels or 3) for name in NAMES}
    if stated is None:
        return found
    same = next((name for name, candidate in found.items() if candidate == stated), None)
    if same is None:
        return {_UNNAMED: stated, **found}
    return {f"{name} ({_UNNAMED})" if name == same else name: candidate for name, candidate in found.items()}


def _find_photos(images: list[Path]) -> Iterator[Path]:
    """Yield the photos, those in folders in the order of their names; print a note if some are left out.

    Raises:
        ImageError: a folder holds no images.
    """
    from ortcam.model.image import SUFFIXES

    photos: list[Path] = []
    for image in images:
        inside = [image]
        if image.is_dir():
            inside = sorted(path for path in image.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
            if not inside:
                raise ImageError(f"{image} holds no images; expected files such as .jpg or .png")
        photos.extend(inside)
    if len(photos) > _MOST_PHOTOS:
        console.note(f"the first {_MOST_PHOTOS} of {len(photos)} photos are read; name others to see them")
    yield from photos[:_MOST_PHOTOS]


def _predict(
    cam: Any, path: Path, candidates: dict[str, Preprocessing], labels: tuple[str, ...] | None
) -> list[dict[str, Any]]:
    """Return the most probable classes of a photo by each preprocessing."""
    from ortcam.model.image import read_photo

    photo = read_photo(path)
    layout = cam.model.contract.image_layout
    rows = []
    for name, candidate in candidates.items():
        targets = [
            {
                "index": target.index,
                "label": target.label if labels is None else labels[target.index],
                "probability": target.probability,
            }
            for target in cam.predict(candidate.apply(photo, layout), top_k=5)
        ]
        rows.append({"preprocessing": name, "targets": targets})
    return rows


def _mean(seen: list[dict[str, Any]], row: int) -> float:
    """Return the mean probability of the top class over all photos, for one preprocessing."""
    sums = sum(float(photo["predictions"][row]["targets"][0]["probability"]) for photo in seen)
    return sums / len(seen)


def _print_results(seen: list[dict[str, Any]], sure: dict[str, float], model: CamModel) -> None:
    columns = ["photo", "preprocessing", *["class", "sure"] * _SHOWN]
    table = console.make_table(*columns, right=("sure",))
    for photo in seen:
        for row, prediction in enumerate(photo["predictions"]):
            cells = []
            for target in prediction["targets"][:_SHOWN]:
                cells += [_show(target["index"], target["label"]), f"{target['probability']:.1%}"]
            table.add_row(Path(photo["source"]).name if row == 0 else "", prediction["preprocessing"], *cells)
    console.print_table(table)
    if len(seen) > 1:
        console.say()
        table = console.make_table("preprocessing", f"probability of the top class, mean of {len(seen)} photos")
        for name, mean in sure.items():
            table.add_row(name, f"{mean:.1%}")
        console.print_table(table)
    console.note(
        "A high probability proves nothing: a model can be confident and wrong, also with a wrong preprocessing."
    )
    console.note(
        "Use the preprocessing that the model was trained with. If it is unknown, use the preprocessing whose classes"
    )
    console.note("match the photos, on many photos.")
    console.note(f"To set it: ortcam export {model.shown} -o {Path(model.shown).stem}.cam.onnx --preprocess NAME")


def _show(index: int, label: str | None) -> str:
    short = (label or "").partition(",")[0]
    return f"{index} {short if len(short) <= _LONGEST_LABEL else short[: _LONGEST_LABEL - 3] + '...'}".strip()
