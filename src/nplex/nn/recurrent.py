"""Recurrent layers with 1/n of the parameters: weights built once a call, then torch's own recurrence."""

import inspect
import math
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.nn.utils.rnn import PackedSequence

from nplex.algebra import Algebra
from nplex.nn import init
from nplex.nn.linear import check_same_place, check_widths
from nplex.nn.rule import Rule, as_rule
from nplex.nn.sharing import attach
from nplex.ops.grouped import expand_grouped

State = Float[Tensor, "*state d_out"]
States = tuple[State, Float[Tensor, "*state d_hidden"]]
Input = Float[Tensor, "*batch d"] | PackedSequence
_ARGUMENTS = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")
_READ_BY_TORCH = (*_ARGUMENTS, "mode", "proj_size", "training")


class Recurrent(nn.Module):
    """What RNN, LSTM and GRU share: torch's recurrence with `W[g] = sum_k kron(rule[k], components[k, g])`.

    One rule for all matrices; each gate g of each matrix has components of its own, and so has the projection.
    All weights are built once a call, so that n costs nothing at each step. Parameters are those of torch's layer / n
    (the components), the rule and the biases. Where n does not divide a width, blocks are ceil(width / n) wide;
    missing inputs count as zero, surplus outputs are dropped.

    Packed sequences, unbatched input, initial states, dropout between layers and both directions: as torch's. In
    torch.compile the recurrence stays outside the graph, as torch's, unless `torch._dynamo.config.allow_rnn` is set.

    Shape:
        as torch's layer: input `(length, batch, input_size)`, batch first where asked, or `(length, input_size)`.

    Args:
        shape: torch's layer of the same arguments on the meta device, which has checked them.
        rule: n for a learned rule of this layer's own, an Algebra for a fixed one, or a Rule.
        device: as in torch.nn, and so dtype.

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
    own_arguments: ClassVar[tuple[str, ...]] = ()
    _torch_call: ClassVar[type]
    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    proj_size: int
    mode: str
    rule: Rule

    def __init_subclass__(cls) -> None:
        """A class on whose instances torch's forward runs."""
        cls._torch_call = type(f"{cls.__name__}Call", (_Call,), _methods(nn.RNNBase) | _methods(cls.torch_layer))

    def __init__(self, shape: nn.RNNBase, rule: int | Algebra | Rule, device: Any, dtype: torch.dtype | None) -> None:
        super().__init__()
        for name in (*_READ_BY_TORCH, *self.own_arguments):
            setattr(self, name, getattr(shape, name))
        rule = as_rule(rule, device=device, dtype=dtype)
        projection = {"proj_size": self.proj_size} if self.proj_size else {}
        check_widths(rule.n, input_size=self.input_size, hidden_size=self.hidden_size, **projection)
        self._names, self._weights = [name for name, _ in shape.named_parameters()], {}
        for name, tensor in shape.named_parameters():
            size, own_name = tuple(tensor.shape), name
            if tensor.ndim == 2:
                gates = 1 if "_hr_" in name else size[0] // self.hidden_size
                own_name, rows, columns = name.replace("weight", "components"), size[0] // gates, size[1]
                size = (rule.n, gates, math.ceil(rows / rule.n), math.ceil(columns / rule.n))
                self._weights[name] = own_name, rows, columns
            self.register_parameter(own_name, nn.Parameter(torch.empty(size, device=device, dtype=dtype)))
        check_same_place(rule, self.get_parameter("components_ih_l0"))
        attach(self, rule)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """First values for components and biases, with the variance of torch's layer."""
        bound = 1 / math.sqrt(self.hidden_size)
        for name, parameter in self.named_parameters(recurse=False):
            if name.startswith("components"):
                init.components_(parameter, rule_norm=self.rule.initial_norm, bound=bound)
            else:
                init.bias_(parameter, bound=bound)

    def forward(self, input: Input, hx: State | States | None = None) -> tuple[Any, Any]:
        """Torch's recurrence: the outputs of all steps, and the last states."""
        outside_graphs = torch.compiler.is_dynamo_compiling() and not torch._dynamo.config.allow_rnn
        run = _run_outside_graphs if outside_graphs else _run
        return run(self, self._dense(self._names, keep=True), input, hx)

    def _dense(self, names: list[str], keep: bool = False) -> list[Tensor]:
        """Weights and biases as torch's layer has them; the rule is asked once."""
        rule, tensors = self.rule(), []
        for name in names:
            own_name, *size = self._weights.get(name, (name,))
            tensor = getattr(self, own_name)
            if size:  # autocast, under which a weight is narrow, leaves torch's parameters as they are
                tensor = expand_grouped(rule, tensor, *size, keep=keep).to(tensor.dtype)
            tensors.append(tensor)
        return tensors

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("_weights", ()):
            return self._dense([name])[0]
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("_weights", ()):
            raise AttributeError(f"{name} is computed; change the rule or {self._weights[name][0]} instead")
        super().__setattr__(name, value)

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """As torch's: for each layer and direction its dense weights and biases, built at each call."""
        tensors = self._dense(self._names)
        size = len(tensors) // (self.num_layers * (2 if self.bidirectional else 1))
        return [tensors[start : start + size] for start in range(0, len(tensors), size)]

    def flatten_parameters(self) -> None:
        """Does nothing: the weights are built anew for each call, in the order that cuDNN wants."""

    @classmethod
    def like(cls, layer: Any, *, rule: int | Algebra | Rule) -> Any:
        """A fresh twin of a torch layer: same sizes, options, device, type and mode, new numbers."""
        arguments = {name: getattr(layer, name) for name in (*_ARGUMENTS, *cls.own_arguments)}
        weight = layer.weight_ih_l0
        return cls(**arguments, device=weight.device, dtype=weight.dtype, rule=rule).train(layer.training)

    @torch.no_grad()
    def to_torch(self) -> Any:
        """Torch's layer with the same weights and biases."""
        arguments = {name: getattr(self, name) for name in (*_ARGUMENTS, *self.own_arguments)}
        tensors = dict(zip(self._names, self._dense(self._names), strict=True))
        weight = tensors["weight_ih_l0"]
        layer = self.torch_layer(**arguments, device="meta", dtype=weight.dtype).to_empty(device=weight.device)
        layer.load_state_dict(tensors)
        return layer.train(self.training)

    def extra_repr(self) -> str:
        """One line for print(model), as torch writes it."""
        shared = ", rule=shared" if self.rule.place == "shared" else ""
        return f"{self.torch_layer.extra_repr(self)}, n={self.rule.n}{shared}"


class _Call:
    """What torch's forward takes for its layer in one call: sizes, options and built weights, and torch's methods."""

    def __init__(self, layer: Recurrent, weights: list[Tensor]) -> None:
        for name in _READ_BY_TORCH:
            setattr(self, name, getattr(layer, name))
        self._flat_weights = _in_one_piece(weights) if weights[0].is_cuda else weights


def _run(layer: Recurrent, weights: list[Tensor], input: Any, hx: Any) -> tuple[Any, Any]:
    """Torch's forward with these weights."""
    return layer.torch_layer.forward(layer._torch_call(layer, weights), input, hx)


# As torch.compile leaves torch's own layers: traced, a graph would hold a copy of each step. The public
# torch.compiler.disable loads the compiler at once, this one when it is called.
_run_outside_graphs = _disable_dynamo(_run)


def _methods(torch_layer: type) -> dict[str, Any]:
    """The plain methods of a torch layer, without those that keep its list of parameters."""
    members = {name: member for name, member in vars(torch_layer).items() if not name.startswith("__")}
    methods = {name: member for name, member in members.items() if inspect.isfunction(member)}
    return methods | {"_update_flat_weights": lambda self: None}


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

    torch_layer, own_arguments = nn.RNN, ("nonlinearity",)
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
        rule: int | Algebra | Rule,
    ) -> None:
        shape = nn.RNN(
            input_size,
            hidden_size,
            num_layers,
            nonlinearity,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device="meta",
        )
        super().__init__(shape, rule, device, dtype)


class LSTM(Recurrent):
    """torch.nn.LSTM with 1/n of the parameters; gates i, f, g, o: see Recurrent.

    Examples:
        >>> outputs, (last, cell) = LSTM(16, 32, bidirectional=True, rule=4)(torch.zeros(7, 3, 16))
        >>> outputs.shape, last.shape, cell.shape
        (torch.Size([7, 3, 64]), torch.Size([2, 3, 32]), torch.Size([2, 3, 32]))
    """

    torch_layer, own_arguments = nn.LSTM, ("proj_size",)

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
        rule: int | Algebra | Rule,
    ) -> None:
        shape = nn.LSTM(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device="meta"
        )
        super().__init__(shape, rule, device, dtype)


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
        rule: int | Algebra | Rule,
    ) -> None:
        shape = nn.GRU(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device="meta")
        super().__init__(shape, rule, device, dtype)
