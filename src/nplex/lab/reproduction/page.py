"""A reproduced table as text."""

from dataclasses import dataclass

from nplex.lab.recipes.tables import Part, Provenance, parts_of
from nplex.lab.scores import Difference
from nplex.lab.summary import Summary, machine, markdown_table


@dataclass(frozen=True)
class Reproduced:
    """Our runs of one part of a table.

    Attributes:
        part: which.
        size: small or paper.
        summary: of the runs.
        differences: of each rule to dense, by the paired bootstrap.
        results: of each run.
        read: the data that was read.
    """

    part: Part
    size: str
    summary: Summary
    differences: dict[str, Difference]
    results: list[dict]
    read: Provenance

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
        """Header and rows: ours, its difference to dense in place of the interval, and the paper's."""
        head, *rows = self.summary.table()
        last = head.index("training s") + 1
        theirs = ["paper: parameters", f"{self.part.column} {self.part.table.score}", "paper: to dense"]
        found = [[*head[:4], "to dense (95 %)", *head[5:last], *theirs]]
        for row in rows:
            difference = str(self.differences.get(row[0], ""))
            found.append([*row[:4], difference, *row[5:last], *self._published(row[0])])
        return found if self.part.column else [row[:last] for row in found]

    def _published(self, rule: str) -> list[str]:
        found, dense = self.part.published(rule), self.part.published("dense")
        if found is None or dense is None:
            return ["", "", ""]
        difference = "" if rule == "dense" else f"{found - dense:+.2f}"
        return [self.part.table.parameters_of(rule), f"{found:.2f}", difference]

    def markdown(self) -> str:
        """A page: what it is, the table, each seed, how it was scored, where, and what differs from the paper."""
        machines = sorted({machine(run["environment"]) for run in self.results})
        commits, versions = (sorted({run["environment"][key] for run in self.results}) for key in ("commit", "torch"))
        return (
            f"# {self.part.table.title}: {self.name}\n\n{markdown_table(self.table())}\n\n"
            f"Means over seeds; `to dense` by the paired bootstrap over the {self.summary.examples:,} test examples. "
            f"{self.summary.each_seed()}\n\n"
            f"What differs from the paper: {self.part.differs(self.size, self.read)}\n\n"
            f"`{self.command}`, {self.summary.environment['date']}, nplex {', '.join(commits)}, "
            f"torch {', '.join(versions)}, {'; '.join(machines)}.\n"
        )
