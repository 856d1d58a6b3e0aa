"""A reproduced table as text."""

from dataclasses import dataclass

from nplex.lab.recipes.tables import Part, parts_of
from nplex.lab.scores import Difference
from nplex.lab.summary import DIGITS, NAMES, Line, Summary, machine, markdown_table


@dataclass(frozen=True)
class Reproduced:
    """Our runs of one part of a table.

    Attributes:
        part: which.
        size: small or paper.
        summary: of the runs.
        differences: of each rule to dense, by the paired bootstrap.
        results: of each run.
    """

    part: Part
    size: str
    summary: Summary
    differences: dict[str, Difference]
    results: list[dict]

    @property
    def name(self) -> str:
        """Of its files."""
        return self.part.name_of(self.size)

    @property
    def command(self) -> str:
        """That repeats it; DIR is the folder of all data."""
        part, (usual,) = self.part, parts_of(self.part.name)
        size = "" if self.size == "small" else f" --size {self.size}"
        other = "" if part.rules == usual.rules else f" --rule {' '.join(part.rules)}"
        other += "" if part.seeds == usual.seeds else f" --seed {' '.join(map(str, part.seeds))}"
        return f"nplex reproduce {self.part.name} --data DIR{size}{other}"

    def table(self) -> list[list[str]]:
        """Header and rows: ours, its difference to dense, and the paper's."""
        score, sources = NAMES[self.summary.kind], list(self.summary.lines[0].scores)[1:]
        head = ["rule", "layer parameters", "of dense", score, "to dense (95 %)", *sources, "training s"]
        if self.part.column:
            head += ["paper: parameters", f"{self.part.column} {self.part.table.score}", "paper: to dense"]
        return [head, *(self._row(line, sources) for line in self.summary.lines), self._baseline(len(head), sources)]

    def _row(self, line: Line, sources: list[str]) -> list[str]:
        digits = DIGITS[self.summary.kind]
        row = [
            line.rule, f"{line.layer_parameters:,}", f"{line.share:.3f}", f"{line.score:.{digits}f}",
            str(self.differences.get(line.rule, "")), *(f"{line.scores[name]:.{digits - 1}f}" for name in sources),
            f"{line.training_seconds:,.0f}",
        ]  # fmt: skip
        found, dense = self.part.published(line.rule), self.part.published("dense")
        if found is None or dense is None:
            return [*row, *[""] * 3] if self.part.column else row
        difference = "" if line.rule == "dense" else f"{found - dense:+.2f}"
        return [*row, self.part.table.parameters_of(line.rule), f"{found:.2f}", difference]

    def _baseline(self, columns: int, sources: list[str]) -> list[str]:
        """What needs no model."""
        name, scores = self.summary.baseline
        digits = DIGITS[self.summary.kind]
        main = next(iter(scores.values()))
        cells = [f"{scores[source]:.{digits - 1}f}" if source in scores else "" for source in sources]
        row = [name, "", "", f"{main:.{digits}f}", "", *cells]
        return row + [""] * (columns - len(row))

    def markdown(self) -> str:
        """A page: what it is, the table, each seed, how it was scored, where, and what differs from the paper."""
        machines = sorted({machine(run["environment"]) for run in self.results})
        commits, versions = (sorted({run["environment"][key] for run in self.results}) for key in ("commit", "torch"))
        return (
            f"# {self.part.table.title}: {self.name}\n\n{markdown_table(self.table())}\n\n"
            f"Means over seeds; `to dense` by the paired bootstrap over the {self.summary.examples:,} test examples. "
            f"{self.summary.each_seed()}\n\n"
            f"What differs from the paper: {self.part.differs(self.size)}\n\n"
            f"`{self.command}`, {self.summary.environment['date']}, nplex {', '.join(commits)}, "
            f"torch {', '.join(versions)}, {'; '.join(machines)}.\n"
        )
