"""Write the nodes that change inputs: photos and a bank of masks -> inputs of the model.

    mask_b = rows @ ((bank[number_b] - shift_b) * scale_b + offset_b) @ columns
    input_b = photos[photo_b] * mask_b + baseline * (1 - mask_b)

`rows` [H,h] and `columns` [w,W] hold the weights of the bilinear upsampling. So one graph serves every convention, and
a provider needs only MatMul. If all rows have the same photo, its index is given once, and the photo is broadcast, not
copied.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import TensorProto, helper

from ortcam.core.grids import NUMBER_FACTOR, PRIME, ROUNDS
from ortcam.core.noise import SAMPLE_FACTOR, SHIFT_FACTORS, SHIFTS
from ortcam.graph.names import (
    AFFINE,
    BANK,
    BASELINE,
    COLUMNS,
    GRID_CELLS,
    GRID_LIMIT,
    GRID_SHIFTS,
    NOISE,
    NOISE_SAMPLE,
    NUMBERS,
    PHOTO_INDEX,
    PHOTOS,
    ROWS,
)
from ortcam.graph.scores import make_node
from ortcam.graph.wiring import Wiring
from ortcam.model.contract import Layout


def mask_inputs(wiring: Wiring, content: Sequence[int | str | None]) -> list[onnx.ValueInfoProto]:
    """Return the inputs of the nodes; `content` is the shape of a photo, or of a layer's features."""
    floats, integers = TensorProto.FLOAT, TensorProto.INT64
    value = helper.make_tensor_value_info
    given = [value(BANK, floats, ["ortcam.A", None, None])] if wiring.bank == "given" else []
    inputs = [
        value(PHOTOS, floats, ["ortcam.P", *content]),
        value(PHOTO_INDEX, integers, ["ortcam.R"]),
        *given,
        value(NUMBERS, integers, ["ortcam.B"]),
        value(AFFINE, floats, ["ortcam.B", 3, 1, 1]),
    ]
    if wiring.upsampled:
        inputs += [value(ROWS, floats, [None, 1, None, None])]
        inputs += [value(COLUMNS, floats, [None, None] if wiring.bank == "given" else [None, 1, None, None])]
    if wiring.bank == "grids":
        inputs += [value(GRID_CELLS, integers, [None, None]), value(GRID_SHIFTS, integers, [2])]
        inputs += [value(GRID_LIMIT, integers, [1])]
    if wiring.noisy:
        inputs += [value(NOISE, floats, [None, None]), value(NOISE_SAMPLE, integers, [1])]
    if wiring.replaces:
        inputs += [value(BASELINE, floats, [1, None, None, None])]
    return inputs


def write_masks(wiring: Wiring, layout: Layout, made: str, channels: int = 0) -> list[onnx.NodeProto]:
    """Return the nodes that write the batch `made`, [B,C,H,W] or [B,H,W,C] as `layout` states.

    `channels` is C; only ablations need it.
    """
    nodes: list[onnx.NodeProto] = []
    mask = write_mask(nodes, wiring, channels)
    if layout == "NHWC":
        nodes.append(make_node("Transpose", [mask], "mask_last", perm=[0, 2, 3, 1]))
        mask = "ortcam.mask_last"
    nodes.append(make_node("Gather", [PHOTOS, PHOTO_INDEX], "photo", axis=0))
    if not wiring.replaces:
        return [*nodes, helper.make_node("Mul", ["ortcam.photo", mask], [made], name="ortcam.masked_image")]
    return [
        *nodes,
        _number("one_mask", 1.0),
        make_node("Mul", ["ortcam.photo", mask], "kept"),
        make_node("Sub", ["ortcam.one_mask", mask], "hidden"),
        make_node("Mul", [BASELINE, "ortcam.hidden"], "replaced"),
        helper.make_node("Add", ["ortcam.kept", "ortcam.replaced"], [made], name="ortcam.masked_image"),
    ]


def write_mask(nodes: list[onnx.NodeProto], wiring: Wiring, channels: int) -> str:
    """Add the nodes that make the masks of a batch. Return their name: [B,1,H,W]; of ablations [B,`channels`,1,1]."""
    if wiring.bank == "ablations":
        _write_ablations(nodes, channels)
        return "ortcam.channel"
    rows, columns = _write_grids(nodes) if wiring.bank == "grids" else _write_gathering(nodes)
    nodes += [
        helper.make_node("Split", [AFFINE], ["ortcam.shift", "ortcam.scale", "ortcam.offset"], axis=1, num_outputs=3),
        make_node("Sub", ["ortcam.channel", "ortcam.shift"], "shifted"),
        make_node("Mul", ["ortcam.shifted", "ortcam.scale"], "scaled"),
        make_node("Add", ["ortcam.scaled", "ortcam.offset"], "normalized"),
    ]
    mask = "ortcam.normalized"
    if wiring.upsampled:
        nodes.append(make_node("MatMul", [rows, mask], "taller"))
        nodes.append(make_node("MatMul", ["ortcam.taller", columns], "mask"))  # [B,1,H,W]
        mask = "ortcam.mask"
    if wiring.noisy:
        mask = _write_noise(nodes, mask)
    if wiring.binary:
        nodes.append(_number("nothing", 0.0))
        nodes.append(make_node("Greater", [mask, "ortcam.nothing"], "shows"))
        nodes.append(make_node("Cast", ["ortcam.shows"], "binary_mask", to=TensorProto.FLOAT))
        mask = "ortcam.binary_mask"
    return mask


def _write_noise(nodes: list[onnx.NodeProto], mask: str) -> str:
    """Add nodes that cut noise for each mask and add it: `ortcam.core.noise.cut`. Return the noisy masks' name."""

    def constant(name: str, numbers: Sequence[int]) -> None:
        tensor = helper.make_tensor(name, TensorProto.INT64, [len(numbers)], numbers)
        nodes.append(make_node("Constant", [], name, value=tensor))

    for name, numbers in (("noise_range", [SHIFTS]), ("noise_apart", [SAMPLE_FACTOR]), ("axis_of_sides", [1])):
        constant(name, numbers)
    nodes += [
        make_node("Mul", [NOISE_SAMPLE, "ortcam.noise_apart"], "noise_begin"),
        make_node("Add", [NUMBERS, "ortcam.noise_begin"], "noise_number"),
        make_node("Shape", [mask], "mask_height", start=2, end=3),
        make_node("Shape", [mask], "mask_width", start=3, end=4),
    ]
    zero, one = (helper.make_tensor(f"of_range_{number}", TensorProto.INT64, [], [number]) for number in (0, 1))
    nodes += [make_node("Constant", [], "range_zero", value=zero), make_node("Constant", [], "range_one", value=one)]
    for side, factor in zip(("height", "width"), SHIFT_FACTORS, strict=True):
        constant(f"noise_factor_{side}", [factor])
        nodes += [
            make_node("Mul", ["ortcam.noise_number", f"ortcam.noise_factor_{side}"], f"noise_product_{side}"),
            make_node("Mod", [f"ortcam.noise_product_{side}", "ortcam.noise_range"], f"noise_shift_{side}"),
            make_node("Unsqueeze", [f"ortcam.noise_shift_{side}", "ortcam.axis_of_sides"], f"noise_from_{side}"),
            make_node("Squeeze", [f"ortcam.mask_{side}"], f"noise_count_{side}"),
            make_node(
                "Range", ["ortcam.range_zero", f"ortcam.noise_count_{side}", "ortcam.range_one"], f"noise_{side}"
            ),
            make_node("Add", [f"ortcam.noise_from_{side}", f"ortcam.noise_{side}"], f"noise_at_{side}"),  # [B,H], [B,W]
        ]
    nodes += [
        make_node("Gather", [NOISE, "ortcam.noise_at_height"], "noise_rows", axis=0),  # [B,H,W+S]
        make_node("Unsqueeze", ["ortcam.noise_at_width", "ortcam.axis_of_sides"], "noise_columns_of_row"),
        make_node("Shape", ["ortcam.noise_rows"], "noise_rows_shape", start=0, end=2),
        make_node("Concat", ["ortcam.noise_rows_shape", "ortcam.mask_width"], "noise_shape", axis=0),
        make_node("Expand", ["ortcam.noise_columns_of_row", "ortcam.noise_shape"], "noise_columns"),
        make_node("GatherElements", ["ortcam.noise_rows", "ortcam.noise_columns"], "noise_cut", axis=2),
        make_node("Unsqueeze", ["ortcam.noise_cut", "ortcam.axis_of_sides"], "noise_of_mask"),
        make_node("Add", [mask, "ortcam.noise_of_mask"], "noisy_mask"),
    ]
    return "ortcam.noisy_mask"


def _write_ablations(nodes: list[onnx.NodeProto], count: int) -> None:
    """Add nodes that make `ortcam.channel` [B,K,1,1]: 0 at the channel of the row, else 1."""
    every = helper.make_tensor("every", TensorProto.INT64, [1, count, 1, 1], range(count))
    axes = helper.make_tensor("axes", TensorProto.INT64, [3], [1, 2, 3])
    nodes += [
        make_node("Constant", [], "every_channel", value=every),
        make_node("Constant", [], "channel_axes", value=axes),
        make_node("Unsqueeze", [NUMBERS, "ortcam.channel_axes"], "hidden_channel"),
        make_node("Equal", ["ortcam.hidden_channel", "ortcam.every_channel"], "is_hidden"),
        make_node("Not", ["ortcam.is_hidden"], "is_shown"),
        make_node("Cast", ["ortcam.is_shown"], "channel", to=TensorProto.FLOAT),
    ]


def _write_gathering(nodes: list[onnx.NodeProto]) -> tuple[str, str]:
    """Add nodes that gather the bank's masks as `ortcam.channel` [B,1,h,w]; return the upsampling matrices."""
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [1])
    nodes += [
        make_node("Gather", [BANK, NUMBERS], "gathered", axis=0),  # [B,h,w]
        make_node("Constant", [], "mask_axis", value=axis),
        make_node("Unsqueeze", ["ortcam.gathered", "ortcam.mask_axis"], "channel"),  # [B,1,h,w]
    ]
    return ROWS, COLUMNS


def _write_grids(nodes: list[onnx.NodeProto]) -> tuple[str, str]:
    """Add nodes that draw grids as `ortcam.channel` [B,1,s,s]: `ortcam.core.grids.draw_grids`."""

    def integers(name: str, dims: list[int], values: list[int]) -> None:
        nodes.append(make_node("Constant", [], name, value=helper.make_tensor(name, TensorProto.INT64, dims, values)))

    for name, number in (("prime", PRIME), ("number_factor", NUMBER_FACTOR)):
        integers(name, [], [number])
    for name, axes in (("axis_1", [1]), ("axes_12", [1, 2])):
        integers(name, [len(axes)], axes)
    for index, added in enumerate(ROUNDS):
        integers(f"added_{index}", [], [added])
    nodes += [
        make_node("Mul", [NUMBERS, "ortcam.number_factor"], "multiplied"),
        make_node("Mod", ["ortcam.multiplied", "ortcam.prime"], "begin"),
        make_node("Unsqueeze", ["ortcam.begin", "ortcam.axes_12"], "begin_of_cells"),
        make_node("Unsqueeze", ["ortcam.begin", "ortcam.axis_1"], "begin_of_shifts"),
    ]
    cells = _write_scramble(nodes, "begin_of_cells", GRID_CELLS, "cell")  # [B,s,s]
    shifts = _write_scramble(nodes, "begin_of_shifts", GRID_SHIFTS, "move")  # [B,2]
    nodes += [
        make_node("Less", [cells, GRID_LIMIT], "shown"),
        make_node("Cast", ["ortcam.shown"], "grid", to=TensorProto.FLOAT),
        make_node("Unsqueeze", ["ortcam.grid", "ortcam.axis_1"], "channel"),
    ]
    made = []
    for index, matrices in enumerate((ROWS, COLUMNS)):
        integers(f"side_{index}", [], [index])
        nodes += [
            make_node("Shape", [matrices], f"count_{index}", start=0, end=1),  # the number of shifts
            make_node("Gather", [shifts, f"ortcam.side_{index}"], f"hash_{index}", axis=1),
            make_node("Mod", [f"ortcam.hash_{index}", f"ortcam.count_{index}"], f"shift_{index}"),
            make_node("Gather", [matrices, f"ortcam.shift_{index}"], f"matrix_{index}", axis=0),  # [B,1,H,s]
        ]
        made.append(f"ortcam.matrix_{index}")
    return made[0], made[1]


def _write_scramble(nodes: list[onnx.NodeProto], begin: str, terms: str, name: str) -> str:
    """Add the nodes of `ortcam.core.grids.scramble` for the sum of two values. Return their result."""

    def append(op_type: str, left: str, right: str, step: str) -> str:
        nodes.append(make_node(op_type, [left, right], f"{name}_{step}"))
        return f"ortcam.{name}_{step}"

    value = append("Mod", append("Add", f"ortcam.{begin}", terms, "sum"), "ortcam.prime", "first")
    for index in range(len(ROUNDS)):
        square = append("Mod", append("Mul", value, value, f"{index}_2"), "ortcam.prime", f"{index}_square")
        fourth = append("Mod", append("Mul", square, square, f"{index}_4"), "ortcam.prime", f"{index}_fourth")
        fifth = append("Mul", fourth, value, f"{index}_5")
        value = append(
            "Mod", append("Add", fifth, f"ortcam.added_{index}", f"{index}_more"), "ortcam.prime", f"{index}"
        )
    return value


def _number(name: str, number: float) -> onnx.NodeProto:
    return make_node("Constant", [], name, value_float=number)
