"""The result: what matters, all rules that were tried, those that no other beats, and the one to take."""

import math
from dataclasses import asdict, dataclass, field

from nplex.lab.scored import DENSE, Measured
from nplex.lab.summary import machine, markdown_table

GOALS = {"size": "parameters", "speed": "seconds", "quality": "score"}


@dataclass(frozen=True)
class Goals:
    """What matters.

    Attributes:
        which: quality, and any of size and speed.
        lower: whether a lower score is the better one.
        margin: how far below dense a score may lie; None for the interval of dense, or 0 where it has none.
    """

    which: tuple[str, ...] = tuple(GOALS)
    lower: bool = False
    margin: float | None = None

    def __post_init__(self) -> None:
        if unknown := [goal for goal in self.which if goal not in GOALS]:
            raise ValueError(f"goals must be some of {', '.join(GOALS)}; got {unknown[0]!r}")
        if "quality" not in self.which or len(set(self.which)) < len(self.which):
            raise ValueError(f"goals must hold quality, each once; got {' '.join(self.which) or 'none'}")
        if self.margin is not None and not (math.isfinite(self.margin) and self.margin >= 0):
            raise ValueError(f"margin must be a number of 0 or more, got {self.margin}")

    def loss(self, found: Measured, goal: str) -> float:
        """A number of what was measured, the smaller the better."""
        return (getattr(found, GOALS[goal]) or 0) * (-1.0 if goal == "quality" and not self.lower else 1.0)

    def is_good(self, found: Measured, dense: Measured) -> bool:
        """Whether a score counts as no worse than dense's."""
        end = dense.high if self.lower else dense.low
        allowed = self.margin if self.margin is not None else abs(dense.score - (dense.score if end is None else end))
        return self.loss(found, "quality") <= self.loss(dense, "quality") + allowed


@dataclass(frozen=True)
class Row:
    """A rule, what was measured, and whether no other rule is as good in all goals and better in one."""

    rule: str
    measured: Measured
    pareto: bool = False


@dataclass(frozen=True)
class Pareto:
    """The result of a search.

    Attributes:
        task: what was searched for, as on the command line.
        goals: what mattered.
        environment: what it ran on.
        unit: what seconds are of.
        rows: the measured rules, from the smallest to the largest.
        failed: rules that gave an error, and which.
    """

    task: str
    goals: Goals
    environment: dict
    unit: str = "a call"
    rows: tuple[Row, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def dense(self) -> Measured | None:
        """The yardstick, once it is measured."""
        return next((row.measured for row in self.rows if row.rule == DENSE), None)

    @property
    def recommended(self) -> Row | None:
        """Of rules as good as dense the smallest, where size matters; else the fastest, or the best."""
        goals, dense = self.goals, self.dense
        first = next(goal for goal in GOALS if goal in goals.which)
        good = [row for row in self.rows if dense and goals.is_good(row.measured, dense)]
        return min(
            good, key=lambda row: [goals.loss(row.measured, goal) for goal in (first, "quality")], default=None
        )

    def code(self, row: Row) -> str:
        """The line that converts the layers that were measured."""
        if row.rule == DENSE:
            return "# dense: the model stays as it is"
        rule = row.rule if row.rule.isdecimal() else f'nplex.convert.parse_rule("{row.rule}")'
        arguments, note = row.measured.arguments, f"  # the layers that {self.task} converts"
        return f"nplex.convert_(model, rule={rule}" + (f", {arguments})" if arguments else f"){note}")

    def advice(self) -> str:
        """The rule to take, why, and the line of code."""
        row, goals, dense = self.recommended, self.goals, self.dense
        if row is None or dense is None:
            return "dense is not measured yet, so there is nothing to compare with"
        kind = "smallest" if "size" in goals.which else "fastest" if "speed" in goals.which else "best"
        bound = "dense's" if dense.low is None else "the 95 % interval of dense"
        bound = bound if goals.margin is None else f"dense's by more than {goals.margin:g}"
        return f"{row.rule}: the {kind} whose score is not worse than {bound}\n\n    {self.code(row)}"

    def table(self) -> list[list[str]]:
        """Header and rows as text."""
        lines = [["rule", "parameters", "of dense", "score", "95 % interval", f"s for {self.unit}", ""]]
        for row in self.rows:
            found, whole = row.measured, self.dense and self.dense.parameters
            share = f"{found.parameters / whole:.3f}" if found.parameters and whole else ""
            ends = "" if found.low is None or found.high is None else f"{found.low:.4g}-{found.high:.4g}"
            remark = "pareto" * row.pareto + " take this" * (row == self.recommended)
            numbers = [f"{found.parameters:,}", share, f"{found.score:.4g}", ends, f"{found.seconds:.3g}", remark]
            lines.append([row.rule, *numbers])
        return lines + [[rule, *[""] * 5, f"failed: {error[:60]}"] for rule, error in self.failed.items()]

    def about(self) -> str:
        """What mattered, and what it ran on, in two sentences."""
        env = self.environment
        source = f"nplex {env['commit']}, torch {env['torch']}, {machine(env)}, {env['date']}"
        return f"{self.task}; what matters: {', '.join(self.goals.which)}. {source}."

    def markdown(self) -> str:
        """The table as Markdown, and the advice."""
        lines = [[cell.replace("|", "/") for cell in line] for line in self.table()]
        return f"{markdown_table(lines)}\n\n{self.about()}\n\n{self.advice()}\n"

    @classmethod
    def read(cls, values: dict) -> "Pareto":
        """What `json` gave.

        Raises:
            ValueError, TypeError, KeyError: it is something else.
        """
        goals = Goals(**values["goals"] | {"which": tuple(values["goals"]["which"])})
        rows = tuple(Row(row["rule"], Measured(**row["measured"]), row["pareto"]) for row in values["rows"])
        return cls(values["task"], goals, values["environment"], values["unit"], rows, values["failed"])

    def json(self) -> dict:
        """Everything, as data."""
        row = self.recommended
        return asdict(self) | {"recommended": row and {"rule": row.rule, "code": self.code(row)}}
