"""What a method of computing is: one value, beside its code, that product, plan and cache read."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nplex.ops import fused
from nplex.ops.cost import AcceleratorWork, Work
from nplex.ops.machine import Accelerator, Machine


class Request(NamedTuple):
    """What a layer is about to compute, as whole numbers; a method's cost is a function of them.

    Attributes:
        in_features: inputs; of a convolution the channels of a group.
        out_features: outputs, and so on; of a lookup the rows of the weight.
        tokens: rows of the input; of a convolution its places, of a lookup the ids.
        n: the dimension of the algebra.
        rank: R of a rule held as factors, None for a full table.
        element_size: bytes of a number.
        training: whether the gradients are counted too.
        prepared: whether what the method makes of rule and components alone is at hand.
        machine: how fast it runs.
        kernel: places of a convolution's kernel.
        compiled: whether torch.compile makes the kernels.
    """

    in_features: int
    out_features: int
    tokens: int
    n: int
    rank: int | None
    element_size: int
    training: bool
    prepared: bool
    machine: Machine
    kernel: int = 1
    compiled: bool = False

    @property
    def device(self) -> torch.device:
        """Where it is computed, as far as that counts for how."""
        return torch.device("cuda" if isinstance(self.machine, Accelerator) else "cpu")

    @property
    def a(self) -> int:
        """Rows of a block."""
        return -(-self.out_features // self.n)

    @property
    def b(self) -> int:
        """Columns of a block."""
        return -(-self.in_features // self.n)

    def work(self, *, kernels: bool = False) -> Work:
        """An empty list of operations on this machine; `kernels`: mixing by nplex.ops.fused, where it runs."""
        if not isinstance(self.machine, Accelerator):
            return Work(self.machine, self.element_size)
        sizes = self.n, self.rank, self.a, self.b * self.kernel, self.element_size
        run = kernels and not self.compiled and fused.fits(*sizes)
        return AcceleratorWork(self.machine, self.element_size, self.compiled, run)


@dataclass(frozen=True, eq=False)
class Method:
    """One way to compute a layer's output.

    Attributes:
        name: as `method=` takes it.
        product: (x, rule, components, bias, prepared) -> y, with `prepared` as `prepare` made it, or empty.
        prepare: (rule, components) -> the tensors that depend on no input; nplex.nn.cached keeps them.
        cost: what one call does; None for a method that no plan shall take.
        needs_factors: whether it needs a rule held as factors.
    """

    name: str
    product: Callable[..., Tensor]
    prepare: Callable[..., tuple[Tensor, ...]] = lambda rule, components: ()
    cost: Callable[[Request], Work] | None = None
    needs_factors: bool = False
