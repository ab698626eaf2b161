"""Build the explainer graph: Score-CAM of one photo as an ordinary ONNX graph for any runtime.

    image, target -> the model's scores, target, saliency, scored, error

A Loop holds the model, so the file has its weights once. The weights are initializers of the loop's body, where ONNX
Runtime optimises them. If weights are captured from outside, convolutions keep their plain layout, and take 2.4 times
as long. The first turn is the plain pass: one image, unmasked. It fills a queue of masks. Every further turn runs a
batch of the queue, until the queue is empty. With a budget, the turn that empties the queue predicts all scores and
chooses the next stage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx

from ortcam.core.budget import FEWEST_FOR_AN_ERROR
from ortcam.core.convention import interpolation_matrix
from ortcam.core.surrogate import smooth_directions
from ortcam.graph import budget as budgets
from ortcam.graph import names, scoring, surrogates
from ortcam.graph.builder import Builder, Value
from ortcam.graph.packing import Carried, Packing
from ortcam.graph.photo import photo_sides, write_placing, write_preprocessing
from ortcam.graph.saliency import SelectedMasks, write_saliency, write_selection, write_weights
from ortcam.graph.standard import in_order, standardize
from ortcam.model.contract import Contract, count_scores
from ortcam.model.protobuf import rename

_INNER = "ortcam.inner."  # prefix of the model's values whose names the explainer uses itself
_OURS = ("image", "target", "target_class", "saliency", "scored", "error")


def build_explainer(proto: onnx.ModelProto, contract: Contract, plan: Packing) -> onnx.ModelProto:
    """Turn a model file into its explainer.

    Args:
        proto: the parsed file, with its weights inside; it is used up.
        contract: its contract.
        plan: the options of the explainer.

    Raises:
        ModelError: the scores cannot be found in the graph.
    """
    proto = standardize(proto)
    name, single = proto.graph.output[0].name, count_scores(proto) == 1
    model = scoring.build_scoring_graph(proto, contract, plan.convention.scored)
    rename(model.graph, {one: f"{_INNER}{one}" for one in ("activations", name, *_OURS)})
    graph = Builder()
    writer = _Writer(graph, model.graph, f"{_INNER}{name}", contract, plan, single)
    writer.write(name)
    made = onnx.ModelProto()
    made.CopyFrom(onnx.ModelProto(ir_version=max(model.ir_version, 8), opset_import=model.opset_import))
    made.functions.extend(model.functions)
    made.graph.CopyFrom(graph.to_proto("explainer"))
    return made


class _Writer:
    def __init__(
        self, graph: Builder, model: onnx.GraphProto, result: str, contract: Contract, plan: Packing, single: bool
    ) -> None:
        self.graph, self.model, self.result, self.contract, self.plan = graph, model, result, contract, plan
        self.single = single
        self.size = plan.input_size(contract.image_layout)

    def write(self, name: str) -> None:
        graph, plan = self.graph, self.plan
        if plan.raw:
            photo = graph.input("image", np.uint8, ["height", "width", 3])
        else:
            photo = graph.input("image", np.float32, [1, *plan.input_shape])
        target = graph.input("target", np.int64, ["targets"])
        if plan.target is not None:
            graph.default("target", np.array([plan.target], np.int64))
        image, place = self._write_raw(photo) if plan.raw else self._write_tensor(photo)
        state = self._write_loop(image, target)
        valid = self._is_valid(target, graph.size(state.output, 0))
        maps, error = self._write_maps(state)
        saliency = place(maps * graph.reshape(graph.cast(valid, np.float32), -1, 1, 1))
        size = ["height", "width"] if plan.raw else self.size
        graph.output(state.output, name, ["classes"])
        # Inputs and outputs have one namespace, so it is not called `target` again.
        graph.output(graph.where(valid, state.targets, target), "target_class", ["targets"])
        graph.output(saliency, "saliency", ["targets", *size])
        graph.output(graph.size(state.scores, 0), "scored", [1])
        graph.output(error, "error", ["targets", 3])

    def _write_raw(self, photo: Value) -> tuple[Value, Callable[[Value], Value]]:
        graph, known = self.graph, self.contract.preprocessing
        assert known is not None
        pixels = graph.size(photo, 0) * graph.size(photo, 1)
        fault = self._check(graph.equal(pixels, 0), "the image has no pixels; expected uint8 [height,width,3]")
        rows, columns = photo_sides(graph, photo, known, fault)
        image = write_preprocessing(graph, photo, rows, columns, known, self.contract.image_layout)
        return image, lambda maps: write_placing(graph, maps, rows, columns, known)

    def _write_tensor(self, image: Value) -> tuple[Value, Callable[[Value], Value]]:
        fault = self._check(self._is_wild(image), "the image has NaN or infinite values; expected finite numbers")
        return image + self.graph.cast(fault, np.float32), lambda maps: maps

    def _write_loop(self, image: Value, target: Value) -> Carried:
        graph = self.graph
        # 1 is computed, because OpenVINO takes the shape of a constant for the shape of the state in all turns.
        one = graph.maximum(graph.minimum(graph.size(target, 0), 1), 1)
        zero = graph.full(one, 0, np.int64)
        plain = graph.constant(np.array([[0, 0, 1]], np.float32))
        start = Carried(
            activations=graph.full(graph.shape(one, *self.plan.layer_size), 0.0, np.float32),
            output=graph.full(one, 0.0, np.float32),
            targets=graph.full(graph.size(target, 0), 0, np.int64),
            affine=graph.op("Expand", plain, graph.shape(one, 3)),
            channels=zero,
            rows=zero,
            queue=zero,
            scores=graph.full(graph.shape(0, one), 0.0, np.float32),
            surrogate=self._write_unseen(one),
        )

        def turn(number: Value, *values: Value) -> list[Value]:
            return self._write_turn(graph.equal(number, 0), image, target, Carried.of_values(values))

        return Carried.of_values(graph.loop(None, start.values(), turn, ranks=start.ranks(), condition=True))

    def _write_turn(self, first: Value, image: Value, target: Value, state: Carried) -> list[Value]:
        graph, plan = self.graph, self.plan
        output, logits, activations, scores = self._write_model(first, image, state)

        def begin() -> list[Value]:
            return self._write_beginning(output, logits, activations, target).values()

        def go_on() -> list[Value]:
            run = graph.minimum(graph.size(state.queue, 0), plan.batch_size)
            seen = graph.concat([state.scores, graph.slice(scores, 0, run, 0)], 0)
            left = graph.slice(state.queue, run, np.iinfo(np.int64).max, 0)
            return replace(state, queue=left, scores=seen).values()

        after = Carried.of_values(graph.branch(first, begin, go_on))
        if plan.budget is not None:
            after = self._write_budget(first, after)
        going = graph.scalar(graph.size(after.queue, 0) > 0)
        return [going, *after.values()]

    def _write_model(self, first: Value, image: Value, state: Carried) -> tuple[Value, Value, Value, Value]:
        """Run the model on the next batch of the queue: output, logits, activations [b,K,h,w], scores [b,T]."""
        graph, plan, contract = self.graph, self.plan, self.contract
        waiting = graph.size(state.queue, 0)
        if plan.fixed_batch:
            count = graph.constant([plan.batch_size])
        elif plan.pads:
            count = graph.where(first, graph.constant([1]), graph.constant([plan.batch_size]))
        else:
            count = graph.minimum(waiting, plan.batch_size)
        picked = graph.gather(state.queue, graph.minimum(graph.arange(count), waiting - 1))
        channels = graph.gather(state.channels, picked)
        aligned = plan.convention.mask_align_corners
        rows, columns = (interpolation_matrix(*pair, aligned) for pair in zip(self.size, plan.layer_size, strict=True))
        inputs = {
            names.PHOTOS: image,
            names.PHOTO_INDEX: graph.constant([0]),
            names.BANK: state.activations,
            names.NUMBERS: channels,
            names.AFFINE: graph.reshape(graph.gather(state.affine, channels), -1, 3, 1, 1),
            names.ROWS: graph.constant(rows[None, None]),
            names.COLUMNS: graph.constant(np.ascontiguousarray(columns.T)),
            names.TARGETS: graph.op(
                "Expand", graph.expand_dims(state.targets, 0), graph.shape(count, graph.size(state.targets, 0))
            ),
        }
        for name, value in inputs.items():
            graph.named(value, name)
        masked = (one for one in self.model.value_info if one.name == f"{_INNER}image")
        graph.embed(in_order(self.model.node), self.model.initializer, masked)
        weight = plan.convention.weight
        scored = names.TARGET_LOG_PROBABILITIES if weight == "probability" else names.TARGET_LOGITS
        made = (self.result, names.LOGITS, f"{_INNER}activations", scored)
        output, logits, activations, scores = (graph.refer(name, np.float32) for name in made)
        if self.single:
            output = self._write_both_sides(output, logits)
        if contract.activations_layout == "NHWC":
            activations = graph.op("Transpose", activations, perm=[0, 3, 1, 2])
        if any(node.op_type == "DequantizeLinear" for node in self.model.node):
            # ONNX Runtime moves such a node towards its reader, and crashes if the reader is an If that captures the
            # value. It moves no such node over a Gather.
            row = graph.constant([0])
            output, logits, activations = (graph.gather(value, row) for value in (output, logits, activations))
        return output, logits, activations, scores

    def _write_both_sides(self, output: Value, logits: Value) -> Value:
        """output [b,1] and its logits [b,2] -> [b,2]: the model's output for each of its two classes."""
        graph, contract = self.graph, self.contract
        factor, offset = contract.output_scale or (1.0, 0.0)
        if contract.output == "log_probabilities":
            return graph.op("Softplus", -logits) * -factor + offset
        both = output * np.array([[-1.0, 1.0]], np.float32)
        ends = 2 * offset if contract.output == "logits" else factor + 2 * offset  # the sum of the two sides
        return both + np.array([[ends, 0.0]], np.float32)

    def _write_beginning(self, output: Value, logits: Value, activations: Value, target: Value) -> Carried:
        """After the plain pass: find the classes and the masks to run."""
        graph, plan = self.graph, self.plan
        output, logits, layer = (graph.slice(value, 0, 1, 0) for value in (output, logits, activations))
        wild = self._is_wild(logits) | self._is_wild(layer)
        fault = self._check(wild, "the model returns NaN or infinite values for this image")
        classes = graph.size(logits, 1)
        valid = self._is_valid(target, classes)
        none = graph.equal(graph.size(target, 0), 0)
        wrong = none | graph.cast(graph.reduce("Max", graph.concat([
            graph.cast(~valid, np.int64), graph.constant([0])], 0), keep=True), np.bool_)  # fmt: skip
        fault = fault + self._check(
            wrong, "target is out of range; expected class indices from 0, or -1: the top class"
        )
        top = graph.reshape(graph.op("ArgMax", logits, axis=1, keepdims=1), 1)
        classes_asked = graph.where(graph.equal(target, -1), top, graph.where(valid, target, 0)) + fault
        three = graph.reshape(layer, graph.size(layer, 1), *plan.layer_size)
        selection = write_selection(graph, three, plan.convention, self.size, plan.layer_size)
        count = graph.size(selection.channels, 0)
        queue = graph.arange(count)
        if plan.budget is not None:  # if there are more masks, stages are chosen later
            all_at_once = graph.where(self._is_predicted(selection), graph.constant([0]), count)
            queue = graph.slice(queue, 0, all_at_once, 0)
        return Carried(
            activations=three,
            output=graph.reshape(output, -1),
            targets=classes_asked,
            affine=selection.affine,
            channels=selection.channels,
            rows=selection.rows,
            queue=queue,
            scores=graph.full(graph.shape(0, graph.size(target, 0)), 0.0, np.float32),
            surrogate=self._write_unseen(graph.maximum(count, 1)),
        )

    def _write_unseen(self, count: Value) -> surrogates.SurrogateValues:
        """Return a surrogate of `count` masks without scores; empty without a budget."""
        return {} if self.plan.budget is None else budgets.write_unseen(self.graph, count)

    def _write_budget(self, first: Value, state: Carried) -> Carried:
        """Start a surrogate after the plain pass; predict after a stage; then choose the next stage."""
        graph, plan = self.graph, self.plan
        assert plan.budget is not None
        layer = graph.reshape(state.activations, graph.size(state.activations, 0), *plan.layer_size)
        selection = SelectedMasks(state.affine, state.channels, state.rows)
        done, most = graph.size(state.scores, 0), graph.constant([plan.budget])
        predicted = self._is_predicted(selection)
        ended = predicted & graph.equal(graph.size(state.queue, 0), 0)

        known = state.surrogate
        known = self._write_step(
            predicted & first,
            known,
            ("kernel", "parts", "area", "direction"),
            lambda known: budgets.write_start(graph, known, layer, selection, plan.layer_size),
        )
        known = self._write_step(
            ended & ~first,
            known,
            surrogates.PREDICTED,
            lambda known: surrogates.write_prediction(graph, known, graph.expand_dims(state.scores, 0)),
        )
        count = budgets.stage_size(graph, done, most)
        more = ended & (most > done)
        known = self._write_step(
            more,
            known,
            surrogates.CHOSEN,
            lambda known: surrogates.write_choice(graph, self._with_basis(known), count),
        )
        chosen = graph.reshape(known["chosen"], -1)
        begin = graph.where(more, done, graph.size(chosen, 0))
        new = graph.slice(chosen, begin, np.iinfo(np.int64).max, 0)
        return replace(state, queue=graph.concat([state.queue, new], 0), surrogate=known)

    def _write_step(
        self,
        condition: Value,
        known: surrogates.SurrogateValues,
        changing: tuple[str, ...],
        step: Callable[[surrogates.SurrogateValues], surrogates.SurrogateValues],
    ) -> surrogates.SurrogateValues:
        """Change the fields `changing` of a surrogate with `step` if the condition is true."""

        def taken() -> list[Value]:
            changed = step(known)
            return [changed[name] for name in changing]

        values = self.graph.branch(condition, taken, lambda: [known[name] for name in changing])
        return known | dict(zip(changing, values, strict=True))

    def _is_predicted(self, selection: SelectedMasks) -> Value:
        """Whether a photo has more masks than the budget, without the blank mask, bool [1]: `Limits.most`."""
        graph, plan = self.graph, self.plan
        assert plan.budget is not None
        count = graph.size(selection.channels, 0)
        if plan.convention.constant_channels == "skip":
            return count > plan.budget
        scale = graph.slice(graph.gather(selection.affine, selection.channels), 1, 2, 1)
        blank = graph.reduce("Max", graph.cast(graph.equal(scale, 0.0), np.int64))
        return count - blank > plan.budget

    def _write_maps(self, state: Carried) -> tuple[Value, Value]:
        """scores of the masks that were run -> maps float32 [T,h_in,w_in], and their errors float32 [T,3]."""
        graph, plan = self.graph, self.plan
        fault = self._check(self._is_wild(state.scores), "the model returns NaN or infinite values for a masked image")
        scores = state.scores + graph.cast(fault, np.float32)
        selection = SelectedMasks(state.affine, state.channels, state.rows)
        error = graph.full(graph.shape(graph.size(state.targets, 0), 3), 0.0, np.float32)  # of exact maps
        if state.surrogate:
            seen, exact = scores, error
            scores, error = graph.branch(
                self._is_predicted(selection),
                lambda: [
                    budgets.write_scores(graph, state.surrogate, seen),
                    self._write_errors(state.surrogate, exact),
                ],
                lambda: [seen, exact],
            )
        weights = write_weights(graph, scores, selection, plan.convention)
        flat = graph.reshape(state.activations, graph.size(state.activations, 0), -1)
        sums = graph.reshape(weights @ flat, -1, *plan.layer_size)
        # If no channel varies, the map is zero instead of rounding errors of their sum.
        varies = graph.reduce("Max", graph.slice(state.affine, 1, 2, 1)) > 0.0
        sums = graph.where(varies, sums, 0.0)
        return write_saliency(graph, sums, plan.convention, self.size, plan.layer_size), error

    def _write_errors(self, surrogate: surrogates.SurrogateValues, exact: Value) -> Value:
        """Return the errors of maps with a budget; NaN if there are too few scores for an estimate."""
        assert self.plan.budget is not None
        if self.plan.budget < FEWEST_FOR_AN_ERROR:
            return exact + np.nan
        return budgets.write_errors(self.graph, self._with_basis(surrogate))

    def _with_basis(self, surrogate: surrogates.SurrogateValues) -> surrogates.SurrogateValues:
        """Add the smooth directions as a constant of the current graph."""
        directions = smooth_directions(budgets.surrogate_grid(self.plan.layer_size))
        return surrogate | {"basis": self.graph.constant(directions)}

    def _is_valid(self, target: Value, classes: Value) -> Value:
        return (target >= -1) & (classes > target)

    def _is_wild(self, value: Value) -> Value:
        """Whether a tensor has NaN or infinite values, bool [1]."""
        graph = self.graph
        wild = graph.op("IsNaN", value) | graph.op("IsInf", value)
        flat = graph.concat([graph.reshape(graph.cast(wild, np.int32), -1), graph.constant(np.zeros(1, np.int32))], 0)
        return graph.cast(graph.reduce("Max", flat, 0, keep=True), np.bool_)

    def _check(self, wrong: Value, message: str) -> Value:
        """Fail if `wrong`, bool [1], is true: ONNX has no errors, so an index of a named node goes out of bounds.

        Returns:
            int64 [1], 0. Add it to values that must be computed after the check.
        """
        graph = self.graph
        return graph.gather(graph.constant([0]), graph.cast(wrong, np.int64), name=f"ortcam: {message}")
