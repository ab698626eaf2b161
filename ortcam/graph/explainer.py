"""Build the explainer graph: a method and one photo as an ordinary ONNX graph for any runtime.

    image, targets -> the model's results, targets, saliency, scored, error

Methods of one pass are written by `ortcam.graph.onepass`, and Score-CAM here. A Loop holds the model, so the file has
its weights once. The weights are initializers of the loop's body, where ONNX Runtime optimises them. If weights are
captured from outside, convolutions keep their plain layout, and take 2.4 times as long. The first turn is the plain
pass: one image, unmasked. It fills a queue of masks. Every further turn runs a batch of the queue, until the queue is
empty. With a budget, the turn that empties the queue predicts all scores and chooses the next stage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import onnx

from ortcam.core.budget import FEWEST_FOR_AN_ERROR
from ortcam.core.convention import interpolation_matrix
from ortcam.core.surrogate import smooth_directions
from ortcam.graph import budget as budgets
from ortcam.graph import names, scoring, surrogates
from ortcam.graph.asking import Asking, ClassAsking, Explained, Values
from ortcam.graph.builder import Builder, Value
from ortcam.graph.frame import INNER, Frame
from ortcam.graph.onepass import OnePass
from ortcam.graph.packed_tasks import ASKING
from ortcam.graph.packing import Carried, Packing
from ortcam.graph.saliency import SelectedMasks, write_saliency, write_selection, write_weights
from ortcam.graph.standard import in_order, standardize
from ortcam.model.contract import Contract, count_scores
from ortcam.model.protobuf import rename


def build_explainer(proto: onnx.ModelProto, contract: Contract, plan: Packing) -> onnx.ModelProto:
    """Turn a model file into its explainer.

    Args:
        proto: the parsed file, with its weights inside; it is used up.
        contract: its contract.
        plan: the options of the explainer.

    Raises:
        ModelError: the scores cannot be found in the graph.
        LayerError: the model has no tail behind its layer, and the method needs it.
    """
    proto = standardize(proto)
    graph = Builder()
    made = onnx.ModelProto()
    made.CopyFrom(onnx.ModelProto(ir_version=max(proto.ir_version, 8), opset_import=proto.opset_import))
    made.functions.extend(proto.functions)
    asking: Asking
    if contract.classifies:
        name = proto.graph.output[0].name
        asking, results = ClassAsking(graph, plan, name), {"output": name}
    else:
        asking, results = ASKING[contract.task](graph, contract, plan), contract.outputs
    writer: Frame
    if plan.method["name"] != "score-cam":
        writer = OnePass(graph, proto, contract, plan, asking, results)
    else:
        single = contract.classifies and count_scores(proto) == 1
        model = scoring.build_scoring_graph(proto, contract, plan.convention.scored)
        rename(model.graph, {one: f"{INNER}{one}" for one in ("activations", *results.values(), *asking.names)})
        inner = {role: f"{INNER}{name}" for role, name in results.items()}
        writer = _Writer(graph, model.graph, inner, contract, plan, asking, single)
    writer.write()
    made.graph.CopyFrom(graph.to_proto("explainer"))
    return made


class _Writer(Frame):
    """Score-CAM: a Loop around the model."""

    def __init__(
        self,
        graph: Builder,
        model: onnx.GraphProto,
        results: Mapping[str, str],
        contract: Contract,
        plan: Packing,
        asking: Asking,
        single: bool,
    ) -> None:
        super().__init__(graph, contract, plan, asking, single)
        self.model = model
        self.results = {**results, "logits": names.LOGITS} if contract.classifies else results

    def explain(self, image: Value) -> Explained:
        state = self._write_loop(image)
        maps, error = self._write_maps(state)
        return Explained(state.kept, maps, self.graph.size(state.scores, 0), error)

    def _write_loop(self, image: Value) -> Carried:
        graph = self.graph
        # 1 is computed, because OpenVINO takes the shape of a constant for the shape of the state in all turns.
        one = graph.maximum(graph.minimum(self.asking.count(), 1), 1)
        zero = graph.full(one, 0, np.int64)
        plain = graph.constant(np.array([[0, 0, 1]], np.float32))
        start = Carried(
            activations=graph.full(graph.shape(one, *self.plan.layer_size), 0.0, np.float32),
            kept=self.asking.begin(one),
            affine=graph.op("Expand", plain, graph.shape(one, 3)),
            channels=zero,
            rows=zero,
            queue=zero,
            scores=graph.full(graph.shape(0, one), 0.0, np.float32),
            surrogate=self._write_unseen(one),
        )

        def turn(number: Value, *values: Value) -> list[Value]:
            return self._write_turn(graph.equal(number, 0), image, start.with_values(values))

        ranks = start.ranks(self.asking.ranks)
        return start.with_values(graph.loop(None, start.values(), turn, ranks=ranks, condition=True))

    def _write_turn(self, first: Value, image: Value, state: Carried) -> list[Value]:
        graph, plan = self.graph, self.plan
        results, activations, scores = self._write_model(first, image, state)

        def begin() -> list[Value]:
            return self._write_beginning(results, activations).values()

        def go_on() -> list[Value]:
            run = graph.minimum(graph.size(state.queue, 0), plan.batch_size)
            seen = graph.concat([state.scores, graph.slice(scores, 0, run, 0)], 0)
            left = graph.slice(state.queue, run, np.iinfo(np.int64).max, 0)
            return replace(state, queue=left, scores=seen).values()

        after = state.with_values(graph.branch(first, begin, go_on))
        if plan.budget is not None:
            after = self._write_budget(first, after)
        going = graph.scalar(graph.size(after.queue, 0) > 0)
        return [going, *after.values()]

    def _write_model(self, first: Value, image: Value, state: Carried) -> tuple[dict[str, Value], Value, Value]:
        """Run the model on the next batch of the queue: its results [b,...], activations [b,K,h,w], scores [b,T]."""
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
                "Expand",
                graph.expand_dims(state.kept["targets"], 0),
                graph.shape(count, graph.size(state.kept["targets"], 0)),
            ),
        }
        inputs |= self.asking.feeds(state.kept)
        for name, value in inputs.items():
            graph.named(value, name)
        masked = (one for one in self.model.value_info if one.name == f"{INNER}image")
        graph.embed(in_order(self.model.node), self.model.initializer, masked)
        scored = names.TARGET_LOG_PROBABILITIES if plan.convention.of_probability else names.TARGET_LOGITS
        results = {role: graph.refer(name, np.float32) for role, name in self.results.items()}
        activations, scores = (graph.refer(name, np.float32) for name in (f"{INNER}activations", scored))
        if self.single:
            results["output"] = self.write_both_sides(results["output"], results["logits"])
        if contract.activations_layout == "NHWC":
            activations = graph.op("Transpose", activations, perm=[0, 3, 1, 2])
        if any(node.op_type == "DequantizeLinear" for node in self.model.node):
            # ONNX Runtime moves such a node towards its reader, and crashes if the reader is an If that captures the
            # value. It moves no such node over a Gather.
            row = graph.constant([0])
            results = {role: graph.gather(value, row) for role, value in results.items()}
            activations = graph.gather(activations, row)
        return results, activations, scores

    def _write_beginning(self, results: Values, activations: Value) -> Carried:
        """After the plain pass: find the targets and the masks to run."""
        graph, plan = self.graph, self.plan
        results = {role: graph.slice(value, 0, 1, 0) for role, value in results.items()}
        layer = graph.slice(activations, 0, 1, 0)
        found = self.asking.find(results, layer)
        three = graph.reshape(layer, graph.size(layer, 1), *plan.layer_size)
        selection = write_selection(graph, three, plan.convention, self.size, plan.layer_size)
        count = graph.size(selection.channels, 0)
        queue = graph.arange(count)
        if plan.budget is not None:  # if there are more masks, stages are chosen later
            all_at_once = graph.where(self._is_predicted(selection), graph.constant([0]), count)
            queue = graph.slice(queue, 0, all_at_once, 0)
        return Carried(
            activations=three,
            kept=self.asking.keep(results, found),
            affine=selection.affine,
            channels=selection.channels,
            rows=selection.rows,
            queue=queue,
            scores=graph.full(graph.shape(0, self.asking.count()), 0.0, np.float32),
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
            lambda known: budgets.write_start(
                graph, known, layer, selection, plan.layer_size, plan.convention.is_centred
            ),
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
        scores = self.checked(state.scores)
        selection = SelectedMasks(state.affine, state.channels, state.rows)
        error = graph.full(graph.shape(graph.size(state.kept["targets"], 0), 3), 0.0, np.float32)  # of exact maps
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
