"""Which of torch's layers has which twin, and how the one is made from the other."""

from typing import Any

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from nplex import nn as nx
from nplex.convert.attributes import carry
from nplex.nn import Rule

TWINS: dict[type[nn.Module], Any] = {
    nn.Linear: nx.Linear, NonDynamicallyQuantizableLinear: nx.Linear, nn.Bilinear: nx.Bilinear,
    nn.Embedding: nx.Embedding, nn.EmbeddingBag: nx.EmbeddingBag,
    nn.Conv1d: nx.Conv1d, nn.Conv2d: nx.Conv2d, nn.Conv3d: nx.Conv3d, nn.ConvTranspose1d: nx.ConvTranspose1d,
    nn.ConvTranspose2d: nx.ConvTranspose2d, nn.ConvTranspose3d: nx.ConvTranspose3d,
    nn.RNN: nx.RNN, nn.LSTM: nx.LSTM, nn.GRU: nx.GRU,
    nn.RNNCell: nx.RNNCell, nn.LSTMCell: nx.LSTMCell, nn.GRUCell: nx.GRUCell,
    nn.MultiheadAttention: nx.MultiheadAttention,
}  # fmt: skip


def twin_class(module: nn.Module) -> Any:
    """The class that takes the module's place, or None where there is none: types are compared exactly.

    Hugging Face's Conv1D of GPT-2, a linear layer with its weight transposed, becomes a Linear.
    """
    return nx.Linear if is_transposed_linear(module) else TWINS.get(type(module))


def make_twin(module: nn.Module, rule: int | Rule, low_rank: int | None = None) -> Any:
    """A fresh layer in the place of a torch layer: same sizes, device, type, mode; trained if the old one was.

    Biases are trained if they were, components if their weight was, the rule if one of the weights was. With a
    low_rank it is a LowRankLinear.

    Attributes that were set on it and its parameters are carried over.

    Raises:
        ValueError: there is no such layer, because n is larger than a width, or for an option, or an attribute
            cannot be carried over; says why.
    """
    kind = twin_class(module)
    if low_rank is None:
        twin = kind.like(untransposed(module), rule=rule)
    elif kind is nx.Linear:
        twin = nx.LowRankLinear.like(untransposed(module), rule=rule, low_rank=low_rank)
    else:
        raise ValueError(f"low rank is for linear layers, not for {type(module).__name__}")
    _train_as(twin, {name: parameter.requires_grad for name, parameter in module.named_parameters()})
    if is_transposed_linear(module):
        twin.transposed_class = type(module)  # what make_dense gives back, so that a folded GPT-2 is one
    carry(module, twin, make_dense(shadow(twin)))
    return twin


def make_dense(layer: Any) -> nn.Module:
    """The torch layer with the same outputs, mode and attributes; its weights are trained if components were.

    Raises:
        ValueError: an attribute cannot be carried over; says which.
    """
    dense: nn.Module = layer.to_torch()
    rules = {id(p) for module in layer.modules() if isinstance(module, Rule) for p in module.parameters()}
    _train_as(dense, {name: p.requires_grad for name, p in layer.named_parameters() if id(p) not in rules})
    kind = getattr(layer, "transposed_class", None)
    dense = dense if kind is None else _transposed(dense, kind)
    carry(layer, dense, dense)
    return dense


def is_layer(module: nn.Module) -> bool:
    """Whether it is one of our layers: it has a rule and a way back to torch."""
    return hasattr(type(module), "to_torch") and isinstance(getattr(module, "rule", None), Rule)


def is_ours(module: nn.Module) -> bool:
    """Whether it is one of our layers, or a stack of them, or descends from one."""
    return hasattr(type(module), "to_torch") and our_class(module) is not None


def our_class(module: nn.Module) -> type | None:
    """The first class of this package that a module descends from."""
    return next((kind for kind in type(module).__mro__ if kind.__module__.split(".")[0] == "nplex"), None)


def shadow(module: Any) -> Any:
    """The module with its numbers on the meta device: what it would make has sizes, and takes no memory."""
    copied = module.__class__.__new__(module.__class__)
    vars(copied).update({key: _sizes(v) if isinstance(v, torch.Tensor) else v for key, v in vars(module).items()})
    for kind in ("_parameters", "_buffers"):
        vars(copied)[kind] = {name: _sizes(value) for name, value in vars(module)[kind].items()}
    children = {name: child if child is None else shadow(child) for name, child in module._modules.items()}
    vars(copied)["_modules"] = children
    if isinstance(vars(module).get("rule"), Rule):
        vars(copied)["rule"] = shadow(module.rule)
    return copied


def untransposed(module: Any) -> Any:
    """Transformers' Conv1D as a torch.nn.Linear with the same weight, another module as it is."""
    if not is_transposed_linear(module):
        return module
    linear = nn.Linear(module.nx, module.nf, device="meta")
    linear.weight, linear.bias = nn.Parameter(module.weight.detach().mT), module.bias
    return linear.train(module.training)


def _transposed(linear: Any, kind: type) -> nn.Module:
    """A torch.nn.Linear as transformers' Conv1D."""
    with torch.device("meta"):
        module = kind(linear.out_features, linear.in_features)
    module.weight = nn.Parameter(linear.weight.detach().mT.contiguous(), linear.weight.requires_grad)
    module.bias = linear.bias
    return module.train(linear.training)


def is_transposed_linear(module: nn.Module) -> bool:
    """Whether it is transformers' Conv1D: `y = x W + b`; transformers need not be installed to tell."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def _train_as(new: nn.Module, old: dict[str, bool]) -> None:
    """Sets what is trained by the old numbers of the same name; `weight` and `components` are the same name here."""
    flags = {name.replace("weight", "components"): flag for name, flag in old.items()}
    parameters = {name.replace("weight", "components"): p for name, p in new.named_parameters()}
    other = any(flag for name, flag in flags.items() if "components" in name or name not in parameters)
    for name, parameter in parameters.items():
        parameter.requires_grad_(flags.get(name, other))


def _sizes(value: torch.Tensor | None) -> torch.Tensor | None:
    if value is None:
        return None
    empty = torch.empty(value.shape, dtype=value.dtype, device="meta")
    if isinstance(value, nn.Parameter):
        empty = nn.Parameter(empty, value.requires_grad)
        vars(empty).update(vars(value))
    return empty
