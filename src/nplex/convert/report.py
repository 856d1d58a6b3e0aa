"""The report of a conversion: a value that prints itself."""

from dataclasses import dataclass, replace

from nplex.convert.aligned import aligned


@dataclass(frozen=True)
class Row:
    """One layer.

    Attributes:
        name: its full name.
        also: other names of the same module.
        was: what it is.
        was_parameters: its parameters now.
        now: what it becomes; None where it stays.
        now_parameters: its parameters afterwards, its own rule included.
        reason: why it stays.
        error: of weights nearest to the old ones, `|| W - W_old || / || W_old ||`; None where they are fresh.
    """

    name: str
    also: tuple[str, ...]
    was: str
    was_parameters: int
    now: str | None
    now_parameters: int
    reason: str
    error: float | None = None

    @property
    def changes(self) -> bool:
        """Whether the layer is replaced."""
        return self.now is not None


@dataclass(frozen=True)
class Report:
    """What a conversion changes.

    Attributes:
        rows: one for each layer of a kind that can be converted.
        total_before: parameters of the whole model, tied ones once.
        shared_rule: parameters of the rules that converted layers share and that are new.
        others: other kinds of modules that hold parameters and stay: name, how many, parameters.
        unmatched: patterns of rules that fit no layer.
    """

    rows: tuple[Row, ...]
    total_before: int
    shared_rule: int = 0
    others: tuple[tuple[str, int, int], ...] = ()
    unmatched: tuple[str, ...] = ()

    @property
    def total_after(self) -> int:
        """Parameters of the whole model after the conversion."""
        return self.total_before + sum(r.now_parameters - r.was_parameters for r in self.rows) + self.shared_rule

    def with_errors(self, errors: dict[str, float]) -> "Report":
        """The same with the errors of layers by name."""
        return replace(self, rows=tuple(replace(row, error=errors.get(row.name)) for row in self.rows))

    def __str__(self) -> str:
        table: list[tuple[str, ...]] = [("layer", "was", "was_parameters", "now", "now_parameters", "")]
        for row in self.rows:
            numbers = (f"{row.was_parameters:,}", row.now or "stays", f"{row.now_parameters:,}")
            note = row.reason if row.error is None else f"error {row.error:.3f}"
            table.append((" = ".join((row.name, *row.also)), row.was, *numbers, note))
        lines = aligned(table, "<<><><")
        if self.others:
            kinds = ", ".join(f"{count} {kind} ({numbers:,})" for kind, count, numbers in self.others)
            lines.append(f"other modules with parameters, stay: {kinds}")
        if self.unmatched:
            lines.append(f"patterns that no layer matches: {', '.join(map(repr, self.unmatched))}")
        share = 100 * self.total_after / max(self.total_before, 1)
        changed = sum(row.changes for row in self.rows)
        lines.append(
            f"{changed} of {len(self.rows)} layers change: {self.total_before:,} -> {self.total_after:,} "
            f"parameters in all ({share:.1f} %)"
        )
        return "\n".join(lines)
