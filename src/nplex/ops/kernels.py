"""The Triton kernels of nplex.ops.fused, and their launches; imports Triton, so nothing imports it but that door.

Parts are [parts, tokens, width], the width contiguous, all other strides as they come: n parts of a token lie side by
side, R mixed ones lie apart, and the n^2 blocks of a weight are [n, n, a, b]. Sums are of float32 whatever the types
of what is read, and are rounded once. Nothing is added in an order that changes: results are the same bits each time.
"""

from collections.abc import Callable
from typing import Any

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
import torch
import triton
import triton.language as tl
from torch import Tensor

REGISTERS = 128  # of a thread's 255, for the parts that it holds


@triton.jit
def mixing_kernel(
    kept, streamed, weights, bias, out, sums, tokens, width, count, group, kept_part, kept_token, streamed_group,
    streamed_part, streamed_token, out_group, out_part, out_token, weights_group, weights_part, weights_kept,
    KEPT: tl.constexpr, SPREAD: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One pass over a tile of `KEPT` parts, which stay in registers, and of `count` parts, one after the other.

    Spread: `out[s] = sum_h weights[s, h] kept[h]`; else `out[h] = sum_s weights[s, h] streamed[s]`; plus the bias.
    Of a tile, where `sums` is given, `sums[s, h]` is the sum of `streamed[s] kept[h]`.
    """
    t = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (t < tokens) & (c < width)
    program = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    zero = tl.zeros((ROWS, COLUMNS), tl.float32)
    parts, totals = (), ()
    for h in tl.static_range(KEPT):
        if kept is not None:
            near = kept + tl.full((), h, tl.int64) * kept_part + t * kept_token + c
            parts = parts + (tl.load(near, mask=inside, other=0.0).to(tl.float32),)
        totals = totals + (zero,)
    for s in range(count):
        first, second = (s // group).to(tl.int64), (s % group).to(tl.int64)
        y = zero
        if streamed is not None:
            far = streamed + first * streamed_group + second * streamed_part + t * streamed_token + c
            y = tl.load(far, mask=inside, other=0.0).to(tl.float32)
        mixed, added = zero, ()
        for h in tl.static_range(KEPT):
            weight = tl.load(weights + first * weights_group + second * weights_part + h * weights_kept).to(
                tl.float32
            )
            if SPREAD:
                mixed += weight * parts[h]
                added = added + (zero,)
            else:
                added = added + (totals[h] + weight * y,)
            if sums is not None:
                tl.store(sums + (program * count + s) * KEPT + h, tl.sum(y * parts[h]))
        totals = added
        if SPREAD:
            if bias is not None:
                mixed += tl.load(bias + s * width + c + 0 * t, mask=inside, other=0.0).to(tl.float32)
            to = out + first * out_group + second * out_part + t * out_token + c
            tl.store(to, mixed.to(out.dtype.element_ty), mask=inside)
    if not SPREAD:
        for h in tl.static_range(KEPT):
            y = totals[h]
            if bias is not None:
                y += tl.load(bias + h * width + c + 0 * t, mask=inside, other=0.0).to(tl.float32)
            end = out + tl.full((), h, tl.int64) * out_part + t * out_token + c
            tl.store(end, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def decoding_kernel(
    x, components, out, rows, a, b, components_k, components_a,
    M: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """`out[k, m, a] = sum_b components[k, a, b] x[m, b]`: components are read once, M rows of x by each program."""
    k, row = tl.program_id(1).to(tl.int64), tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    m = tl.arange(0, M)
    face = components + k * components_k + row.to(tl.int64)[:, None] * components_a
    total = tl.zeros((ROWS, M), tl.float32)
    for start in range(0, b, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        block = tl.load(face + column[None, :], mask=(row < a)[:, None] & (column < b)[None, :], other=0.0)
        part = tl.load(
            x + m[None, :] * b + column[:, None], mask=(m < rows)[None, :] & (column < b)[:, None], other=0.0
        )
        total = tl.dot(block, part.to(block.dtype), total, input_precision="ieee")
    to = out + (k * rows + m)[None, :] * a + row[:, None]
    tl.store(to, total, mask=(row < a)[:, None] & (m < rows)[None, :])


@triton.jit
def table_kernel(u, v, w, out, rank, N: tl.constexpr, M: tl.constexpr):
    """`out[k, i, j] = sum_r u[k, r] v[j, r] w[i, r]`; a program a k, M is the next power of two from N on."""
    k, i = tl.program_id(0), tl.arange(0, M)
    total = tl.zeros((M, M), tl.float32)
    for r in range(rank):
        of_w = tl.load(w + i * rank + r, mask=i < N, other=0.0).to(tl.float32)
        of_v = tl.load(v + i * rank + r, mask=i < N, other=0.0).to(tl.float32)
        total += tl.load(u + k * rank + r).to(tl.float32) * of_w[:, None] * of_v[None, :]
    inside = (i < N)[:, None] & (i < N)[None, :]
    tl.store(out + (k * N + i[:, None]) * N + i[None, :], total, mask=inside)


@triton.jit
def table_gradients_kernel(
    grad, u, v, w, out, rank, grad_k, grad_i, grad_j, N: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """Of u, v and w, `out[0, k, r] = sum_ij grad[k, i, j] v[j, r] w[i, r]` and so on; a program an r."""
    r, i = tl.program_id(0), tl.arange(0, M)
    of_w = tl.load(w + i * rank + r, mask=i < N, other=0.0).to(tl.float32)
    of_v = tl.load(v + i * rank + r, mask=i < N, other=0.0).to(tl.float32)
    w_grad, v_grad = tl.zeros((M,), tl.float32), tl.zeros((M,), tl.float32)
    inside = (i < N)[:, None] & (i < N)[None, :]
    for k in range(N):
        face = tl.load(grad + k * grad_k + i[:, None] * grad_i + i[None, :] * grad_j, mask=inside, other=0.0)
        face, of_u = face.to(tl.float32), tl.load(u + k * rank + r).to(tl.float32)
        through = tl.sum(face * of_v[None, :], 1)
        tl.store(out + k * rank + r, tl.sum(of_w * through).to(out.dtype.element_ty))
        w_grad += of_u * through
        v_grad += of_u * tl.sum(face * of_w[:, None], 0)
    to = out + i * rank + r
    tl.store(to + N * rank, v_grad.to(out.dtype.element_ty), mask=i < N)
    tl.store(to + 2 * N * rank, w_grad.to(out.dtype.element_ty), mask=i < N)


INTERPRETED = not isinstance(mixing_kernel, triton.JITFunction)


def _operator(name: str, changes: tuple[str, ...], shape: Callable[..., Tensor | None]) -> Callable[..., Any]:
    """Registers an operator of torch: on CUDA one that torch.compile sees into; Triton's interpreter has no such."""

    def register(function: Callable[..., Tensor | None]) -> Callable[..., Tensor | None]:
        if not INTERPRETED:
            return torch.library.triton_op(f"nplex::{name}", function, mutates_args=changes)
        made = torch.library.custom_op(f"nplex::{name}", function, mutates_args=changes)
        made.register_fake(shape)
        return made

    return register


def _kernel(kernel: Any) -> Any:
    return kernel if INTERPRETED else torch.library.wrap_triton(kernel)


def _launch(
    kept: Tensor | None, streamed: Tensor | None, weights: Tensor, bias: Tensor | None, out: Tensor, *,
    spread: bool, summed: bool = False,
) -> Tensor:  # fmt: skip
    """The mixing kernel; what is streamed, and weights, may have a dimension more. Gives `out`, or the sums."""
    near, far = out if kept is None else kept, out if streamed is None else streamed
    number, (tokens, width), count = near.shape[0], near.shape[1:], _number(far)
    lanes = 32 if summed else 128  # sums of one warp wait for no other
    numbers = REGISTERS // (number * (2 if summed and not spread else 1))
    size = max(t.element_size() for t in (out, kept, streamed) if t is not None)
    tile = lanes * _power_of_2(min(16 // size, numbers))
    columns = min(triton.next_power_of_2(width), tile)
    rows = tile // columns
    grid = triton.cdiv(tokens, rows), triton.cdiv(width, columns)
    sums = out.new_empty((grid[0] * grid[1], count, number), dtype=torch.float32) if summed else None
    to, far, factors = (t.unsqueeze(0) if t.ndim == 3 else t for t in (out, far, weights.unsqueeze(-1)))
    _kernel(mixing_kernel)[grid](
        kept, streamed, weights, bias, out, sums, tokens, width, count, far.shape[1],
        *((0, 0) if kept is None else kept.stride()[:2]), *far.stride()[:3], *to.stride()[:3], *factors.stride()[:3],
        KEPT=number, SPREAD=spread, ROWS=rows, COLUMNS=columns, num_warps=lanes // 32,
    )  # fmt: skip
    return out if sums is None else sums.sum(0)


def _power_of_2(number: int) -> int:
    """The largest that is not above the number, 1 at least."""
    return triton.next_power_of_2(max(number, 1) // 2 + 1)


@_operator("mix", ("out",), lambda weights, parts, bias, out: None)
def mix(weights: Tensor, parts: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """`out[p] = sum_q weights[p, q] parts[q]`, plus `bias[p]`; the more numerous of p and q may be two dimensions."""
    if _number(parts) <= _number(out):
        _launch(parts, None, weights, bias, out, spread=True)
    else:
        _launch(None, parts, weights.movedim(0, -1), bias, out, spread=False)


def _number(parts: Tensor) -> int:
    return parts.shape[:-2].numel()


def _sums(grad: Tensor, parts: Tensor, weights: Tensor, out: Tensor) -> Tensor:
    p, q = _number(grad), _number(parts)
    return weights.new_empty(max(p, q), min(p, q), dtype=torch.float32)


@_operator("mix_back", ("out",), _sums)
def mix_back(grad: Tensor, parts: Tensor, weights: Tensor, out: Tensor) -> Tensor:
    """`out[q] = sum_p weights[p, q] grad[p]`; gives the sums of `grad[p] parts[q]`, the more of p and q first."""
    if _number(parts) <= _number(grad):
        return _launch(parts, grad, weights, None, out, spread=False, summed=True)
    return _launch(grad, parts, weights.movedim(0, -1), None, out, spread=True, summed=True)


@_operator("decode", (), lambda x, table, components, bias: x.new_empty(*x.shape[:2], components.shape[1]))
def decode(x: Tensor, table: Tensor, components: Tensor, bias: Tensor | None) -> Tensor:
    """`y[t, i, a] = sum_kj table[k, i, j] sum_b components[k, a, b] x[t, j, b]`, plus the bias."""
    (tokens, n, b), a = x.shape, components.shape[1]
    rows, columns = 16, 256 // x.element_size()
    middle = x.new_empty((n, tokens, n, a), dtype=torch.float32)
    _kernel(decoding_kernel)[triton.cdiv(a, rows), n](
        x, components, middle, tokens * n, a, b, *components.stride()[:2],
        M=max(16, triton.next_power_of_2(tokens * n)), ROWS=rows, COLUMNS=columns, num_warps=4,
    )  # fmt: skip
    y = x.new_empty(tokens, n, a)
    _launch(None, middle.transpose(1, 2), table.permute(0, 2, 1), bias, y.transpose(0, 1), spread=False)
    return y


@_operator("table", (), lambda u, v, w: u.new_empty(3 * (u.shape[0],), dtype=torch.float))
def table(u: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """`[k, i, j] = sum_r u[k, r] v[j, r] w[i, r]`, in float32."""
    n, rank = u.shape
    made = u.new_empty((n, n, n), dtype=torch.float32)
    _kernel(table_kernel)[(n,)](u, v, w, made, rank, N=n, M=triton.next_power_of_2(n))
    return made


@_operator("table_back", (), lambda grad, u, v, w: u.new_empty(3, *u.shape))
def table_back(grad: Tensor, u: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """The gradients of the three factors that a table is made of, one behind the other."""
    n, rank = u.shape
    made = u.new_empty(3, n, rank)
    _kernel(table_gradients_kernel)[(rank,)](
        grad, u, v, w, made, rank, *grad.stride(), N=n, M=triton.next_power_of_2(n)
    )
    return made
