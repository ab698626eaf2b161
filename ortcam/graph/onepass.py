"""Build the explainer graph of a method that needs one pass of the model: the model, its tail, and the method's sums.

The model's nodes are written once, for the plain pass. The nodes of its tail are written once more, for all changed
features together, and read the same weights. So the file has no Loop and its weights once. The engine's methods are in
`ortcam.methods`; their definitions are there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import onnx

from ortcam.core import windows
from ortcam.core.convention import TINY
from ortcam.graph import names
from ortcam.graph.asking import Asking, Explained
from ortcam.graph.builder import Builder, Value
from ortcam.graph.checks import check
from ortcam.graph.frame import INNER, Frame
from ortcam.graph.fusedmap import bank_sizes, write_fused
from ortcam.graph.packing import Packing
from ortcam.graph.saliency import write_saliency
from ortcam.graph.scores import write_class_scores
from ortcam.graph.standard import in_order
from ortcam.graph.tails import Changes, Tail, build_tail, write_tail
from ortcam.graph.wiring import Wiring
from ortcam.model.contract import ACTIVATIONS, SEQUENCE, Contract, count_scores, output_name
from ortcam.model.protobuf import rename

_MOST_DEVIATION = 1e-3  # of CAM's sum of all places, relative to the sum of their sizes
_SQUARINGS = 24  # of Eigen-CAM's matrix: its eigenvalues are raised to the power 2^24


def count_tails(method: Mapping[str, Any], shape: tuple[int, int, int], stage: tuple[int, int, int]) -> int:
    """Return how many changed features a method runs at most, for a layer and a stage of (K, h, w)."""
    channels, height, width = shape
    places = height * width
    if method["name"] == "fused":
        return max(bank_sizes(method, shape[1:], stage[1:]))
    return {"cam": places + 1, "recipro-cam": places, "ablation-cam": channels, "eigen-cam": 0}[method["name"]]


class OnePass(Frame):
    """CAM, Recipro-CAM, Ablation-CAM, Eigen-CAM, and the fused map without masked images."""

    def __init__(
        self,
        graph: Builder,
        proto: onnx.ModelProto,
        contract: Contract,
        plan: Packing,
        asking: Asking,
        results: Mapping[str, str],
    ) -> None:
        """Begin a graph.

        Args:
            graph, contract, plan, asking: as for `Frame`.
            proto: the parsed model file, with its weights inside; it is used up.
            results: the outputs of the file that are kept, by their roles.
        """
        super().__init__(graph, contract, plan, asking, contract.classifies and count_scores(proto) == 1)
        self._stages = () if plan.stage is None else (plan.stage,)
        wirings = [_wiring(plan.method, place) for place in range(1 + len(self._stages))]
        self._tails = [self._build_tail(proto, wiring) for wiring in wirings if wiring is not None]
        if contract.classifies:
            nodes = write_class_scores(contract, proto.graph, self.single, False)
            (last,) = (at for at, node in enumerate(nodes) if names.LOGITS in node.output)
            proto.graph.node.extend(nodes[: last + 1])
        self._renamed = {one: f"{INNER}{one}" for one in (ACTIVATIONS, *results.values(), *asking.names)}
        rename(proto.graph, self._renamed)
        self._model = proto.graph
        self._results = {role: f"{INNER}{name}" for role, name in results.items()}
        if contract.classifies:
            self._results["logits"] = names.LOGITS

    def _build_tail(self, proto: onnx.ModelProto, wiring: Wiring) -> Tail:
        shape = self.plan.stage_shape if wiring.layer else self.plan.layer_shape
        return build_tail(proto, self.contract, wiring, shape, self._stages, self.plan.sequence)

    def explain(self, image: Value) -> Explained:
        graph, plan = self.graph, self.plan
        results, features = self._write_model(image)
        found = self.asking.find(results, features)
        self._targets = self.asking.feeds(found)
        layer = features
        if self.contract.activations_layout == "NHWC":
            layer = graph.op("Transpose", features, perm=[0, 3, 1, 2])
        layer = graph.reshape(layer, *plan.layer_shape)
        logits = self.asking.logits(results, found)
        sums, scored = _WRITERS[plan.method["name"]](self, features, layer, logits, found["targets"])
        small = plan.stage_shape[1:] if plan.method["name"] == "fused" else plan.layer_size
        maps = write_saliency(graph, sums, plan.convention, self.size, small)
        error = graph.full(graph.shape(self.asking.count(), 3), np.nan, np.float32)
        return Explained(self.asking.keep(results, found), maps, scored, error)

    def _write_model(self, image: Value) -> tuple[dict[str, Value], Value]:
        """Run the model on the photo: its results [1,...], and the layer with a first axis of 1."""
        graph, plan = self.graph, self.plan
        if plan.fixed_batch:
            image = graph.gather(image, graph.full(graph.constant([plan.batch_size]), 0, np.int64))
        graph.named(image, f"{INNER}image")
        graph.embed(in_order(self._model.node), self._model.initializer, ())
        results = {role: graph.refer(name, np.float32) for role, name in self._results.items()}
        features = graph.refer(f"{INNER}{ACTIVATIONS}", np.float32)
        if self.single:
            results["output"] = self.write_both_sides(results["output"], results["logits"])
        if plan.fixed_batch:
            results = {role: graph.slice(one, 0, 1, 0) for role, one in results.items()}
            features = graph.slice(features, 0, 1, 0)
        return results, features

    def _write_tails(
        self, features: Value, bank: Value | None, classes: Value, scored: str = names.TARGET_LOGITS
    ) -> Value:
        """Run the tail on all changed features: scores [M,T]."""
        plan = self.plan
        count = count_tails(plan.method, plan.layer_shape, plan.stage_shape)
        changes = Changes(features, self._write_others(), bank, count, classes, (scored,), self._targets)
        scores = write_tail(self.graph, self._tails[0], changes, plan.batch_size, plan.fixed_batch, self._renamed)
        return self.checked(scores)

    def _write_others(self) -> Value | None:
        """Return the tokens of the photo that are no patches, [1,O,D]; None if the layer is no sequence."""
        graph, sequence = self.graph, self.plan.sequence
        if sequence is None:
            return None
        tokens = graph.slice(graph.refer(SEQUENCE, np.float32), 0, 1, 0)
        end = sequence.first + sequence.places
        return graph.concat(
            [graph.slice(tokens, 0, sequence.first, 1), graph.slice(tokens, end, np.iinfo(np.int64).max, 1)], 1
        )

    def _write_windows(self, gaussian: bool) -> Value:
        """Return masks float32 [hw,h,w] that keep one place each, or a Gaussian around it."""
        height, width = self.plan.layer_size
        rows, columns = (windows.tent(length) if gaussian else np.eye(length) for length in (height, width))
        down = self.graph.constant(rows.astype(np.float32)[:, None, :, None])
        across = self.graph.constant(columns.astype(np.float32)[None, :, None, :])
        return self.graph.reshape(down * across, height * width, height, width)

    def _as_maps(self, values: Value) -> Value:
        """values [hw,T] -> [T,h,w]."""
        return self.graph.reshape(values.T, -1, *self.plan.layer_size)

    def write_cam(self, features: Value, layer: Value, logits: Value, classes: Value) -> tuple[Value, Value]:
        """Write `ortcam.methods.cam`."""
        graph = self.graph
        nothing = graph.constant(np.zeros((1, *self.plan.layer_size), np.float32))
        scores = self._write_tails(features, graph.concat([self._write_windows(False), nothing], 0), classes)
        without = graph.slice(scores, -1, np.iinfo(np.int64).max, 0)  # [1,T]
        clean = graph.gather(logits, classes, 1)
        parts = graph.slice(scores, 0, -1, 0) - without  # [hw,T]
        missing = graph.op("Abs", graph.reduce("Sum", parts, 0, keep=True) - (clean - without))
        size = graph.reduce("Sum", graph.op("Abs", parts), 0, keep=True) + graph.op("Abs", clean)
        wrong = graph.cast(missing > size * _MOST_DEVIATION, np.int64)
        fault = check(
            graph,
            graph.cast(graph.reshape(graph.reduce("Max", wrong), 1), np.bool_),
            "the scores do not add up over the places of the layer; expected a pooling and a linear head behind it",
        )
        return self._as_maps(parts + graph.cast(fault, np.float32)), graph.size(scores, 0)

    def write_reciprocam(self, features: Value, layer: Value, logits: Value, classes: Value) -> tuple[Value, Value]:
        """Write `ortcam.methods.reciprocam`."""
        graph, method = self.graph, self.plan.method
        probability = method["score"] == "probability" and self.contract.task != "value"  # values have none
        scored = names.TARGET_LOG_PROBABILITIES if probability else names.TARGET_LOGITS
        scores = self._write_tails(features, self._write_windows(method["kernel"] == "gaussian"), classes, scored)
        values = graph.op("Exp", scores) if probability else scores
        return self._as_maps(values), graph.size(scores, 0)

    def write_ablationcam(self, features: Value, layer: Value, logits: Value, classes: Value) -> tuple[Value, Value]:
        """Write `ortcam.methods.ablationcam`. Channels that are zero run too, but have no weight and do not count."""
        graph = self.graph
        scores = self._write_tails(features, None, classes)  # [K,T]
        clean = graph.gather(logits, classes, 1)  # [1,T]
        divisor = graph.where(graph.op("Abs", clean) >= TINY, clean, 1.0)
        live = graph.reduce("Max", graph.op("Abs", layer), 1, 2) > 0.0  # [K]
        weights = graph.where(graph.expand_dims(live, 1), (clean - scores) / divisor, 0.0).T
        sums = weights @ graph.reshape(layer, self.plan.layer_shape[0], -1)
        return (
            graph.reshape(sums, -1, *self.plan.layer_size),
            graph.reduce("Sum", graph.cast(live, np.int64), 0, keep=True),
        )

    def write_eigencam(self, features: Value, layer: Value, logits: Value, classes: Value) -> tuple[Value, Value]:
        """Write `ortcam.methods.eigencam`.

        The smaller of A A^T and A^T A is squared again and again. It becomes the product of its first eigenvector with
        itself. If two singular values are equal, any vector of their plane is a first one; here it is the nearest to
        the place (or channel) where the two are largest.
        """
        graph, (channels, height, width) = self.graph, self.plan.layer_shape
        lanes = graph.cast(graph.reshape(layer, channels, height * width), np.float64)  # [K,hw]
        if self.plan.method["centred"] == "yes":
            lanes = lanes - graph.reduce("Mean", lanes, 1, keep=True)
        over_channels = channels < height * width
        # Gemm instead of a Transpose and a MatMul: ONNX Runtime before 1.26 fuses these for float64 and then fails.
        gram = graph.op("Gemm", lanes, lanes, transA=int(not over_channels), transB=int(over_channels))
        power = gram
        for _ in range(_SQUARINGS):
            power = power / graph.maximum(graph.reduce("Max", graph.op("Abs", power)), float(TINY))
            power = power @ power
        diagonal = graph.reduce("Sum", power * graph.op("EyeLike", power), 0)
        vector = graph.gather(power, graph.op("ArgMax", diagonal, axis=0, keepdims=1), 1)  # [hw,1] or [K,1]
        length = graph.op("Sqrt", graph.reduce("SumSquare", vector))
        vector = vector / graph.maximum(length, float(TINY))
        if over_channels:
            component = graph.op("Gemm", lanes, vector, transA=1)
        else:  # A v is the left singular vector times its singular value
            seen = graph.reduce("Sum", (gram @ vector) * vector)
            component = vector * graph.op("Sqrt", graph.op("Relu", seen))
        component = graph.reshape(component, -1)
        active = graph.cast(graph.reduce("Sum", graph.reshape(layer, channels, -1), 0), np.float64)
        along = graph.reduce("Sum", component * (active - graph.reduce("Mean", active)))
        component = graph.where(graph.constant(0.0, np.float64) > along, -component, component)
        one = graph.reshape(graph.cast(component, np.float32), 1, height, width)
        sums = graph.op("Expand", one, graph.shape(graph.size(classes, 0), height, width))
        return sums, graph.constant([0])

    def write_fused(self, features: Value, layer: Value, logits: Value, classes: Value) -> tuple[Value, Value]:
        """Write `ortcam.methods.fused` without masked images."""
        graph, plan = self.graph, self.plan

        def tails(place: int, masks: Any) -> tuple[Value, Value]:
            content, others = features, self._write_others()
            if place and self._stages:
                content, others = graph.slice(graph.refer(output_name(1), np.float32), 0, 1, 0), None
            tail = self._tails[place if self._stages else 0]
            both = (names.TARGET_LOGITS, names.TARGET_LOG_PROBABILITIES)
            changes = Changes(content, others, graph.constant(masks), len(masks), classes, both, self._targets)
            at_once = plan.batch_size if plan.fixed_batch else min(plan.batch_size, len(masks))
            scores = write_tail(graph, tail, changes, at_once, plan.fixed_batch, self._renamed)
            scores = self.checked(scores, "masked features of the stage" if place else "masked features")
            count = graph.size(classes, 0)
            return graph.slice(scores, 0, count, 1), graph.slice(scores, count, np.iinfo(np.int64).max, 1)

        stage = layer
        if self._stages:
            stage = graph.slice(graph.refer(output_name(1), np.float32), 0, 1, 0)
            if self._stages[0].layout == "NHWC":
                stage = graph.op("Transpose", stage, perm=[0, 3, 1, 2])
        stage = graph.reshape(stage, plan.stage_shape[0], -1)
        return write_fused(graph, plan.method, plan.layer_size, plan.stage_shape[1:], logits, stage, tails)


# A writer takes the features [1,...] in the model's order, the layer [K,h,w], the logits [1,N] and the classes [T]. It
# returns the sums [T,h,w] and the number of changed features that were run, int64 [1].
_Writer = Callable[[OnePass, Value, Value, Value, Value], tuple[Value, Value]]
_WRITERS: dict[str, _Writer] = {
    "cam": OnePass.write_cam,
    "recipro-cam": OnePass.write_reciprocam,
    "ablation-cam": OnePass.write_ablationcam,
    "eigen-cam": OnePass.write_eigencam,
    "fused": OnePass.write_fused,
}
METHODS = tuple(_WRITERS)


def _wiring(method: Mapping[str, Any], layer: int) -> Wiring | None:
    """Return the change of a method's features, of the target layer (0) or a stage; None if it changes none."""
    if method["name"] == "eigen-cam":
        return None
    bank: Literal["given", "ablations"] = "ablations" if method["name"] == "ablation-cam" else "given"
    return Wiring(bank, at="layer", upsampled=False, layer=layer, copied=method.get("kernel") == "gaussian")
