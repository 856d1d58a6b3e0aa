"""The door to the Triton kernels of ordinary calls on CUDA: which calls they run, and what they are given.

A GPU waits for memory while it mixes, so each kernel reads and writes everything once: mixing, mixing with the
gradient of its weights, the dense weight, the product of a few tokens. All other calls take the formulas: without
Triton, in float64, of more than 32 parts, of widths that are no multiples of 16, and whatever torch.compile,
torch.func or a subclass of Tensor looks at, because Inductor merges the formulas with their neighbours.
"""

import contextlib
import functools
import importlib.util
import warnings
from types import ModuleType

import torch
from jaxtyping import Float
from torch import Tensor

from nplex.algebra.bilinear import BilinearAlgorithm, as_table
from nplex.ops.tracing import is_batched, is_eager

DEVICES = ("cuda",)  # tests add "cpu" in Triton's interpreter
TYPES = (torch.float32, torch.float16, torch.bfloat16)
# Parts that a kernel mixes; what widths of blocks are multiples of, so that threads read 16 bytes each; tokens times
# n that are decoded at once.
PARTS, WIDTH, DECODED = 32, 16, 64


def fits(n: int, rank: int | None, a: int, b: int, element_size: int) -> bool:
    """Whether there are kernels for such sizes, and they run here."""
    sizes = element_size < 8 and max(n, rank or 1) <= PARTS and a % WIDTH == b % WIDTH == 0 and a * b > 0
    return sizes and works()


def suits(rule: Tensor | BilinearAlgorithm, components: Float[Tensor, "n a b"], *others: Tensor | None) -> bool:
    """Whether the kernels take these tensors of an ordinary call."""
    if components.device.type not in DEVICES:
        return False
    n, a, b = components.shape
    rank, factors = (None, (rule,)) if isinstance(rule, Tensor) else (rule.rank, tuple(rule))
    tensors = [t for t in (components, *factors, *others) if t is not None]
    if not is_eager(*tensors):  # first: a graph must not depend on a number of tokens
        return False
    alike = all(t.dtype in TYPES and t.device == components.device and t.numel() for t in tensors)
    return alike and fits(n, rank, a, b, 4)


@functools.cache
def works() -> bool:
    """Whether Triton is there and compiles for this GPU, tried once a process; without a GPU, whether it is there."""
    if importlib.util.find_spec("triton") is None or torch.version.hip is not None:
        return False
    if not torch.cuda.is_available():
        return True
    if torch.cuda.get_device_capability() < (8, 0):
        return False
    try:
        parts = torch.ones(1, 1, WIDTH, device="cuda")
        mix(parts[0, :, :1], parts, torch.empty_like(parts))
    except Exception as error:  # no C compiler, an older Triton, a new GPU: each has an error of its own
        what = f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}"
        warnings.warn(f"Triton compiles no kernel here ({what}); layers run by torch's own, slower", stacklevel=2)
        return False
    return True


def mix(weights: Tensor, parts: Tensor, out: Tensor, bias: Tensor | None = None) -> Tensor:
    """`out[p] = sum_q weights[p, q] parts[q]`, plus `bias[p]`; parts are [parts, tokens, width]. Gives `out`.

    The more numerous of p and q may be two dimensions, as the blocks of a weight are. Types may differ: sums are of
    float32, and rounded once.
    """
    with _at(out):
        _kernels().mix(weights, _lines(parts), bias, out)
    return out


def mix_back(grad: Tensor, parts: Tensor, weights: Tensor, out: Tensor) -> Tensor:
    """`out[q] = sum_p weights[p, q] grad[p]`; gives `[p, q] = sum grad[p] parts[q]` over all places, in float32."""
    with _at(out):
        sums = _kernels().mix_back(_lines(grad), _lines(parts), weights, out)
    spread = parts.shape[:-2].numel() > grad.shape[:-2].numel()
    return sums.view(weights.movedim(0, -1).shape).movedim(-1, 0) if spread else sums.view(weights.shape)


def decodes(x: Tensor, rule: Tensor | BilinearAlgorithm, components: Tensor, bias: Tensor | None) -> bool:
    """Whether `decode` takes a call: few tokens, and no gradients."""
    if not suits(rule, components, x, bias) or x.numel() > DECODED * components.shape[2]:
        return False
    factors = (rule,) if isinstance(rule, Tensor) else tuple(rule)
    return not (
        torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *factors, components, bias))
    )


def decode(
    x: Float[Tensor, "tokens n b"],
    table: Float[Tensor, "n n n"],
    components: Float[Tensor, "n a b"],
    bias: Float[Tensor, "d_out"] | None,
) -> Float[Tensor, "tokens n a"]:
    """`y[i] = sum_k components[k] sum_j table[k, i, j] x[j]`, plus the bias, reading the components once."""
    with _at(x):
        return _kernels().decode(x.contiguous(), table, _lines(components), bias)


def table(rule: Tensor | BilinearAlgorithm, components: Float[Tensor, "n a b"]) -> Float[Tensor, "n n n"]:
    """The table `[k, i, j]` of a rule, differentiable; of factors by a kernel where these components have one."""
    if isinstance(rule, Tensor) or not suits(rule, components):
        return as_table(rule)
    return _Table.apply(*rule)


class _Table(torch.autograd.Function):
    """The three factors -> table."""

    @staticmethod
    def forward(ctx, u: Tensor, v: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(u, v, w)
        with _at(u):
            return _kernels().table(u.contiguous(), v.contiguous(), w.contiguous())

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        factors = ctx.saved_tensors
        if not torch.is_grad_enabled() and not is_batched(grad):
            with _at(grad):
                return tuple(_kernels().table_back(grad, *(factor.contiguous() for factor in factors)))
        u, v, w = (factor.to(grad.dtype) for factor in factors)  # of second derivatives, and of several at once
        pairs = (w[:, None] * v[None], u[:, None] * w[None], u[:, None] * v[None])
        grads = (grad, grad.permute(2, 0, 1), grad.permute(1, 0, 2))
        return tuple(
            g.reshape(len(u), -1) @ pair.reshape(-1, u.shape[1]) for g, pair in zip(grads, pairs, strict=True)
        )


def _kernels() -> ModuleType:
    from nplex.ops import kernels  # here: it loads Triton

    return kernels


def _lines(parts: Tensor) -> Tensor:
    """The same with numbers of a row side by side, as a gradient of a sum does not have them."""
    return parts if parts.stride(-1) == 1 else parts.contiguous()


def _at(tensor: Tensor) -> contextlib.AbstractContextManager:
    """Where kernels start: on the tensor's GPU."""
    if not tensor.is_cuda or tensor.device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(tensor.device)
