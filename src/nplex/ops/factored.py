"""The factored methods: two contractions, the dense weight never exists.

They save no arithmetic, they save bytes: the components are read once and nothing of the weight's size is written.
That is what counts for one or a few tokens.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from nplex.algebra.bilinear import BilinearAlgorithm, as_table
from nplex.ops import fused
from nplex.ops.cost import Work
from nplex.ops.dense import add_table
from nplex.ops.method import Method, Request
from nplex.ops.packed import is_worth_it, linear, pack
from nplex.ops.tracing import autocast_type

# Calls beside the matmuls, forward and backward; nplex.ops.cost says how they were fitted.
COMPONENTS_FIRST_CALLS, COMPONENTS_FIRST_BACKWARD_CALLS = 5, 42
RULE_FIRST_CALLS, RULE_FIRST_BACKWARD_CALLS = 3, 36
SMALL_KERNELS = 2  # of an accelerator: the table in another order, and the bias


def components_first(
    x: Float[Tensor, "*batch d_in"],
    rule: Float[Tensor, "n n n"] | BilinearAlgorithm,
    components: Float[Tensor, "n a b"],
    bias: Float[Tensor, "d_out"] | None = None,
    prepared: tuple[Tensor, ...] = (),
) -> Float[Tensor, "*batch n*a"]:
    """`t[k, j, a] = sum_b components[k, a, b] x[j, b]`, then `y[i, a] = sum_kj rule[k, i, j] t[k, j, a]`.

    The first is one batch of n matmuls, which reads the components as they lie, the second one matmul; the middle
    has n times the size of the output.
    """
    n, a, b = components.shape
    if fused.decodes(x, rule, components, bias):
        table = prepared[0] if prepared else fused.table(rule, components)
        rows = x.reshape(-1, n, b).to(autocast_type(x) or x.dtype)
        return fused.decode(rows, table, components, bias).reshape(*x.shape[:-1], n * a)
    inputs = x.reshape(-1, n, b).transpose(0, 1).reshape(-1, b)  # j, token
    middle = torch.bmm(inputs.expand(n, -1, -1), components.transpose(-1, -2))  # k; j, token
    table = prepared[0] if prepared else as_table(rule)
    y = torch.matmul(table.transpose(0, 1).reshape(n, n * n), middle.reshape(n, n, -1).flatten(0, 1))
    return _outputs(y.reshape(n, -1, a), x, bias)


def rule_first(
    x: Float[Tensor, "*batch d_in"],
    rule: Float[Tensor, "n n n"] | BilinearAlgorithm,
    components: Float[Tensor, "n a b"],
    bias: Float[Tensor, "d_out"] | None = None,
    prepared: tuple[Tensor, ...] = (),
) -> Float[Tensor, "*batch n*a"]:
    """`m[k, i, b] = sum_j rule[k, i, j] x[j, b]`, then `y[i, a] = sum_kb components[k, a, b] m[k, i, b]`.

    The second sum is one batch of n matmuls, which reads the components as they lie, and one sum over k. The middle
    has n times the size of the input, so this is the better order where d_out > d_in.
    """
    n, a, b = components.shape
    if prepared:
        mixing, stacked = prepared
        return _rule_first_prepared(x, mixing, stacked, bias)
    inputs = x.reshape(-1, n, b).transpose(0, 1).reshape(n, -1)
    middle = torch.matmul(as_table(rule).reshape(n * n, n), inputs).reshape(n, -1, b)  # k; i, token
    parts = torch.bmm(middle, components.transpose(-1, -2))
    y = parts.sum(0, dtype=parts.dtype)  # autocast would sum in float32 on CUDA, and leave it there
    return _outputs(y.reshape(n, -1, a), x, bias)


def prepare_rule_first(
    rule: Float[Tensor, "n n n"] | BilinearAlgorithm, components: Float[Tensor, "n a b"]
) -> tuple[Float[Tensor, "n*n n"], Float[Tensor, "a n*b"]]:
    """The rule as `[(i, k), j]` and the components side by side, `[a, (k, b)]`: both sums are then one matmul.

    Without gradients the components are packed for it.
    """
    n, a, b = components.shape
    mixing = as_table(rule).transpose(0, 1).reshape(n * n, n)
    return mixing, pack(components.transpose(0, 1).reshape(a, n * b), rows=n)


def _rule_first_prepared(
    x: Float[Tensor, "*batch d_in"],
    mixing: Float[Tensor, "pairs n"],
    stacked: Tensor,
    bias: Float[Tensor, "d_out"] | None,
) -> Float[Tensor, "*batch d_out"]:
    """`m[i, (k, b)] = sum_j mixing[(i, k), j] x[j, b]`, then `y[i, a] = sum_kb m[i, (k, b)] stacked[a, (k, b)]`.

    `stacked` may be packed, which no shape annotation can see through.
    """
    n, (a, d_in) = mixing.shape[1], stacked.shape
    if x.numel() == d_in:
        middle = torch.mm(mixing, x.reshape(n, -1))  # what matmul does for one token takes four times as long
    else:
        middle = torch.matmul(mixing, x.reshape(-1, n, d_in // n))
    y = linear(middle.reshape(-1, d_in), stacked).reshape(*x.shape[:-1], n * a)
    return _plus(y, bias)


def _outputs(
    y: Float[Tensor, "n tokens a"], x: Float[Tensor, "*batch d_in"], bias: Float[Tensor, "d_out"] | None
) -> Float[Tensor, "*batch d_out"]:
    """The blocks of a token side by side, with the batch dimensions of x, and the bias."""
    y = y.transpose(0, 1).reshape(*x.shape[:-1], y.shape[0] * y.shape[2])
    return _plus(y, bias)


def _plus(y: Float[Tensor, "*batch d_out"], bias: Float[Tensor, "d_out"] | None) -> Float[Tensor, "*batch d_out"]:
    """y + bias in the type of y; a cast to the same type would take as long as the sum of one token."""
    if bias is None:
        return y
    return y + (bias if bias.dtype == y.dtype else bias.to(y.dtype))


def components_first_cost(r: Request) -> Work:
    """n matmuls of n T inputs with the components, then one n x n^2 matmul mixes; backward each has its two."""
    work = r.work()
    tokens, n, a, b = r.tokens, r.n, r.a, r.b
    decoding = r.work(kernels=True)
    if decoding.fused and not r.training and tokens * n <= fused.DECODED:
        decoding.matmul(n * tokens, b, a, count=n)
        decoding.mix(n, n * n, tokens * a)
        add_table(decoding, r)
        return decoding
    work.move(tokens * n * b, tokens * n * b)
    work.matmul(n * tokens, b, a, count=n)
    work.mix(n, n * n, tokens * a)
    work.move(2 * tokens * n * a, 2 * tokens * n * a)
    work.call(COMPONENTS_FIRST_CALLS)
    work.start(SMALL_KERNELS)
    add_table(work, r)
    if r.training:
        work.move(2 * tokens * n * a, tokens * n * a)
        work.mix(n * n, n, tokens * a)
        work.mix(n, tokens * a, n * n)
        work.matmul(n * tokens, a, b, count=n)
        work.matmul(a, n * tokens, b, count=n)
        work.move(tokens * (n * n + n) * b, tokens * n * b)
        work.call(COMPONENTS_FIRST_BACKWARD_CALLS)
    return work


def rule_first_cost(r: Request) -> Work:
    """One n^2 x n matmul mixes, then n matmuls of n T inputs with the components, then the sum over k.

    Prepared, the last two are one matmul, of packed components where there are no gradients.
    """
    work = r.work()
    tokens, n, a, b = r.tokens, r.n, r.a, r.b
    work.move(tokens * n * b, tokens * n * b)
    work.mix(n * n, n, tokens * b)
    if r.prepared:
        packed = not r.training and is_worth_it(n * a * b, r.element_size)
        work.matmul(n * tokens, n * b, a, packed=packed)
        work.move(tokens * n * a, tokens * n * a)
    else:
        work.matmul(n * tokens, b, a, count=n)
        work.move(tokens * (n * n + 2 * n) * a, 2 * tokens * n * a)
        work.call(RULE_FIRST_CALLS)
        work.start(SMALL_KERNELS)
    add_table(work, r)
    if r.training:
        work.move(2 * tokens * n * a, tokens * n * a)
        work.matmul(n * tokens, a, b, count=n)
        work.matmul(a, n * tokens, b, count=n)
        work.mix(n, n * n, tokens * b)
        work.mix(n * n, tokens * b, n)
        work.move(tokens * n * b, tokens * n * b)
        work.call(RULE_FIRST_BACKWARD_CALLS)
    return work


def prepare_components_first(rule: Tensor | BilinearAlgorithm, components: Tensor) -> tuple[Tensor]:
    """The table."""
    return (as_table(rule),)


COMPONENTS_FIRST = Method("components_first", components_first, prepare_components_first, components_first_cost)
RULE_FIRST = Method("rule_first", rule_first, prepare_rule_first, rule_first_cost)
