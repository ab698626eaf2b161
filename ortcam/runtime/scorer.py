"""Run a scoring graph with IO binding, so that data on the device stays there.

For each group of photos, the host sends the images twice: for the plain pass and for the changed inputs. The host
receives the channels of their target layers, and sends them back. For each batch, the host sends a few numbers per row,
and receives a score per target. Changed inputs exist only inside a run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ortcam.core.convention import Floats, interpolation_matrix
from ortcam.core.device import Device
from ortcam.core.forward import Forward
from ortcam.core.method import Scores
from ortcam.core.query import Baseline, Change, Channels, Grids, Maps, Rows
from ortcam.errors import ModelError
from ortcam.graph import names
from ortcam.graph.wiring import MASKED_IMAGE, Wiring
from ortcam.model.cam_model import CamModel
from ortcam.model.contract import SEQUENCE, output_name
from ortcam.runtime.batches import Inputs, Padding, batch_sizes, row_inputs
from ortcam.runtime.captured import GATE, NOT_CAPTURED, Batch, CapturedRuns
from ortcam.runtime.session import running

Progress = Callable[[int, int], None]
_SCORES = (names.TARGET_LOGITS, names.TARGET_LOG_PROBABILITIES)  # the fields of `Scores`, in order


@dataclass(frozen=True)
class Group:
    """P photos of one size whose changed inputs share batches.

    Attributes:
        photos: float32 [P,...], the input tensors.
        features: float32 [P*K,h,w] each, the activations of all photos, of the target layer and of earlier stages.
        passes: the plain pass of every photo.
        other_tokens: float32 [P,O,D], the tokens that are no patches, if the layer is taken from a sequence.
        references: the inputs that hold the references of the photos, of a model of another task.
        on_device: arrays that are on the device already: photos, features, banks of masks.
    """

    photos: Floats
    features: tuple[Floats, ...]
    passes: tuple[Forward, ...]
    other_tokens: Floats | None = None
    references: dict[str, Floats] = field(default_factory=dict)
    on_device: dict[Any, Any] = field(default_factory=dict)

    def per_photo(self, layer: int) -> int:
        """Return K, the number of channels of a layer of each photo."""
        return len(self.features[layer]) // len(self.photos)

    def layer(self, layer: int) -> tuple[int, int]:
        """Return the size (h, w) of the channels of a layer."""
        return self.features[layer].shape[1], self.features[layer].shape[2]

    @property
    def size(self) -> tuple[int, int]:
        """The model's input size (H, W)."""
        return self.passes[0].size


class Scorer:
    """Runs the scoring graph of one wiring. Many threads can use it."""

    def __init__(
        self,
        session: ort.InferenceSession,
        model: CamModel,
        device: Device,
        batch_size: int,
        padding: Padding,
        captures: bool = False,
        wiring: Wiring = MASKED_IMAGE,
    ) -> None:
        """Wrap a session.

        Args:
            session: a session of the scoring graph.
            model: the model file that the graph was built from.
            device: the device of the session's buffers.
            batch_size: the number of changed inputs per run.
            padding: the rule for filling up batches.
            captures: the session captures CUDA graphs.
            wiring: the wiring of the graph.
        """
        self._session = session
        self._model = model
        self._device = device
        self._padding = padding
        self._name = model.name
        self._wiring = wiring
        self.light = names.LIGHT_ROWS in session.get_modelmeta().custom_metadata_map
        # Of ablations, the logits alone.
        self.scores = _SCORES[: 1 if wiring.bank == "ablations" else 2]
        nothing = Baseline(np.zeros((1, 1, 1, 1), np.float32)) if wiring.replaces else None
        # Of rows that mask nothing.
        self._plain = Change(Grids((1, 1)) if wiring.bank == "grids" else Channels(), baseline=nothing)
        self._captured = CapturedRuns(session, self._name, device.type, device.id) if captures else None
        # On a GPU, two runs at once would take twice the memory, and would not be faster.
        self._turn = nullcontext() if device.type == "cpu" else Lock()
        # Another model may be in capture, so runs share the gate. `CapturedRuns` takes the gate itself.
        self._gate = GATE.shared if device.type == "cuda" and not captures else nullcontext
        self.batch_size = batch_size

    def close(self) -> None:
        """End the thread that a session with CUDA graphs runs in."""
        if self._captured is not None:
            self._captured.close()

    def forward(self, tensors: Floats) -> Group:
        """Run the model once on the input tensors [P,...], unmasked.

        Raises:
            ModelError: the model cannot be run, or a result has another shape than the contract states.
        """
        contract, count = self._model.contract, len(tensors)
        height, width = tensors.shape[2:] if contract.image_layout == "NCHW" else tensors.shape[1:3]
        rows = Rows.plain(count).take(0, self._model.batch or count)
        (of_rows,) = row_inputs(rows, 1, [len(rows)])
        inputs = {names.PHOTOS: tensors} | of_rows
        if self._wiring.bank == "given":
            inputs[names.BANK] = np.zeros((count, 1, 1), np.float32)
        if self._plain.baseline is not None:
            inputs[names.BASELINE] = self._plain.baseline.values
        fixed = self._fixed(self._plain, (1, 1), (height, width), len(rows))
        layouts = contract.layouts(self._model.stages)
        sequence = self._model.sequence
        results = self._model.results
        no_references = self._no_references(count)
        inputs |= no_references
        made = (*results, names.LOGITS, *map(output_name, range(len(layouts))), *([SEQUENCE] if sequence else []))

        def direct() -> list[Floats]:
            return self._run(self._session.io_binding(), inputs | fixed, made)

        if self._captured is None:
            found = direct()
        else:
            found = self._captured.run(Batch(False, inputs, fixed, dict.fromkeys(made), direct))
        outputs, (logits, *layers) = found[: len(results)], found[len(results) :]
        output = outputs[0]
        others = None
        if sequence is not None:
            *layers, tokens = layers
            others = np.delete(tokens[:count], np.s_[sequence.first : sequence.first + sequence.places], axis=1)
        self._check_shapes(outputs, layers[0])
        if not contract.classifies:  # references come later
            output = logits = np.empty((len(logits), 0), np.float32)
        for place, layout in enumerate(layouts):
            if layout == "NHWC":
                layers[place] = np.ascontiguousarray(layers[place].transpose(0, 3, 1, 2))
        passes = tuple(
            Forward(
                logits[i],
                output[i],
                layers[0][i],
                (height, width),
                tuple(stage[i] for stage in layers[1:]),
                () if contract.classifies else tuple(one[i] for one in outputs),
            )
            for i in range(count)
        )
        features = tuple(layer[:count].reshape(-1, *layer.shape[2:]) for layer in layers)
        return Group(tensors, features, passes, others, no_references)

    def score(
        self, group: Group, rows: Rows, change: Change | None = None, on_progress: Progress | None = None
    ) -> Scores:
        """Run changed inputs of a group's photos.

        Args:
            group: their plain passes.
            rows: the photo, mask and targets of each of the M inputs.
            change: the change that all rows share; it needs the wiring of the graph. None for rows that mask nothing.
            on_progress: called with (done, M) after every batch.
        """
        count, targets = rows.targets.shape
        logits, logs = (np.empty((count, targets if one in self.scores else 0), np.float32) for one in _SCORES)
        made = Scores(logits, logs, plain=self._model.contract.task == "value")
        change = change or self._plain
        run = _GroupRuns(self, group, change)
        sizes = self._batch_sizes(rows)
        per_photo = group.per_photo(change.layer) if isinstance(change.bank, Channels) else 0
        begin = 0
        for size, inputs in zip(sizes, row_inputs(rows.take(0, sum(sizes)), per_photo, sizes), strict=True):
            end = min(begin + size, len(rows))
            for whole, part in zip((made.logits, made.log_probabilities), run(inputs), strict=False):
                whole[begin:end] = part[: end - begin]
            begin += size
            if on_progress is not None:
                on_progress(end, len(rows))
        return made

    def _batch_sizes(self, rows: Rows) -> list[int]:
        """Return the sizes of the batches.

        At a layer, a batch has the rows of one photo where that costs no filling, so that its features are broadcast:
        copying them for every row takes longer than a small tail.
        """
        if self._wiring.at == "image" or self.light or self._padding != "none":
            return batch_sizes(len(rows), self.batch_size, self._padding)
        ends = [*(np.flatnonzero(np.diff(rows.photos)) + 1), len(rows)]
        counts = np.diff(ends, prepend=0)
        return [size for count in counts for size in batch_sizes(int(count), self.batch_size, self._padding)]

    def _run(self, binding: Any, inputs: Inputs, outputs: Sequence[str]) -> list[Floats]:
        """Run with `inputs` beside the bound inputs. Return the outputs."""
        for name, array in inputs.items():
            if self._device.type == "cpu":
                binding.bind_cpu_input(name, np.ascontiguousarray(array))
            else:
                binding.bind_ortvalue_input(name, self._upload(array))
        binding.clear_binding_outputs()
        for name in outputs:
            binding.bind_output(name)
        with self._turn, running(self._name), self._gate():
            self._session.run_with_iobinding(binding, None if self._captured is None else NOT_CAPTURED)
            results: list[Floats] = binding.copy_outputs_to_cpu()
            return results

    def _fixed(self, change: Change, small: tuple[int, int], size: tuple[int, int], count: int) -> Inputs:
        """Return the inputs that are the same for all batches of `count` rows.

        Args:
            change: the change that the rows share.
            small: the size of the masks before upsampling.
            size: the size of the image or the layer that is masked.
            count: the number of rows of a batch.
        """
        fixed: Inputs = {}
        if change.noise is not None:
            from ortcam.core.noise import plane

            fixed = {names.NOISE: plane(change.noise, size), names.NOISE_SAMPLE: np.array([change.noise.sample])}
        if not self._wiring.upsampled:
            return fixed
        if isinstance(change.bank, Grids):
            from ortcam.core.grids import grid_terms, shifted_matrices

            cells, shifts, limit = grid_terms(change.bank)
            rows, columns = (shifted_matrices(*pair) for pair in zip(size, change.bank.cells, strict=True))
            fixed |= {
                names.ROWS: rows[:, None],
                names.COLUMNS: columns[:, None].transpose(0, 1, 3, 2),
                names.GRID_CELLS: cells,
                names.GRID_SHIFTS: shifts,
                names.GRID_LIMIT: np.array([limit]),
            }
        else:
            rows = interpolation_matrix(size[0], small[0], change.align_corners)[None, None]
            if self._device.type != "cpu":
                rows = np.broadcast_to(rows, (count, *rows.shape[1:]))
            fixed |= {names.ROWS: rows, names.COLUMNS: interpolation_matrix(size[1], small[1], change.align_corners).T}
        return fixed

    def _no_references(self, count: int) -> dict[str, Floats]:
        """Return references for a plain pass of `count` photos; none for a classifier.

        Raises:
            ModelError: the file leaves a size free that references need.
        """
        task = self._model.contract.task
        if self._model.contract.classifies:
            return {}
        length, classes = self._model.reference_sizes
        inputs = {names.REFERENCES: np.zeros((count, length, 1), np.float32)}
        if task in ("detect", "segment"):
            inputs[names.REFERENCE_CLASSES] = np.zeros((count, classes, 1), np.float32)
        return inputs

    def _check_shapes(self, outputs: Sequence[Floats], activations: Floats) -> None:
        name = self._model.name
        if activations.ndim != 4:
            raise ModelError(
                f"{name}: the target layer has the shape {list(activations.shape)}; "
                "expected [batch,channels,height,width]"
            )
        if self._model.contract.classifies and outputs[0].ndim != 2:
            shape = list(outputs[0].shape)
            raise ModelError(f"{name}: the output has the shape {shape}; expected class scores [batch,N]")

    def _of_group(self, group: Group, change: Change) -> Inputs:
        """Return the inputs that all batches of a group share: the photos or features, the bank, the baseline."""
        content = group.photos
        if change.at == "layer":
            content = group.features[change.layer].reshape(len(group.photos), -1, *group.layer(change.layer))
            if self._model.contract.layouts(self._model.stages)[change.layer] == "NHWC":
                content = content.transpose(0, 2, 3, 1)
        shared = {names.PHOTOS: content, **group.references}
        if group.other_tokens is not None and change.at == "layer" and change.layer == 0:
            shared[names.OTHER_TOKENS] = group.other_tokens
        if self._wiring.bank == "given":
            shared[names.BANK] = _bank_of(group, change)
        if change.baseline is not None:
            shared[names.BASELINE] = change.baseline.values
        return shared

    def _upload(self, array: NDArray[Any]) -> Any:
        with running(self._name), self._gate():
            return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self._device.type, self._device.id)


class _GroupRuns:
    """Runs batches of one group with one change: with a binding that keeps their shared inputs, or as CUDA graphs."""

    def __init__(self, scorer: Scorer, group: Group, change: Change) -> None:
        self._scorer, self._group, self._change = scorer, group, change
        self._small = _bank_of(group, change).shape[1:]
        self._size = group.layer(change.layer) if change.at == "layer" else group.size
        self._binding: Any = None
        self._bound = 0  # the number of rows that the bound inputs fit; -1: any number

    def __call__(self, inputs: Inputs) -> list[Floats]:
        """Return the scores of a batch."""
        captured = self._scorer._captured
        if captured is None:
            return self._direct(inputs)
        shared = self._scorer._of_group(self._group, self._change)
        outputs = dict.fromkeys(self._scorer.scores, inputs[names.TARGETS].shape)
        batch = Batch(
            self._change.align_corners, inputs, self._fixed(inputs), outputs, lambda: self._direct(inputs),
            self._group, shared, self._shared,
        )  # fmt: skip
        return captured.run(batch)

    def _direct(self, inputs: Inputs) -> list[Floats]:
        """Run a batch in fresh buffers."""
        count = len(inputs[names.NUMBERS])
        if self._binding is None:
            self._binding = self._scorer._session.io_binding()
            for name, value in self._shared().items():
                self._binding.bind_ortvalue_input(name, value)
        if self._bound not in (-1, count):
            fixed = self._fixed(inputs)
            by_count = self._scorer._wiring.bank == "given" and names.ROWS in fixed and len(fixed[names.ROWS]) > 1
            self._bound = count if by_count else -1
            inputs = inputs | fixed
        return self._scorer._run(self._binding, inputs, self._scorer.scores)

    def _fixed(self, inputs: Inputs) -> Inputs:
        return self._scorer._fixed(self._change, self._small, self._size, len(inputs[names.NUMBERS]))

    def _shared(self) -> dict[str, Any]:
        """Return the shared inputs of the group on the device. Each is copied once."""
        kept, change = self._group.on_device, self._change
        found = {}
        for name, array in self._scorer._of_group(self._group, change).items():
            content = (change.at, change.layer if change.at == "layer" else 0)
            bank = (change.bank, change.layer if isinstance(change.bank, Channels) else 0)
            what: Any = {
                names.PHOTOS: content,
                names.BASELINE: change.baseline,
                names.OTHER_TOKENS: names.OTHER_TOKENS,
                names.REFERENCES: names.REFERENCES,
                names.REFERENCE_CLASSES: names.REFERENCE_CLASSES,
            }.get(name, bank)
            if what not in kept:
                kept[what] = self._scorer._upload(array)
            found[name] = kept[what]
        return found


def _bank_of(group: Group, change: Change) -> Floats:
    """Return the masks [A,h,w] of a given bank; an empty array for a bank that the graph makes."""
    if isinstance(change.bank, Maps):
        return change.bank.values
    if isinstance(change.bank, Channels):
        return group.features[change.layer]
    return np.empty((0, *(change.bank.cells if isinstance(change.bank, Grids) else (1, 1))), np.float32)
