"""A ReLU network as linear layers, extracted from the module, with sound bounds on every neuron."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sparse
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from robustbench_local.attacks.threat_model import ThreatModel

Bounds = tuple[np.ndarray, np.ndarray]
"""Lowest and highest values, float64 [neurons] each."""

_RELUS = (torch.ops.aten.relu.default, torch.ops.aten.relu_.default)
_ROWS = 256  # unit vectors per forward pass
_MAX_DENSITY = 0.2  # the share of non-zero entries from which a matrix is stored dense


class Layer(NamedTuple):
    """Values before a ReLU, or the logits: shift + Σ weights[k] @ source k, with source 0 the image, k the k-th ReLU.

    shift: [neurons]. weights: for every source on which the layer depends, [neurons, neurons of the source], sparse
    where most of it is zero.
    """

    shift: np.ndarray
    weights: dict[int, np.ndarray | sparse.csr_array]


class PiecewiseLinear:
    """The layers of a network whose only nonlinearity is the ReLU, in float64; the last layer gives the logits.

    Everything between two ReLUs is affine (linear, convolution, batch norm in eval mode, average pooling, sums of
    branches, normalization). Its matrix is read by passing unit vectors through the module in place of the ReLUs'
    outputs. layers: one `Layer` each. shape: that of an image.
    """

    def __init__(self, model: nn.Module, shape: tuple[int, ...], *, most_neurons: int = 20_000) -> None:
        """Extract the layers of a copy; the model stays as it is.

        model: float32 [rows, *shape] -> logits [rows, classes], in eval mode.
        Raises ValueError if it is not piecewise linear in ReLUs, or has more than `most_neurons` of them.
        """
        copied = copy.deepcopy(model).cpu().double().eval()
        self.shape = tuple(shape)
        probe = torch.rand(8, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        try:
            with torch.no_grad(), _ReLURecorder() as recorder:
                truth = copied(probe)
        except RuntimeError as error:
            raise ValueError(f"the network cannot be read in float64 on the CPU ({error})") from error
        sizes = [tuple(values.shape[1:]) for values in recorder.inputs]
        self.neurons = [int(np.prod(size)) for size in sizes]
        if sum(self.neurons) > most_neurons:
            raise ValueError(
                f"the network has {sum(self.neurons)} ReLUs, more than the {most_neurons} that a search "
                "over activation regions supports"
            )
        if any(values.shape[0] != len(probe) for values in recorder.inputs):
            raise ValueError(
                "the network mixes the images of a batch, so it is no piecewise linear function of one image"
            )
        self.layers = _layers(copied, self.shape, sizes)
        logits = self.forward(probe.flatten(1).numpy())[-1]
        if not np.allclose(logits, truth.numpy(), rtol=1e-6, atol=1e-6 * max(1.0, float(truth.abs().max()))):
            raise ValueError("the network is not piecewise linear: an operation between its ReLUs is not affine")

    def forward(self, points: np.ndarray) -> list[np.ndarray]:
        """Values before every ReLU, then the logits, [rows, neurons] each, of points float64 [rows, pixels]."""
        sources, values = [points], []
        for layer in self.layers:
            values.append(layer.shift + sum(sources[k] @ weights.T for k, weights in layer.weights.items()))
            sources.append(values[-1].clip(min=0))
        return values

    def neuron_bounds(self, box: Bounds) -> list[Bounds]:
        """Sound bounds on the values before every ReLU, for all images in box (lowest and highest pixels).

        The tighter of interval bounds and of linear relaxations propagated back to the image: Zhang et al., "Efficient
        neural network robustness certification with general activation functions" (CROWN, NeurIPS 2018).
        """
        bounds: list[Bounds] = []
        for index, layer in enumerate(self.layers[:-1]):
            sources = [box, *((low.clip(min=0), high.clip(min=0)) for low, high in bounds)]
            center, radius = layer.shift, np.zeros(len(layer.shift))
            for k, weights in layer.weights.items():
                center = center + weights @ (sources[k][1] + sources[k][0]) / 2
                radius = radius + abs(weights) @ (sources[k][1] - sources[k][0]) / 2
            low, high = center - radius, center + radius
            if index:
                unsure = np.flatnonzero((low < 0) & (high > 0))
                rows = np.eye(len(low))[unsure]
                highest = self.upper_bounds(np.concatenate([rows, -rows]), index, bounds, box)
                low[unsure] = np.maximum(low[unsure], -highest[len(unsure) :])
                high[unsure] = np.minimum(high[unsure], highest[: len(unsure)])
            bounds.append((low, high))
        return bounds

    def upper_bounds(self, rows: np.ndarray, index: int, bounds: list[Bounds], box: Bounds) -> np.ndarray:
        """Upper bounds of rows @ (values of layer `index`), [rows], for rows float64 [rows, neurons of the layer].

        The minimum over three lower lines of an unstable ReLU: 0, the identity, and the closer of the two.
        """
        choices = [self._upper_bounds(rows, index, bounds, box, slope) for slope in (None, 0.0, 1.0)]
        lowest: np.ndarray = np.minimum.reduce(choices)
        return lowest

    def _upper_bounds(
        self, rows: np.ndarray, index: int, bounds: list[Bounds], box: Bounds, slope: float | None
    ) -> np.ndarray:
        constant = np.zeros(len(rows))
        pending: dict[int, np.ndarray] = {}
        while True:
            layer = self.layers[index]
            constant += rows @ layer.shift
            for k, weights in layer.weights.items():
                pending[k] = pending.get(k, 0) + rows @ weights
            index = max(pending) - 1
            if index < 0:
                break
            coefficients, (low, high) = pending.pop(index + 1), bounds[index]
            unstable = (low < 0) & (high > 0)
            below = np.where(unstable, (high > -low) if slope is None else slope, low >= 0)
            above = np.where(unstable, high / np.where(unstable, high - low, 1), low >= 0)
            constant += coefficients.clip(min=0) @ np.where(unstable, -low * above, 0)
            rows = np.where(coefficients > 0, coefficients * above, coefficients * below)
        pixels = pending[0]
        values: np.ndarray = constant + pixels.clip(min=0) @ box[1] + pixels.clip(max=0) @ box[0]
        return values


def pixel_bounds(image: Tensor, threat_model: ThreatModel) -> Bounds:
    """The box of images that the threat model allows, float64 [pixels] each. Raises ValueError for other norms."""
    if threat_model.norm != "linf":
        raise ValueError(f"activation regions are searched in L∞ balls only, not in {threat_model.norm} balls")
    pixels = image.detach().cpu().double().flatten().numpy()
    low, high = threat_model.box
    return np.maximum(pixels - threat_model.eps, low), np.minimum(pixels + threat_model.eps, high)


class _ReLURecorder(TorchDispatchMode):
    """Records the input of every ReLU, in order; replaces the outputs where replacements are passed."""

    def __init__(self, outputs: list[Tensor] | None = None) -> None:
        super().__init__()
        self.inputs: list[Tensor] = []
        self._outputs = outputs

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func not in _RELUS:
            return func(*args, **(kwargs or {}))
        values = args[0]
        self.inputs.append(values.clone())
        outputs = self._outputs
        output = torch.ops.aten.relu.default(values) if outputs is None else outputs[len(self.inputs) - 1]
        return values.copy_(output) if func is torch.ops.aten.relu_.default else output.clone()


@torch.no_grad()
def _layers(copied: nn.Module, shape: tuple[int, ...], sizes: list[tuple[int, ...]]) -> list[Layer]:
    """Every layer's shift and matrices, from one pass of zeros and one of unit vectors for each source."""

    def values(source: int, units: Tensor) -> list[Tensor]:
        sources = [torch.zeros(len(units), *size, dtype=torch.float64) for size in (shape, *sizes)]
        sources[source] = units.view_as(sources[source])
        with _ReLURecorder(sources[1:]) as recorder:
            logits = copied(sources[0])
        return [value.flatten(1) for value in (*recorder.inputs, logits)]

    shifts = [value[0] for value in values(0, torch.zeros(1, int(np.prod(shape)), dtype=torch.float64))]
    layers = [Layer(shift.numpy(), {}) for shift in shifts]
    for source, size in enumerate((shape, *sizes)):
        count = int(np.prod(size))
        blocks: list[list[sparse.csr_array]] = [[] for _ in layers]
        for first in range(0, count, _ROWS):
            units = torch.zeros(min(_ROWS, count - first), count, dtype=torch.float64)
            units.diagonal(first).fill_(1)
            for block, value, shift in zip(blocks, values(source, units), shifts, strict=True):
                block.append(sparse.csr_array((value - shift).numpy()))
        for layer, block in zip(layers, blocks, strict=True):
            weights = sparse.csr_array(sparse.vstack(block).T)
            weights.data[abs(weights.data) < 1e-12 * max(1.0, abs(weights.data).max(initial=0))] = 0
            weights.eliminate_zeros()
            if weights.nnz:
                layer.weights[source] = (
                    weights if weights.nnz < _MAX_DENSITY * np.prod(weights.shape) else weights.toarray()
                )
    return layers
