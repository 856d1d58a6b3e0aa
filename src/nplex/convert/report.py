"""The report of a conversion: a value that prints itself."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One linear layer.

    Attributes:
        name: its full name.
        also: other names of the same module.
        was: what it is.
        was_parameters: its parameters now.
        now: what it becomes; None where it stays.
        now_parameters: its parameters afterwards, its own rule included.
        reason: why it stays.
    """

    name: str
    also: tuple[str, ...]
    was: str
    was_parameters: int
    now: str | None
    now_parameters: int
    reason: str

    @property
    def changes(self) -> bool:
        """Whether the layer is replaced."""
        return self.now is not None


@dataclass(frozen=True)
class Report:
    """What a conversion changes.

    Attributes:
        rows: one for each linear layer.
        total_before: parameters of the whole model, tied ones once.
        shared_rule: parameters of a rule that all converted layers share.
        others: other kinds of modules that hold parameters and stay: name, how many, parameters.
    """

    rows: tuple[Row, ...]
    total_before: int
    shared_rule: int = 0
    others: tuple[tuple[str, int, int], ...] = ()

    @property
    def total_after(self) -> int:
        """Parameters of the whole model after the conversion."""
        return self.total_before + sum(r.now_parameters - r.was_parameters for r in self.rows) + self.shared_rule

    def __str__(self) -> str:
        table = [("layer", "was", "was_parameters", "now", "now_parameters", "")]
        for row in self.rows:
            name = row.name + "".join(f" = {other}" for other in row.also)
            table.append((
                name,
                row.was,
                f"{row.was_parameters:,}",
                row.now or "stays",
                f"{row.now_parameters:,}",
                row.reason,
            ))
        widths = [max(len(line[column]) for line in table) for column in range(6)]
        aligned = ["<", "<", ">", "<", ">", "<"]
        lines = [
            "  ".join(
                f"{cell:{side}{width}}" for cell, side, width in zip(line, aligned, widths, strict=True)
            ).rstrip()
            for line in table
        ]
        if self.others:
            kinds = ", ".join(f"{count} {kind} ({numbers:,})" for kind, count, numbers in self.others)
            lines.append(f"not linear layers, stay: {kinds}")
        share = 100 * self.total_after / max(self.total_before, 1)
        changed = sum(row.changes for row in self.rows)
        lines.append(
            f"{changed} of {len(self.rows)} linear layers change: {self.total_before:,} -> {self.total_after:,} "
            f"parameters in all ({share:.1f} %)"
        )
        return "\n".join(lines)
