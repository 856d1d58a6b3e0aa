"""Recurrent layers with 1/n of the parameters: weights built once a call, then torch's own recurrence."""

import math
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from nplex.nn.arguments import plain
from nplex.nn.expanded import Expanded
from nplex.nn.written import RuleLike
from nplex.ops.tracing import outside_graphs, recurrence_is_traced

State = Float[Tensor, "*state d_out"]
States = tuple[State, Float[Tensor, "*state d_hidden"]]
Input = Float[Tensor, "*batch d"] | PackedSequence


class Recurrent(Expanded):
    """What RNN, LSTM and GRU share: torch's recurrence with `W[g] = sum_k kron(rule[k], components[k, g])`.

    One rule for all matrices; each gate g of each matrix has components of its own, and so has the projection.
    All weights are built once a call, so that n costs nothing at each step. Parameters are those of torch's layer / n
    (the components), the rule and the biases. Where n does not divide a width, blocks are ceil(width / n) wide;
    missing inputs count as zero, surplus outputs are dropped.

    Packed sequences, unbatched input, initial states, dropout between layers and both directions: as torch's. In
    torch.compile the recurrence stays outside the graph, as torch's, unless dynamo's `allow_rnn` is set.

    Shape:
        as torch's layer: input `(length, batch, input_size)`, batch first where asked, or `(length, input_size)`.

    Args:
        input_size: width of the input; this and all others as in torch.nn.
        rule: n for a learned rule of this layer's own, an Algebra for a fixed one, or a Rule.

    Attributes:
        components_ih_l0: n x gates x ceil(hidden_size / n) x ceil(input_size / n), in torch's order of gates; and so
            components_hh_l0, components_hr_l0 (the projection), _l1, ..., and the same with _reverse.
        bias_ih_l0: as torch's, and so bias_hh_l0, ...
        weight_ih_l0: the dense weight of components_ih_l0, built at each reading and differentiable; and so the
            others. To change them, change rule and components.
        rule: the rule; registered here unless it is shared.

    Raises:
        ValueError: a size or rule is impossible; says what was expected.

    Source: Zhang et al., Beyond Fully-Connected Layers with Quaternions (2021), equations (3) and (4) for each gate.
    """

    torch_layer: ClassVar[Any]
    _flags: ClassVar[dict[str, str]] = {}
    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    proj_size: int
    mode: str

    def _widths(self) -> dict[str, int]:
        projection = {"proj_size": self.proj_size} if self.proj_size else {}
        return {"input_size": self.input_size, "hidden_size": self.hidden_size, **projection}

    def _groups(self, name: str, rows: int) -> int:
        return 1 if "_hr_" in name else rows // self.hidden_size

    def _bound(self) -> float:
        return 1 / math.sqrt(self.hidden_size)

    def forward(self, input: Input, hx: State | States | None = None) -> tuple[Any, Any]:
        """Torch's recurrence: the outputs of all steps, and the last states."""
        stays_outside = torch.compiler.is_dynamo_compiling() and not recurrence_is_traced()
        run = _run_outside_graphs if stays_outside else _run
        return run(self, self._dense(self._torch_names, keep=True), input, hx)

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """As torch's: for each layer and direction its dense weights and biases, built at each call."""
        tensors = [getattr(self, name) for name in self._torch_names]
        size = len(tensors) // (self.num_layers * (2 if self.bidirectional else 1))
        return [tensors[start : start + size] for start in range(0, len(tensors), size)]

    def flatten_parameters(self) -> None:
        """Does nothing: the weights are built anew for each call, in the order that cuDNN wants."""

    def _update_flat_weights(self) -> None:
        """Does nothing, for torch's forward."""


def _run(layer: Recurrent, weights: list[Tensor], input: Any, hx: Any) -> tuple[Any, Any]:
    """Torch's forward on a stand-in for the layer that has these weights, so that calls in threads stay apart."""
    call: Any = object.__new__(type(layer))
    vars(call).update(vars(layer), _flat_weights=_in_one_piece(weights) if weights[0].is_cuda else weights)
    return layer.torch_layer.forward(call, input, hx)


# As torch.compile leaves torch's own layers: traced, a graph would hold a copy of each step.
_run_outside_graphs = outside_graphs(_run)


def _in_one_piece(tensors: list[Tensor]) -> list[Tensor]:
    """The same numbers as views of one tensor, all weights before all biases: what cuDNN reads without copying."""
    order = sorted(range(len(tensors)), key=lambda i: tensors[i].ndim == 1)
    pieces = torch.cat([tensors[i].flatten() for i in order]).split([tensors[i].numel() for i in order])
    views = {i: piece.view(tensors[i].shape) for i, piece in zip(order, pieces, strict=True)}
    return [views[i] for i in range(len(tensors))]


class RNN(Recurrent):
    """torch.nn.RNN, `h_t = tanh(W_ih x_t + b_ih + W_hh h_(t-1) + b_hh)`, with 1/n of the parameters: see Recurrent.

    Examples:
        >>> outputs, last = RNN(16, 32, rule=4)(torch.zeros(7, 3, 16))
        >>> outputs.shape, last.shape
        (torch.Size([7, 3, 32]), torch.Size([1, 3, 32]))
    """

    torch_layer = nn.RNN
    nonlinearity: str

    def __init__(  # noqa: PLR0913 - torch's own signature
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        rule: RuleLike,
    ) -> None:
        super().__init__()
        sizes = (input_size, hidden_size, num_layers, nonlinearity, bias, batch_first, dropout, bidirectional)
        shape = nn.RNN(*plain(sizes), device="meta")
        self._build(shape, rule, device, dtype)


class LSTM(Recurrent):
    """torch.nn.LSTM with 1/n of the parameters; gates i, f, g, o: see Recurrent.

    Examples:
        >>> outputs, (last, cell) = LSTM(16, 32, bidirectional=True, rule=4)(torch.zeros(7, 3, 16))
        >>> outputs.shape, last.shape, cell.shape
        (torch.Size([7, 3, 64]), torch.Size([2, 3, 32]), torch.Size([2, 3, 32]))
    """

    torch_layer = nn.LSTM

    def __init__(  # noqa: PLR0913 - torch's own signature
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        rule: RuleLike,
    ) -> None:
        super().__init__()
        sizes = (input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size)
        shape = nn.LSTM(*plain(sizes), device="meta")
        self._build(shape, rule, device, dtype)


class GRU(Recurrent):
    """torch.nn.GRU with 1/n of the parameters; gates r, z, n: see Recurrent.

    Examples:
        >>> outputs, last = GRU(16, 32, num_layers=2, rule=4)(torch.zeros(7, 3, 16))
        >>> outputs.shape, last.shape
        (torch.Size([7, 3, 32]), torch.Size([2, 3, 32]))
    """

    torch_layer = nn.GRU

    def __init__(  # noqa: PLR0913 - torch's own signature
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        rule: RuleLike,
    ) -> None:
        super().__init__()
        sizes = (input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional)
        shape = nn.GRU(*plain(sizes), device="meta")
        self._build(shape, rule, device, dtype)
