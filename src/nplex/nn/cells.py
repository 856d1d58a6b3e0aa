"""One step of a recurrent layer, with 1/n of the parameters."""

import math
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nplex.algebra import Algebra
from nplex.nn import init
from nplex.nn.linear import check_same_place, check_widths
from nplex.nn.rule import Rule, as_rule
from nplex.nn.sharing import attach
from nplex.ops.dispatch import check_method
from nplex.ops.grouped import expand_grouped, product_grouped

Input = Float[Tensor, "*batch d_in"]
State = Float[Tensor, "*batch d_hidden"]


class Cell(nn.Module):
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
        rule: the rule; registered here unless it is shared.

    Raises:
        ValueError: a size, rule or method is impossible; says what was expected.

    Source: Zhang et al., Beyond Fully-Connected Layers with Quaternions (2021), equations (3) and (4) for each gate.
    """

    torch_layer: ClassVar[Any]
    gates: ClassVar[int]
    own_arguments: ClassVar[tuple[str, ...]] = ()
    input_size: int
    hidden_size: int
    bias: bool
    rule: Rule
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
        rule: int | Algebra | Rule,
        method: str = "auto",
    ) -> None:
        super().__init__()
        rule = as_rule(rule, device=device, dtype=dtype)
        check_widths(rule.n, input_size=input_size, hidden_size=hidden_size)
        check_method(method, factors=rule.rank is not None)
        self.input_size, self.hidden_size, self.bias, self.method = input_size, hidden_size, bias, method
        block = math.ceil(hidden_size / rule.n)
        for name, width in (("ih", input_size), ("hh", hidden_size)):
            shape = rule.n, self.gates, block, math.ceil(width / rule.n)
            components = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
            self.register_parameter(f"components_{name}", components)
        for name in ("bias_ih", "bias_hh"):
            numbers = torch.empty(self.gates * hidden_size, device=device, dtype=dtype) if bias else None
            self.register_parameter(name, None if numbers is None else nn.Parameter(numbers))
        check_same_place(rule, self.components_ih)
        attach(self, rule)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """First values for components and biases, with the variance of torch's cell."""
        bound = 1 / math.sqrt(self.hidden_size)
        for components in (self.components_ih, self.components_hh):
            init.components_(components, rule_norm=self.rule.initial_norm, bound=bound)
        for bias in (self.bias_ih, self.bias_hh):
            if bias is not None:
                init.bias_(bias, bound=bound)

    def _gates(self, x: Input, h: State) -> tuple[Tensor, Tensor]:
        """`W_ih x + b_ih` and `W_hh h + b_hh`; the rule is asked once."""
        rule = self.rule()
        return (
            product_grouped(x, rule, self.components_ih, self.bias_ih, rows=self.hidden_size, method=self.method),
            product_grouped(h, rule, self.components_hh, self.bias_hh, rows=self.hidden_size, method=self.method),
        )

    def _state(self, input: Input, state: State | None, name: str = "hidden") -> State:
        """The state given, or zeros.

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
            return input.new_zeros(expected)
        if state.shape != expected:
            raise RuntimeError(f"expected {name} of shape {expected} for this input, got {tuple(state.shape)}")
        return state

    @property
    def weight_ih(self) -> Float[Tensor, "d_gates d_in"]:
        """The dense weight of the input, built at each call and differentiable; to change it, change its parts."""
        return expand_grouped(self.rule(), self.components_ih, self.hidden_size, self.input_size)

    @property
    def weight_hh(self) -> Float[Tensor, "d_gates d_hidden"]:
        """The dense weight of the hidden state, built at each call and differentiable."""
        return expand_grouped(self.rule(), self.components_hh, self.hidden_size, self.hidden_size)

    @classmethod
    def like(cls, layer: Any, *, rule: int | Algebra | Rule) -> Any:
        """A fresh twin of a torch cell: same sizes, device, type and mode, new numbers."""
        own = {name: getattr(layer, name) for name in cls.own_arguments}
        weight, sizes = layer.weight_ih, (layer.input_size, layer.hidden_size, layer.bias)
        return cls(*sizes, **own, device=weight.device, dtype=weight.dtype, rule=rule).train(layer.training)

    @torch.no_grad()
    def to_torch(self) -> Any:
        """Torch's cell with the same weights and biases."""
        own = {name: getattr(self, name) for name in self.own_arguments}
        cell = self.torch_layer(self.input_size, self.hidden_size, self.bias, **own, device="meta")
        for name, _ in list(cell.named_parameters()):
            setattr(cell, name, nn.Parameter(getattr(self, name).clone()))
        return cell.train(self.training)

    def extra_repr(self) -> str:
        """One line for print(model), as torch writes it."""
        shared = ", rule=shared" if self.rule.place == "shared" else ""
        return f"{self.torch_layer.extra_repr(self)}, n={self.rule.n}{shared}"


class RNNCell(Cell):
    """torch.nn.RNNCell, `h' = tanh(W_ih x + b_ih + W_hh h + b_hh)`, with 1/n of the parameters: see Cell.

    Examples:
        >>> RNNCell(16, 32, nonlinearity="relu", rule=4)(torch.zeros(3, 16)).shape
        torch.Size([3, 32])
    """

    torch_layer, gates, own_arguments = nn.RNNCell, 1, ("nonlinearity",)
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
        rule: int | Algebra | Rule,
        method: str = "auto",
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
        super().__init__(input_size, hidden_size, bias, device, dtype, rule=rule, method=method)
        self.nonlinearity = nonlinearity

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

    torch_layer, gates = nn.LSTMCell, 4

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

    torch_layer, gates = nn.GRUCell, 3

    def forward(self, input: Input, hx: State | None = None) -> State:
        """The next hidden state."""
        hidden = self._state(input, hx)
        x, h = (gates.chunk(3, -1) for gates in self._gates(input, hidden))
        r, z = torch.sigmoid(x[0] + h[0]), torch.sigmoid(x[1] + h[1])
        new = torch.tanh(x[2] + r * h[2])
        return new + z * (hidden - new)
