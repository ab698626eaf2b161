"""ortcam inspect: show the contents of an ONNX file."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ortcam import NO_RUNTIME
from ortcam.cli import console

if TYPE_CHECKING:
    import onnx_ir as ir

    from ortcam.graph.layers import Candidate, Reading


_FEW_LABELS = 3
# Results of the export's check of places. Other texts name the wrong order of the cells.
_PLACES = {
    "confirmed": "confirmed: the layer's cells answer where the image changes",
    "followed": "by the graph: its rows and columns are those of the image; all cells see the whole image alike",
    "none": "none: the layer's cells do not answer where the image changes",
    "silent": "not checked: the layer hardly changes with the image",
}


def inspect(
    model: Annotated[Path, typer.Argument(help="An ONNX file, exported by ortcam or not.", show_default=False)],
    every: Annotated[bool, typer.Option("--all", help="List every candidate layer, not only the best ten.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines on standard output.")] = False,
) -> None:
    """Show the inputs, outputs, contract and candidate target layers of an ONNX file.

    Examples:

      ortcam inspect model.onnx

      ortcam inspect somebody-elses.onnx --all
    """
    facts = describe(model)
    if not every:
        facts["candidates"] = facts["candidates"][:10]
    if as_json:
        console.print_json(facts)
        return
    for kind in ("inputs", "outputs"):
        for value in facts[kind]:
            console.say(f"{kind[:-1]:7} {value['name']}  {value['dtype']} {value['shape']}")
    console.say(f"opset   {facts['opset']}")
    contract = facts["contract"]
    if facts["explainer"] is not None:
        _print_contract(contract)
        _print_explainer(facts["explainer"], contract["task"])
        return
    if contract is None:
        console.note(f"no target layer is exposed; to expose one: ortcam export {model} -o {model.stem}.cam.onnx")
    else:
        _print_contract(contract)
    table = console.make_table("candidate layer", "value in the graph", "K x h x w", "stored as", "why")
    for candidate in facts["candidates"]:
        shape = " x ".join("?" if dim is None else str(dim) for dim in candidate["shape"])
        table.add_row(candidate["name"], candidate["value"], shape, candidate["layout"], candidate["reason"])
    if facts["candidates"]:
        console.print_table(table)
    else:
        console.note("no candidate target layer: no spatial feature map leads to the first output")


def describe(path: Path) -> dict[str, Any]:
    """Return the facts of an ONNX file as plain JSON.

    Raises:
        ModelError: the file is not an ONNX model.
    """
    from ortcam.model.contract import EXPLAINER, PREFIX, Contract, count_scores
    from ortcam.model.source import read_proto

    proto = read_proto(path)
    entries = {entry.key: entry.value for entry in proto.metadata_props}
    contract = Contract.from_metadata(entries, str(path)) if PREFIX + "format" in entries else None
    packed = EXPLAINER in entries
    if contract is not None and count_scores(proto) == 1:
        contract = contract.of_single_score()

    import onnx_ir as ir

    from ortcam.errors import ModelError, one_line
    from ortcam.graph.backbone import find_task_layers
    from ortcam.graph.layers import Reading, find_candidates, infer_shapes

    runs = importlib.util.find_spec("onnxruntime") is not None
    if not runs:
        console.warn(f"{NO_RUNTIME}; only the statements in the file are shown")

    try:
        if contract is None and runs:
            from ortcam.exporters.unwrap import unwrap_outputs

            unwrap_outputs(proto)
        model = ir.from_proto(proto)
        inputs, outputs = list(model.graph.inputs), list(model.graph.outputs)
        reading = Reading("NCHW" if contract is None else contract.image_layout)
        size = None if contract is None else _size(inputs)
        if contract is None and runs:
            model, reading, size = _read_foreign(model, proto, path)
        candidates = []
        if inputs and outputs and not packed:
            if runs:
                from ortcam.runtime.shapes import complete_shapes

                complete_shapes(model, path.resolve().parent, size)
            else:
                infer_shapes(model)
            of_task = contract is not None and not contract.classifies
            candidates = find_task_layers(model, reading, None) if of_task else find_candidates(model, reading)
    except (ValueError, TypeError, LookupError, RuntimeError, AttributeError) as error:
        raise ModelError(f"{path} has a graph that cannot be read: {one_line(error)}") from error
    return {
        "path": str(path),
        "inputs": [_describe_value(value) for value in inputs],
        "outputs": [_describe_value(value) for value in outputs],
        "opset": model.opset_imports.get("", None),
        "contract": None if contract is None else _describe_contract(contract),
        "explainer": _explainer_facts(entries, path) if packed else None,
        "candidates": [_describe_candidate(candidate) for candidate in candidates],
    }


def _size(inputs: list[ir.Value]) -> tuple[int, ...] | None:
    """Return the dimensions of the image without the batch; None if any is unknown."""
    dims = list(inputs[0].shape or ())[1:] if len(inputs) == 1 else []
    sides = tuple(dim for dim in dims if isinstance(dim, int))
    return sides if len(sides) == len(dims) == 3 else None


def _read_foreign(model: ir.Model, proto: Any, path: Path) -> tuple[ir.Model, Reading, tuple[int, ...] | None]:
    """Read image and scores of a foreign file, like `export`. Return a graph with these alone."""
    import onnx_ir as ir

    from ortcam.errors import OrtcamError
    from ortcam.exporters.adopt import keep_scores
    from ortcam.exporters.interface import read_input
    from ortcam.exporters.sources import SourceOptions
    from ortcam.graph.layers import Reading
    from ortcam.runtime.session import CPU, create_session

    folder = path.resolve().parent
    try:
        session = create_session(proto, CPU, str(path), folder, log_severity=4)
        several = len(proto.graph.output) > 1
        keep_scores(proto, session, str(path))
        if several:
            model = ir.from_proto(proto)
            session = create_session(proto, CPU, str(path), folder, log_severity=4)
        _drop_weights(model)
        image = read_input(model, session, SourceOptions(), str(path))
    except OrtcamError as error:
        console.note(f"export would refuse this file: {error}")
        _drop_weights(model)
        return model, Reading(), _size(list(model.graph.inputs))
    return model, Reading(image.layout), image.shape


def _drop_weights(model: ir.Model) -> None:
    """Remove weights from the inputs; old files list them there."""
    weights = set(model.graph.initializers)
    model.graph.inputs[:] = [value for value in model.graph.inputs if value.name not in weights]


def _describe_candidate(candidate: Candidate) -> dict[str, Any]:
    feature_map = candidate.feature_map
    tokens = feature_map.tokens
    return {
        "name": candidate.name,
        "value": candidate.value,
        "module": candidate.module,
        "op_type": candidate.op_type,
        "shape": list(candidate.shape),
        "layout": "patches" if tokens is not None else feature_map.layout,
        "other_tokens": None if tokens is None else tokens.first,
        "reason": candidate.reason,
    }


def _describe_value(value: ir.Value) -> dict[str, Any]:
    shape = None if value.shape is None else [dim if isinstance(dim, int) else str(dim) for dim in value.shape]
    return {
        "name": value.name,
        "dtype": "unknown" if value.dtype is None else value.dtype.name.lower(),
        "shape": shape,
    }


def _describe_contract(contract: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "layer": contract.layer,
        "value": contract.value,
        "activations_layout": contract.activations_layout,
        **asdict(contract),
        "labels": None if contract.labels is None else list(contract.labels),
    }


def _describe_output(contract: dict[str, Any]) -> str:
    from ortcam.cli.export import describe_output

    return describe_output(contract["output"], contract["activation"], contract["output_scale"])


def _print_contract(contract: dict[str, Any]) -> None:
    for layer in contract["layers"]:
        held = "" if layer["output"] in (None, "activations") else f", output {layer['output']}"
        console.say(f"layer   {layer['name']} ({layer['value']} in the source graph{held})")
    layouts = ", ".join(f"{layer['output'] or 'activations'} {layer['layout']}" for layer in contract["layers"])
    classifies = contract["task"] == "classify"
    result = f"output: {_describe_output(contract)}" if classifies else f"task: {contract['task']}"
    console.say(f"layout  image {contract['image_layout']}, {layouts}; {result}")
    preprocessing = contract["preprocessing"]
    if preprocessing is None:
        console.say("photos  no preprocessing is known: only input tensors can be explained")
    else:
        how, resize = "stretched", preprocessing["resize"]
        if preprocessing.get("fit") == "letterbox":
            how = f"letterboxed, padded with {_short(preprocessing['pad_value'])} at the {preprocessing['pad_place']}"
        elif isinstance(resize, list | tuple):
            how = f"stretched to {resize[0]}x{resize[1]}, centre cut"
        elif resize is not None:
            how = f"shorter side to {resize}, centre cut"
        scale, mean, std = f"{preprocessing['scale']:.6g}", _short(preprocessing["mean"]), _short(preprocessing["std"])
        console.say(
            f"photos  {preprocessing['channels']} {preprocessing['height']}x{preprocessing['width']}, {how}, "
            f"{preprocessing['interpolation']}; (value * {scale} - {mean}) / {std}"
        )
    labels = contract["labels"]
    more = "" if labels is None or len(labels) <= _FEW_LABELS else "; ..."
    console.say("labels  none" if labels is None else f"labels  {len(labels)}: {'; '.join(labels[:_FEW_LABELS])}{more}")
    source = contract["source"]
    versions = ", ".join(f"{name} {version}" for name, version in source.get("versions", {}).items())
    console.say(f"source  {source.get('kind')} {source.get('name')} ({versions})")
    _print_verified(contract["verified"], contract["layers"])


def _print_verified(verified: dict[str, Any], layers: list[dict[str, Any]]) -> None:
    """Print the comparisons and checks of the export; name each of several layers."""
    several = len(layers) > 1
    if verified:
        inner = ""
        for layer in layers:
            error = layer["verified"].get("activations_relative_error")
            inner += "" if error is None else f", {layer['name'] if several else 'target layer'} within {error:g}"
        errors = verified.get("relative_errors") or {"scores": verified["logits_relative_error"]}
        scores = ", ".join(f"{what} within {error:g}" for what, error in errors.items())
        console.say(f"checked {scores}{inner} (relative) of the source, batches {verified['batches']}")
    for layer in layers:
        found = layer["verified"].get("places")
        if found is not None:
            console.say(f"places  {layer['name'] + ': ' if several else ''}{_PLACES.get(found, 'wrong: ' + found)}")


def _explainer_facts(entries: dict[str, str], path: Path) -> dict[str, Any]:
    from ortcam.deploy.facts import parse_facts

    return parse_facts(entries, path)[1]


def _print_explainer(facts: dict[str, Any], task: str) -> None:
    from ortcam.deploy.facts import describe_run

    takes = "photos of any size" if facts["raw"] else "preprocessed tensors"
    default = facts["default_target"]
    console.say(f"packed  {describe_run(facts)}, batches of {facts['batch_size']}; takes {takes}")
    if task != "embed":
        surest = {"classify": "; -1: top class", "detect": "; -1: surest box", "segment": "; -1: largest region"}
        given = "must be given" if default is None else f"{default} where it is not given"
        console.say(f"target  {given}{surest.get(task, '')}")
    console.say(
        f"made    of {facts['source']['file']} (sha256 {facts['source']['sha256'][:16]}...), ortcam {facts['ortcam']}"
    )


def _short(values: list[float]) -> str:
    return f"{values[0]:g}" if len(set(values)) == 1 else str([round(value, 4) for value in values])
