"""Rows of the weight by their numbers: those alone, or all of them at once where that is faster."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from nplex.algebra.bilinear import BilinearAlgorithm
from nplex.ops import fused
from nplex.ops.cost import Work
from nplex.ops.dense import add_build, add_table, expand
from nplex.ops.method import Method, Request
from nplex.ops.plan import chooser
from nplex.ops.tracing import full_precision, is_eager

# So many of the small matmuls, one an id, take as long as one torch operation: look_up of 1,024 ids with n = 4 and a
# width of 64 takes half a millisecond on one thread of an AMD Zen 4 (time.perf_counter, median of 7).
IDS_PER_CALL = 8


def look_up(
    ids: Int[Tensor, "*batch"],
    rule: Float[Tensor, "n n n"] | BilinearAlgorithm,
    components: Float[Tensor, "n a b"],
    size: tuple[int, int],
) -> Float[Tensor, "*batch width"]:
    """`y[(j, b)] = sum_k rule[k, i, j] components[k, a', b]`, with i = id // a and a' = id % a: row id of the weight.

    Where an ordinary call has about as many ids as there are rows, the plan has all rows made once instead. Autocast
    leaves this alone, as it does torch's lookup.

    Args:
        ids: numbers of rows; any shape.
        rule: the table `[k, i, j]`, or its factors.
        components: one block a component.
        size: rows and columns of the weight, at most n a and n b.

    Raises:
        IndexError: an id that is not a row; on an accelerator and when compiled as torch's own lookup tells it.
    """
    (rows, width), (n, a, b) = size, components.shape
    _check_ids(ids, rows)
    with full_precision(components):
        table, method = fused.table(rule, components), "rows"
        if is_eager(ids, table, components):
            method = best(ids.numel(), (n, a, b, 1), rule, (components,), False)
        y = METHODS[method].product(ids, table, components, rows)
    return y if width == n * b else y[..., :width].contiguous()


def _rows(
    ids: Int[Tensor, "*batch"], table: Float[Tensor, "n n n"], components: Float[Tensor, "n a b"], rows: int
) -> Float[Tensor, "*batch n*b"]:
    """The rows asked for: an id costs n width multiply-adds."""
    n, a, b = components.shape
    flat = ids.reshape(-1)
    block, row = flat // a, flat % a
    if rows < n * a:  # the rows beyond the weight exist in the components, they must not be found
        block = block.masked_fill(flat >= rows, n)
    faces = F.embedding(block, table.permute(1, 2, 0).reshape(n, n * n)).reshape(-1, n, n)
    starts = a * torch.arange(n, dtype=ids.dtype, device=ids.device)
    parts = F.embedding(row[:, None] + starts, components.reshape(n * a, b))
    return torch.bmm(faces, parts).reshape(*ids.shape, n * b)


def _rows_cost(r: Request) -> Work:
    """Gather a face and n rows of components for each id, and multiply them; backward all again, twice."""
    ids, n, b, work = r.tokens, r.n, r.b, r.work(kernels=True)
    for _ in range(3 if r.training else 1):
        work.move(ids * n * n, ids * n * n)
        work.move(ids * n * b, ids * n * b)
        work.add(2 * ids * n * n * b, ids * n * (n + b), ids * n * b)
        work.call(ids // IDS_PER_CALL if r.device.type == "cpu" else 0)
    add_table(work, r)
    return work


def _all_rows(
    ids: Int[Tensor, "*batch"], table: Float[Tensor, "n n n"], components: Float[Tensor, "n a b"], rows: int
) -> Float[Tensor, "*batch n*b"]:
    """The dense weight, and torch's own lookup."""
    return F.embedding(ids, expand(table, components)[:rows])


def _all_rows_cost(r: Request) -> Work:
    """Build the weight, and one pass over what is asked for; backward also one over the gradient of all rows."""
    work = r.work(kernels=True)
    add_build(work, r)
    work.move(r.tokens * r.n * r.b, r.tokens * r.n * r.b)
    if r.training:
        work.move(r.tokens * r.n * r.b, (r.tokens + r.n * r.a) * r.n * r.b)
    return work


METHODS = {
    "rows": Method("rows", _rows, cost=_rows_cost),
    "dense": Method("dense", _all_rows, cost=_all_rows_cost),
}
best = chooser(METHODS)


def clip(rows: Float[Tensor, "*batch d"], most: float, p: float) -> Float[Tensor, "*batch d"]:
    """`rows most / |rows|_p` where the norm is above `most`; the factor has no gradient."""
    norm = torch.linalg.vector_norm(rows.detach(), p, -1, keepdim=True)
    return rows * torch.where(norm > most, most / (norm + 1e-7), 1)  # torch's 1e-7


def by_frequency(rows: Float[Tensor, "*batch d"], ids: Int[Tensor, "*batch"], most: int) -> Float[Tensor, "*batch d"]:
    """The rows themselves; their gradient is divided by how often their id, below `most`, is among all ids."""
    flat, exact = ids.reshape(-1), torch.promote_types(rows.dtype, torch.float32)
    ones = torch.ones(flat.shape, dtype=exact, device=rows.device)
    counts = ones.new_zeros(most).index_add(0, flat, ones)[flat]
    scale = (1 / counts).to(rows.dtype).reshape(*ids.shape, 1)
    return rows.detach() + scale * (rows - rows.detach())  # the difference is zero, and carries the gradient


def _check_ids(ids: Tensor, rows: int) -> None:
    """Raises an IndexError that names the id; an accelerator is not waited for."""
    if ids.device.type != "cpu" or ids.numel() == 0 or ids.is_floating_point() or not is_eager(ids):
        return
    least, most = torch.aminmax(ids)
    if least < 0 or most >= rows:
        wrong = int(least if least < 0 else most)
        raise IndexError(f"ids must be 0 or more and below num_embeddings = {rows}, got {wrong}")
