"""What all layers with a counterpart in torch.nn share: from torch's layer, back to it, and their line in a print."""

import copy
import inspect
from collections.abc import Callable
from operator import attrgetter
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nplex.nn.arguments import check_dtype, guarded, plain
from nplex.nn.rule import Rule
from nplex.nn.sharing import RuleUser, attach
from nplex.nn.written import RuleLike
from nplex.ops.tracing import Leaf, full_precision

Sizes = dict[str, tuple[int, ...] | None]


class Twin(Leaf, RuleUser):
    """A layer with a rule that computes what a layer of torch.nn computes with the dense weights of this one.

    It has torch's arguments and attributes; each parameter of torch's layer can be read by its name.

    Attributes:
        torch_layer: torch's class.
        rule: the rule; registered here unless it is shared.
    """

    torch_layer: ClassVar[type[nn.Module]]
    # Arguments that say whether a parameter exists, and which; other arguments are attributes.
    _flags: ClassVar[dict[str, str]] = {"bias": "bias"}
    # Attributes in print(model) beside those that torch prints.
    _printed: ClassVar[tuple[str, ...]] = ()
    rule: Rule

    def _set_up(self, rule: Rule, sizes: Sizes, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        """Makes the parameters, None where there is no size, takes the rule and gives first values."""
        check_dtype(dtype)
        for name, size in sizes.items():
            empty = None if size is None else nn.Parameter(torch.empty(size, device=device, dtype=dtype))
            self.register_parameter(name, empty)
        attach(self, rule)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """First values for the layer's own numbers; the rule, a module of its own, has its own reset_parameters."""
        raise NotImplementedError

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight" and isinstance(getattr(type(self), name, None), property):
            raise AttributeError(
                "weight is computed; change the rule or components instead. Leave a layer dense that is tied to "
                "another's weight: nplex.convert_(model, rule, where=nplex.all_but(NAME))"
            )
        super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Twin":
        """As torch's, but for what `guarded` says of memory formats and types."""
        return super()._apply(guarded(fn), recurse)

    @classmethod
    def like(cls, layer: Any, *, rule: RuleLike) -> Any:
        """A fresh twin of a torch layer: same sizes, options, device, type and mode, new numbers."""
        return cls._like(layer, {"rule": rule})

    @classmethod
    def _like(cls, layer: Any, options: dict[str, Any]) -> Any:
        number = next(layer.parameters())
        arguments = cls._arguments(layer) | {"device": number.device, "dtype": number.dtype}
        return cls(**arguments | options).train(layer.training)

    @torch.no_grad()
    def to_torch(self) -> Any:
        """Torch's layer with the same weights, options and mode."""
        layer: Any = self.torch_layer(**self._arguments(self), device="meta")
        with full_precision(next(self.parameters())):
            for name, _ in list(layer.named_parameters()):
                parent, _, leaf = name.rpartition(".")
                setattr(layer.get_submodule(parent), leaf, fresh_parameter(attrgetter(name)(self)))
        if hasattr(layer, "flatten_parameters"):  # where cuDNN wants them
            layer.flatten_parameters()
        return layer.train(self.training)

    @classmethod
    def _arguments(cls, layer: Any) -> dict[str, Any]:
        """What a layer, ours or torch's, was made with; without device and type."""
        ours = next(kind for kind in cls.__mro__ if "torch_layer" in vars(kind))
        found = inspect.signature(ours).parameters.values()
        names = [p.name for p in found if p.kind is not p.KEYWORD_ONLY and p.name not in ("device", "dtype")]
        return {
            name: getattr(layer, cls._flags[name]) is not None if name in cls._flags else getattr(layer, name)
            for name in names
        }

    def extra_repr(self) -> str:
        """One line for print(model): what torch writes, and n."""
        more = [f"{name}={getattr(self, name)}" for name in (*self._printed,)]
        shared = ["rule=shared"] if self.rule.is_shared else []
        parts = [self.torch_layer.extra_repr(self), *more, f"n={self.rule.n}", *shared]
        return ", ".join(filter(None, parts))


def adopt(layer: nn.Module, shape: nn.Module) -> None:
    """Gives a layer the attributes of torch's layer, which has read and checked its arguments."""
    for name, value in vars(shape).items():
        if not name.startswith("_") and name != "training":
            setattr(layer, name, plain(value))


def rebuilt(module: Any, kind: Any, change: Callable[[nn.Module], nn.Module]) -> Any:
    """A module of another class with the same attributes and mode, and its parts changed."""
    made = kind.__new__(kind)
    nn.Module.__init__(made)
    adopt(made, module)
    for name, part in module.named_children():
        made.add_module(name, change(part))
    made.training = module.training
    return made


def to_dense(part: nn.Module) -> nn.Module:
    """Torch's module with the same numbers: what ours makes itself, part by part in a list, of others a copy."""
    if isinstance(part, nn.ModuleList):
        parts = nn.ModuleList(map(to_dense, part))
        parts.training = part.training
        return parts
    make = getattr(part, "to_torch", None)
    return copy.deepcopy(part) if make is None else make()


def kind_among(part: nn.Module, kinds: tuple[Any, ...]) -> Any:
    """The class of ours that a part is one of, or that has its place in torch.nn; or None."""
    return next((kind for kind in kinds if isinstance(part, (kind, getattr(nn, kind.__name__)))), None)


def fresh_parameter(values: Tensor) -> nn.Parameter:
    """Values as a parameter of another module; copied only where they are one here, or a part of something larger.

    A large model is folded layer by layer: a copy of each weight would leave as many holes in memory.
    """
    alone = values.is_contiguous() and values.untyped_storage().nbytes() == values.numel() * values.element_size()
    alone = alone and not isinstance(values, nn.Parameter)
    return nn.Parameter(values.detach() if alone else values.detach().clone())
