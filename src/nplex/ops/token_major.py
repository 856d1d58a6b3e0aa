"""The bilinear product as torch.compile does best with it on a GPU: mixing as sums that merge with their neighbours.

A GPU does hundreds of operations in the time of reading one number, so mixing is all reading and writing. As matmuls
with n or R rows each mix is a kernel of its own, with copies before and after. As sums over parts of a token,
Inductor writes each into the kernel of what comes before or after: norm, activation, residual, bias. What is left are
the block products.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from nplex.algebra.bilinear import BilinearAlgorithm
from nplex.ops.tracing import is_transformed_when_compiled

# Inductor unrolls sums of so many terms (its unroll_reductions_threshold), which merge with what is around them. Of
# more, as in parts of 8, it writes intermediate sums to memory.
MOST_TERMS = 8
DEVICES = ("cuda", "xpu")


def suits(x: Float[Tensor, "tokens n b"], rule: BilinearAlgorithm) -> bool:
    """Whether torch.compile makes kernels of its own for this device, and unrolls sums of so many terms."""
    if not torch.compiler.is_compiling() or x.device.type not in DEVICES:
        return False
    return max(rule.decode.shape) <= MOST_TERMS and not is_transformed_when_compiled()


def formula(
    x: Float[Tensor, "tokens n b"],
    rule: BilinearAlgorithm,
    components: Float[Tensor, "n a b"],
    bias: Float[Tensor, "d_out"] | None,
    blocks: Float[Tensor, "R a b"] | None = None,
) -> Float[Tensor, "tokens n a"]:
    """`y[i] = sum_r decode[i, r] (blocks[r] sum_j encode_input[j, r] x[j])`; factors may be wider than x."""
    n = x.shape[1]
    if blocks is None:
        blocks = mix(rule.encode_component.mT, components.transpose(0, 1), x.dtype).transpose(0, 1)
    mixed = mix(rule.encode_input.mT, x, x.dtype).transpose(0, 1)
    products = torch.bmm(mixed, blocks.mT).transpose(0, 1)
    y = mix(rule.decode, products, x.dtype)
    return y if bias is None else y + bias.to(y.dtype).reshape(n, -1)


def mix(weights: Float[Tensor, "p q"], parts: Float[Tensor, "tokens q c"], dtype: torch.dtype) -> Tensor:
    """`[t, p] = sum_q weights[p, q] parts[t, q]`, in the type given."""
    return _Mix.apply(weights, parts, dtype)


class _Mix(torch.autograd.Function):
    """weights, parts -> sums; the gradient of weights is a batch of matmuls: sums would read all p q times."""

    @staticmethod
    def forward(ctx, weights: Tensor, parts: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(weights, parts)
        return _sums(weights, parts).to(dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        weights, parts = ctx.saved_tensors
        for_weights, for_parts, _ = ctx.needs_input_grad
        weights_grad = parts_grad = None
        if for_weights:
            of_tokens = torch.bmm(grad, parts.to(grad.dtype).mT)
            weights_grad = of_tokens.sum(0, dtype=torch.promote_types(grad.dtype, torch.float32)).to(weights.dtype)
        if for_parts:
            parts_grad = _sums(weights.mT, grad).to(parts.dtype)
        return weights_grad, parts_grad, None


def _sums(weights: Float[Tensor, "p q"], parts: Float[Tensor, "tokens q c"]) -> Float[Tensor, "tokens p c"]:
    """`sum_q weights[p, q] parts[t, q]`, in float32 at least."""
    terms = weights[:, :, None] * parts[:, None]
    return terms.sum(2, dtype=torch.promote_types(terms.dtype, torch.float32))
