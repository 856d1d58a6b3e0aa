"""What was learned of a product, as text."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from nplex.algebra import Algebra
from nplex.algebra.fractions import additions, formulas
from nplex.lab.recipes.rule_learned import Learned

# Wider tables are not printed, and those up to half of it stand side by side.
WIDEST = 170
# Digits behind the point of a learned table; what is left out is told beside it.
DIGITS = 2
# A share of the true table's norm that counts as zero.
NOTHING = 1e-2
TITLES = ["seed", "error", "optimum", "of all entries", "determined", "steps", "starts", "seconds", "outcome"]


def rows(learned: Sequence[Learned]) -> list[list[str]]:
    """A table of one row a seed, titles first."""
    return [TITLES, *(
        [
            str(one.seed), f"{one.error:.1e}", _optimum(one), f"{one.whole_error:.1e}",
            f"{one.determined} of {one.true.numel()}", f"{one.steps:,}", str(one.starts), f"{one.seconds:.1f}",
            one.verdict,
        ]
        for one in learned
    )]  # fmt: skip


def _optimum(one: Learned) -> str:
    """Of a smaller rule it is known only for all entries, so where all are determined."""
    return "-" if one.too_small and one.determined < one.true.numel() else f"{one.optimum:.1e}"


def explained(one: Learned) -> str:
    """What the numbers of the rows mean here, in a line or two."""
    least = "of the nearest algebra of this n" if one.too_small else "of the least-squares table"
    lines = [f"error: of what the examples determine, relative to the true table; optimum: the error {least}"]
    if one.determined < one.true.numel():
        left = "was learned as zeros, up to" if one.undetermined < NOTHING else "is arbitrary, and has"
        lines.append(
            f"the examples determine {one.determined} of the {one.true.numel()} numbers; what they leave open {left} "
            f"{one.undetermined:.1e} of the true table's norm"
        )
    if one.true.shape[0] > one.product.algebra.n:
        lines.append(
            f"n = {one.true.shape[0]} is more than the {one.product.algebra.n} that are needed: what was learned "
            f"beyond these has {one.surplus:.1e} of the true table's norm"
        )
    return "\n".join(lines)


def beside(one: Learned) -> str:
    """The true table and the learned one, as products of the units, and their largest difference."""
    names = one.product.algebra.units
    units = [*names, *(f"({k})" for k in range(len(names), one.true.shape[0]))]
    true, found = (_printed(table, title, units) for table, title in ((one.true, "true"), (one.table, "learned")))
    off = f"largest difference of an entry: {float((one.table - one.true).abs().max()):.1e}"
    widths = [max(map(len, text)) for text in (true, found)]
    if max(widths) > WIDEST:
        return f"the tables are too wide for text (--out draws them); {off}"
    if sum(widths) + 4 > WIDEST:
        return "\n".join([*true, "", *found, off])
    pairs = zip(true, found, strict=True)
    return "\n".join([*(f"{left:<{widths[0] + 4}}{right}".rstrip() for left, right in pairs), off])


def algorithm(one: Learned) -> str:
    """The formulas of an exact algorithm; nothing where there is none."""
    if one.exact is None:
        return ""
    n = one.exact.n
    letters = f"x and y are the factors, z = x * y, numbered from 0 as {', '.join(one.product.algebra.units)}"
    told = f"products: {one.exact.rank}, additions: {additions(one.exact)}; all {n**3} entries checked in fractions"
    return f"{letters}\n{formulas(one.exact)}\n{told}"


def _printed(table: Float[Tensor, "n n n"], title: str, units: Sequence[str]) -> list[str]:
    """The products of the units, line by line."""
    rounded = torch.where(table.abs() < 0.5 * 10**-DIGITS, 0.0, (table * 10**DIGITS).round() / 10**DIGITS)
    return [f"  {title}", *Algebra.from_table(rounded, title, units).multiplication_table().splitlines()]
