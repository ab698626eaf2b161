"""Choose the layers to expose: the named layers, or the best candidate whose cells are places of the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import onnx_ir as ir

from ortcam.errors import LayerError
from ortcam.exporters.places import Cells, Places, check_places
from ortcam.exporters.sources import Converted, SourceOptions
from ortcam.graph.axes import find_axes, is_map
from ortcam.graph.backbone import find_task_layers
from ortcam.graph.layers import Candidate, FeatureMap, Reading, all_values, find_candidates, find_layer, module_outputs
from ortcam.model.contract import Layout, output_name
from ortcam.runtime.shapes import complete_shapes

# The number of candidates to check if the first fails, and the number that a message lists.
_MOST_OTHERS = 8
_MOST_LISTED = 3


@dataclass(frozen=True)
class Target:
    """A graph, and the tensor in it that is to be exposed.

    Attributes:
        converted: the source with its graph.
        feature_map: the tensor.
        name: the user's name for it.
        layers: the source framework's layers.
        measured: the tensors whose shape was measured with one image.
        followed: whether its rows and columns can be followed through the graph from the image's.
    """

    converted: Converted
    feature_map: FeatureMap
    name: str
    layers: Mapping[str, ir.Value]
    measured: tuple[ir.Value, ...]
    followed: bool

    @property
    def source_layer(self) -> str | None:
        """The tensor's name among the source's layers; None without one."""
        return self.name if self.name in self.layers else None


@dataclass(frozen=True)
class Checked:
    """The result of checking the places of a file's target layer.

    Attributes:
        places: whether the layer's cells are places of the image.
        layout: where the layer's channels are.
        better: the candidate to expose instead; None to keep the exposed layer.
        notices: notices for the user.
    """

    places: Places
    layout: Layout
    better: Candidate | None = None
    notices: tuple[str, ...] = ()


class LayerChoice:
    """The layers of a source that can be exposed."""

    def __init__(self, converted: Converted, options: SourceOptions) -> None:
        """Complete the shapes of the source's graph, in place, and keep a copy: exposing a layer edits a graph."""
        self._layers, self._reading = options.layers, Reading(converted.image_layout, options.grid)
        measured = complete_shapes(converted.model, converted.folder, converted.input_shape)
        self._measured = {value.name for value in measured}
        self._converted, self._spare = converted, _copy(converted)

    def choose(self) -> list[Target]:
        """Return the layers that the user named, or the best candidate.

        Raises:
            LayerError: a layer is missing, no candidate exists, or two layers are the same tensor.
        """
        return _distinct([self._find(self._converted, layer) for layer in self._layers], self._layers)

    def check(self, draft: Path, source: Converted, targets: Sequence[Target]) -> list[Checked]:
        """Check the cells of the exposed layers; if they are not places, look for a right layout or layer.

        Args:
            draft: the exported file.
            source: the source, for its images and batches.
            targets: the exposed layers.

        Raises:
            LayerError: `auto` was given, and no candidate's cells are places of the image.
        """
        return [self._check(draft, source, targets, place) for place in range(len(targets))]

    def choose_again(self, checked: Sequence[Checked]) -> list[Target]:
        """Return the layers in the copy of the source's graph, each replaced by a better layer if there is one.

        Raises:
            LayerError: two layers are the same tensor.
        """
        spare = self._spare
        targets = []
        for layer, one in zip(self._layers, checked, strict=True):
            better = one.better
            found = self._find(spare, layer) if better is None else self._target(spare, better.feature_map, better.name)
            targets.append(found)
        return _distinct(targets, self._layers)

    def _check(self, draft: Path, source: Converted, targets: Sequence[Target], place: int) -> Checked:
        asked, chosen = self._layers[place], targets[place]
        own = Cells(output_name(place), chosen.feature_map.layout)
        (places,) = check_places(draft, draft.parent, source, [own])
        if places.verdict == "none" and chosen.followed:
            places = replace(places, verdict="followed")
        if not places.is_wrong:
            return Checked(places, own.layout)
        proto = onnx.load(draft, load_external_data=False)
        others = self._others(proto)
        turned = Cells(own.name, "NHWC" if own.layout == "NCHW" else "NCHW")
        cells = [turned, *(Cells(other.value, other.feature_map.layout, other.feature_map.tokens) for other in others)]
        proto.graph.output.extend(onnx.ValueInfoProto(name=other.value) for other in others)
        of_turned, *of_others = check_places(proto, draft.parent, source, cells)
        if of_turned.verdict == "confirmed":
            return Checked(of_turned, turned.layout)
        right = [pair for pair in zip(others, of_others, strict=True) if pair[1].verdict == "confirmed"]
        if asked != "auto" or (self._reading.grid is not None and not right):  # the user's word
            instead = f"; the next best layer is {right[0][0].name}" if right else ""
            notice = f"the maps of layer {chosen.name!r} show wrong places: {places.reason}{instead}"
            return Checked(places, own.layout, notices=(notice,))
        if not right:
            tried = ", ".join([chosen.name, *(other.name for other in others)][:_MOST_LISTED])
            raise LayerError(
                f"no candidate layer of {source.name} shows places of the image ({tried}: {places.reason}); to explain "
                "one all the same, name it with --layer"
            )
        better, of_better = right[0]
        return Checked(of_better, better.feature_map.layout, better)

    def _find(self, converted: Converted, layer: str) -> Target:
        if layer == "auto" and (found := self._candidates(converted)):
            return self._target(converted, found[0].feature_map, found[0].name)
        return self._target(
            converted, *find_layer(converted.model, layer, converted.name, self._reading, converted.layers)
        )

    def _candidates(self, converted: Converted) -> list[Candidate]:
        """Return the candidates for ``auto``, best first."""
        find = find_candidates if converted.is_classifier else find_task_layers
        return find(converted.model, self._reading, converted.layers)

    def _target(self, converted: Converted, feature_map: FeatureMap, name: str) -> Target:
        layers = module_outputs(converted.model.graph) if converted.layers is None else converted.layers
        measured = tuple(value for value in all_values(converted.model.graph) if value.name in self._measured)
        axes = find_axes(converted.model.graph, converted.image_layout)
        followed = is_map(axes.get(feature_map.value, ()))
        return Target(converted, feature_map, name, layers, measured, followed)

    def _others(self, proto: onnx.ModelProto) -> list[Candidate]:
        """Return the best candidates whose tensors the exported file still has under their own names."""
        spare = self._spare
        computed = {name for node in proto.graph.node for name in node.output}
        computed -= {value.name for value in proto.graph.output}
        return [candidate for candidate in self._candidates(spare) if candidate.value in computed][:_MOST_OTHERS]


def _distinct(targets: list[Target], asked: Sequence[str]) -> list[Target]:
    """Return the layers; refuse two layers that are the same tensor."""
    names: dict[ir.Value, str] = {}
    for target, name in zip(targets, asked, strict=True):
        value = target.feature_map.value
        if value in names:
            raise LayerError(
                f"layers {names[value]!r} and {name!r} are the same tensor of {target.converted.name}; expected each "
                "layer once"
            )
        names[value] = name
    return targets


def _copy(converted: Converted) -> Converted:
    """Return a source with a copy of its graph; the two share their weights."""
    model = converted.model.clone()
    if converted.layers is None:
        return replace(converted, model=model)
    values = {value.name: value for value in [*model.graph.inputs, *all_values(model.graph)]}
    layers = {name: values[value.name] for name, value in converted.layers.items() if value.name in values}
    return replace(converted, model=model, layers=layers)
