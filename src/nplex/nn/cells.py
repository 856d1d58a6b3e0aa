"""One step of a recurrent layer, with 1/n of the parameters."""

import math
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nplex.nn.expanded import Expanded
from nplex.nn.written import RuleLike, as_rule
from nplex.ops.dispatch import check_method
from nplex.ops.grouped import product_grouped
from nplex.ops.tracing import autocast_type, cast

Input = Float[Tensor, "*batch d_in"]
State = Float[Tensor, "*batch d_hidden"]


class Cell(Expanded):
    """What RNNCell, LSTMCell and GRUCell share: `W_ih x + b_ih` and `W_hh h + b_hh`, for all gates at once.

    `W[g] = sum_k kron(rule[k], components[k, g])` for each gate g; one rule for both matrices. Parameters are those
    of torch's cell / n (the components), the rule and the biases. Where n does not divide a width, blocks are
    ceil(width / n) wide; missing inputs count as zero, surplus outputs are dropped.

    Shape:
        input `(batch, input_size)`, states `(batch, hidden_size)`, or both without batch.

    Args:
        input_size: width of the input.
        hidden_size: width of the states.
        bias: whether b_ih and b_hh are learned.
        device: as in torch.nn.
        dtype: as in torch.nn.
        rule: n for a learned rule of this cell's own, an Algebra for a fixed one, or a Rule.
        method: how to compute; "auto" plans it for each input size, see nplex.ops.plan_for.

    Attributes:
        components_ih: n x gates x ceil(hidden_size / n) x ceil(input_size / n), in torch's order of gates.
        components_hh: n x gates x ceil(hidden_size / n) x ceil(hidden_size / n).
        bias_ih: gates hidden_size numbers, or None; and so bias_hh.
        weight_ih: torch's dense weight, built at each reading and differentiable; and so weight_hh.
        rule: the rule; registered here unless it is shared.

    Raises:
        ValueError: a size, rule or method is impossible; says what was expected.

    Source: Zhang et al., Beyond Fully-Connected Layers with Quaternions (2021), equations (3) and (4) for each gate.
    """

    torch_layer: ClassVar[Any]
    _flags: ClassVar[dict[str, str]] = {}
    input_size: int
    hidden_size: int
    bias: bool
    components_ih: nn.Parameter
    components_hh: nn.Parameter
    bias_ih: nn.Parameter | None
    bias_hh: nn.Parameter | None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        rule: RuleLike,
        method: str = "auto",
    ) -> None:
        super().__init__()
        self._build_cell(self.torch_layer(input_size, hidden_size, bias, "meta"), rule, method, device, dtype)

    def _build_cell(self, shape: nn.Module, rule: RuleLike, method: str, device: Any, dtype: Any) -> None:
        rule = as_rule(rule, device=device, dtype=dtype)
        check_method(method, factors=rule.rank is not None)
        self.method = method
        self._build(shape, rule, device, dtype)

    def _widths(self) -> dict[str, int]:
        return {"input_size": self.input_size, "hidden_size": self.hidden_size}

    def _groups(self, name: str, rows: int) -> int:
        return rows // self.hidden_size

    def _bound(self) -> float:
        return 1 / math.sqrt(self.hidden_size)

    def _gates(self, x: Input, h: State) -> tuple[Tensor, Tensor]:
        """`W_ih x + b_ih` and `W_hh h + b_hh`; the rule is asked once."""
        rule = self.rule()
        return (
            product_grouped(x, rule, self.components_ih, self.bias_ih, rows=self.hidden_size, method=self.method),
            product_grouped(h, rule, self.components_hh, self.bias_hh, rows=self.hidden_size, method=self.method),
        )

    def _state(self, input: Input, state: State | None, name: str = "hidden") -> State:
        """The state given, or zeros; on CUDA in autocast's type, which torch gives its cells there alone.

        Raises:
            ValueError: input or state are neither one vector nor a batch of them.
            RuntimeError: the input has another width, or the state does not fit it.
        """
        for what, tensor in (("input", input), (name, state)):
            if tensor is not None and tensor.ndim not in (1, 2):
                raise ValueError(f"{type(self).__name__}: expected {what} to be 1D or 2D, got {tensor.ndim}D")
        if input.shape[-1] != self.input_size:
            raise RuntimeError(f"expected {self.input_size} numbers in input's last dimension, got {input.shape[-1]}")
        expected = (*input.shape[:-1], self.hidden_size)
        if state is None:
            state = input.new_zeros(expected)
        if state.shape != expected:
            raise RuntimeError(f"expected {name} of shape {expected} for this input, got {tuple(state.shape)}")
        dtype = autocast_type(state) if state.is_cuda else None
        return state if dtype is None else cast(state, dtype)


class RNNCell(Cell):
    """torch.nn.RNNCell, `h' = tanh(W_ih x + b_ih + W_hh h + b_hh)`, with 1/n of the parameters: see Cell.

    Examples:
        >>> RNNCell(16, 32, nonlinearity="relu", rule=4)(torch.zeros(3, 16)).shape
        torch.Size([3, 32])
    """

    torch_layer = nn.RNNCell
    nonlinearity: str

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        rule: RuleLike,
        method: str = "auto",
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
        nn.Module.__init__(self)
        shape = nn.RNNCell(input_size, hidden_size, bias, nonlinearity, "meta")
        self._build_cell(shape, rule, method, device, dtype)

    def forward(self, input: Input, hx: State | None = None) -> State:
        """The next hidden state."""
        x, h = self._gates(input, self._state(input, hx))
        return torch.tanh(x + h) if self.nonlinearity == "tanh" else torch.relu(x + h)


class LSTMCell(Cell):
    """torch.nn.LSTMCell with 1/n of the parameters: see Cell.

    `c' = sigmoid(f) c + sigmoid(i) tanh(g)` and `h' = sigmoid(o) tanh(c')`, with the gates
    `i, f, g, o = W_ih x + b_ih + W_hh h + b_hh`.

    Examples:
        >>> hidden, cell = LSTMCell(16, 32, rule=4)(torch.zeros(3, 16))
        >>> hidden.shape, cell.shape
        (torch.Size([3, 32]), torch.Size([3, 32]))
    """

    torch_layer = nn.LSTMCell

    def forward(self, input: Input, hx: tuple[State, State] | None = None) -> tuple[State, State]:
        """The next hidden and cell state."""
        hidden, cell = (None, None) if hx is None else hx
        hidden, cell = self._state(input, hidden, "hx[0]"), self._state(input, cell, "hx[1]")
        x, h = self._gates(input, hidden)
        i, f, g, o = (x + h).chunk(4, -1)
        cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(cell), cell


class GRUCell(Cell):
    """torch.nn.GRUCell with 1/n of the parameters: see Cell.

    `h' = (1 - z) n + z h` with `r, z = sigmoid(W_ih x + b_ih + W_hh h + b_hh)` of their gates and
    `n = tanh(W_in x + b_in + r (W_hn h + b_hn))`.

    Examples:
        >>> GRUCell(16, 32, rule=4)(torch.zeros(3, 16)).shape
        torch.Size([3, 32])
    """

    torch_layer = nn.GRUCell

    def forward(self, input: Input, hx: State | None = None) -> State:
        """The next hidden state."""
        hidden = self._state(input, hx)
        x, h = (gates.chunk(3, -1) for gates in self._gates(input, hidden))
        r, z = torch.sigmoid(x[0] + h[0]), torch.sigmoid(x[1] + h[1])
        new = torch.tanh(x[2] + r * h[2])
        return new + z * (hidden - new)
