"""What became of each rule, and what was done with the optimizer."""

from dataclasses import dataclass

from nplex.convert.aligned import aligned


@dataclass(frozen=True)
class FactorRow:
    """One rule: its name, the layers that use it, n, its rank before and after (None for a full table).

    Attributes:
        error: `|| new table - old table || / || old table ||`, as stored in the rule's type.
        growth: how far the factors amplify rounding errors; 1 is best.
        seconds: time of the search; 0 where an equal table was searched before.
        reason: why the rule stays.
    """

    name: str
    layers: tuple[str, ...]
    n: int
    before: int | None
    after: int | None
    error: float = 0.0
    growth: float = 1.0
    seconds: float = 0.0
    reason: str = ""

    @property
    def changes(self) -> bool:
        """Whether the rule is replaced."""
        return not self.reason

    @property
    def share(self) -> float:
        """`R / n^2` of the dense arithmetic afterwards; 1 for a full table."""
        return 1.0 if self.after is None else self.after / self.n**2


@dataclass(frozen=True)
class FactorReport:
    """One row for each rule, and a sentence on the optimizer (empty where no parameter changed)."""

    rows: tuple[FactorRow, ...]
    optimizer: str = ""

    def __str__(self) -> str:
        table: list[tuple[str, ...]] = [("rule", "layers", "n", "rank", "of_dense", "error", "growth", "seconds", "")]
        for row in self.rows:
            layers = ", ".join(row.layers[:3]) + f", ... ({len(row.layers)})" * (len(row.layers) > 3)
            rank = f"{row.before or 'full'}" + f" -> {row.after or 'full'}" * row.changes
            numbers = (f"{row.error:.1e}", f"{row.growth:.1f}", f"{row.seconds:.2f}") if row.changes else ("", "", "")
            table.append((row.name, layers, str(row.n), rank, f"{row.share:.2f}", *numbers, row.reason))
        lines = aligned(table, "<<><>>>><")
        lines.append(f"{sum(row.changes for row in self.rows)} of {len(self.rows)} rules change")
        return "\n".join(lines + [self.optimizer] * bool(self.optimizer))
