"""The body of layers that have several weights, or weights with further dimensions, with one rule for all."""

import inspect
import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nplex.nn import init
from nplex.nn.arguments import check_widths
from nplex.nn.computed import read_only
from nplex.nn.twin import Sizes, Twin, adopt
from nplex.nn.written import RuleLike, as_rule
from nplex.ops.grouped import expand_grouped, transposed


class Expanded(Twin):
    """`W[g] = sum_k kron(rule[k], components[k, g])` for each weight W of torch's layer, read by torch's name for it.

    The g are the parts of a weight that lie below each other: the gates of a recurrent layer, the projections of
    attention, the groups of a convolution. A kernel's places are further dimensions of the components. Each
    parameter of torch's layer whose name has "weight" in it becomes components, n x g x ceil(rows / n) x
    ceil(columns / n) x kernel; biases stay as they are. Where n does not divide a width, missing inputs count as
    zero, surplus outputs are dropped.
    """

    # Whether torch's weight has the inputs first.
    _inputs_first: ClassVar[bool] = False
    _weights: dict[str, tuple[str, int, int]]
    # Torch's names of weights and biases, in torch's order.
    _torch_names: list[str]

    def __init_subclass__(cls) -> None:
        """Takes the methods that torch's forward calls on its layer, where the class has none of that name.

        But none that gives first values: torch's know nothing of rules.
        """
        super().__init_subclass__()
        for kind in getattr(cls, "torch_layer", nn.Module).__mro__:
            for name, member in vars(kind).items():
                if inspect.isfunction(member) and not hasattr(cls, name) and "reset" not in name:
                    setattr(cls, name, member)

    def _build(
        self,
        shape: nn.Module,
        rule: RuleLike,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        """Makes components and biases after torch's layer on the meta device, which has checked its arguments."""
        adopt(self, shape)
        rule = as_rule(rule, device=device, dtype=dtype)
        check_widths(rule.n, **self._widths())
        sizes: Sizes = {}
        weights: dict[str, tuple[str, int, int]] = {}
        for name, tensor in shape._parameters.items():
            size = None if tensor is None else tuple(tensor.shape)
            if "weight" not in name:
                sizes[name] = size
                continue
            own = name.replace("weight", "components")
            groups = 1 if size is None else self._groups(name, size[0])
            rows, columns, *kernel = size or (0, 0)
            rows //= groups
            weights[name] = own, rows, columns
            blocks = rule.n, groups, math.ceil(rows / rule.n), math.ceil(columns / rule.n), *kernel
            sizes[own] = None if size is None else blocks
        self._weights, self._torch_names = weights, list(shape._parameters)
        self._set_up(rule, sizes, device, dtype)

    def _widths(self) -> dict[str, int]:
        """Widths that n must not exceed, by the names that an error gives them."""
        raise NotImplementedError

    def _groups(self, name: str, rows: int) -> int:
        """How many parts of a weight lie below each other."""
        return 1

    def _bound(self) -> float:
        """The weights of torch's layer start as `U(-bound, bound)`, its biases too."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """First values for components and biases, with the variance of torch's layer."""
        for name, parameter in self.named_parameters(recurse=False):
            if name.startswith("components"):
                init.components_(parameter, rule_norm=self.rule.initial_norm, bound=self._bound())
            else:
                init.uniform_(parameter, self._bound())

    def _dense(self, names: list[str], *, keep: bool = False) -> list[Any]:
        """Weights and biases as torch's layer has them; the rule is asked once. `keep`: built once inside cached."""
        rule, tensors = self.rule(), []
        rule = transposed(rule) if self._inputs_first else rule
        for name in names:
            own, *size = self._weights.get(name, (name,))
            tensor = getattr(self, own)
            if size and tensor is not None:  # autocast, under which a weight is narrow, leaves torch's parameters
                tensor = expand_grouped(rule, tensor, *size, keep=keep).to(tensor.dtype)
            tensors.append(tensor)
        return tensors

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("_weights", ()):
            weight = self._dense([name])[0]
            return None if weight is None else read_only(weight)
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Tensor | nn.Module | Any) -> None:
        if name in self.__dict__.get("_weights", ()):
            raise AttributeError(f"{name} is computed; change the rule or {self._weights[name][0]} instead")
        super().__setattr__(name, value)
