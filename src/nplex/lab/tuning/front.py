"""The result: all rules that were tried, those that no other beats, and the one to take."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from nplex.lab.tuning.measured import Goals, Measured
from nplex.lab.tuning.records import TRIES, Record, given_up, results
from nplex.lab.tuning.space import DENSE, Candidate


@dataclass(frozen=True)
class Row:
    """One rule.

    Attributes:
        candidate: the rule.
        state: measured; stopped, for it could not win any more; or failed.
        measured: None unless it was.
        front: whether no other rule is at least as good in all goals and better in one.
        epochs: how many scores it reported on the way.
        last: the last of them.
        error: why it failed.
    """

    candidate: Candidate
    state: str
    measured: Measured | None = None
    front: bool = False
    epochs: int = 0
    last: float | None = None
    error: str = ""


@dataclass(frozen=True)
class Front:
    """All rules of a search, best known first.

    Attributes:
        task: what was searched for, as on the command line.
        goals: what mattered.
        rows: measured rules from the smallest to the largest, then stopped and failed ones.
        unit: what seconds are of; "" for the whole call.
        environment: what it ran on.
    """

    task: str
    goals: Goals
    rows: tuple[Row, ...]
    unit: str
    environment: dict

    @property
    def dense(self) -> Row | None:
        """The yardstick, once it is measured."""
        return next((row for row in self.rows if row.candidate == DENSE and row.measured), None)

    @property
    def good(self) -> list[Row]:
        """Measured rules whose score is not below the interval of dense."""
        if self.dense is None or self.dense.measured is None:
            return []
        dense, allowed = self.dense.measured, self.goals.allowance(self.dense.measured)
        return [
            row for row in self.rows if row.measured and self.goals.gain(row.measured.score, dense.score) >= -allowed
        ]

    @property
    def recommended(self) -> Row | None:
        """Of the good ones the smallest, where size matters; else the fastest, where speed does; else the best."""
        which = self.goals.which

        def order(row: Row) -> tuple[float, float]:
            found = row.measured
            if found is None:
                raise ValueError(f"{row.candidate.key} was not measured")
            better = found.score if self.goals.lower else -found.score
            if "size" in which:
                return float(found.parameters or 0), better
            return (float(found.seconds or 0), better) if "speed" in which else (better, 0.0)

        return min(self.good, key=order, default=None)

    def table(self) -> list[list[str]]:
        """Header and rows as text."""
        ends = any(row.measured and row.measured.low is not None for row in self.rows)
        seconds = f"s for {self.unit}" if self.unit else "seconds"
        head = ["rule", "parameters", "of dense", "score", *(["95 % interval"] if ends else []), seconds, ""]
        return [head, *(self._line(row, ends) for row in self.rows)]

    def _line(self, row: Row, ends: bool) -> list[str]:
        found = row.measured
        if found is None:
            last = "" if row.last is None else f"({row.last:.4g})"
            return [row.candidate.key, "", "", last, *([""] if ends else []), "", self._remark(row)]
        dense = self.dense
        whole = dense.measured.parameters if dense and dense.measured else None
        share = f"{found.parameters / whole:.3f}" if found.parameters and whole else ""
        interval = "" if found.low is None or found.high is None else f"{found.low:.4g}-{found.high:.4g}"
        return [
            row.candidate.key,
            f"{found.parameters:,}",
            share,
            f"{found.score:.4g}",
            *([interval] if ends else []),
            f"{found.seconds:.3g}",
            self._remark(row),
        ]

    def _remark(self, row: Row) -> str:
        if row.state == "stopped":
            return f"stopped after {row.epochs}"
        if row.state == "failed":
            return f"failed: {row.error[:60]}"
        chosen = self.recommended
        if chosen is not None and row.candidate == chosen.candidate:
            return "front, take this"
        return "front" if row.front else ""

    def advice(self) -> str:
        """The rule to take, why, and the line of code."""
        chosen = self.recommended
        if chosen is None:
            return "dense is not measured yet, so there is nothing to compare with"
        kind = "smallest" if "size" in self.goals.which else "fastest" if "speed" in self.goals.which else "best"
        why = f"the {kind} whose score is not below {self._bar()}"
        return f"{chosen.candidate.key}: {why}\n\n    {chosen.candidate.code}"

    def _bar(self) -> str:
        """What counts as equal to dense, in words."""
        if self.goals.margin is not None:
            return f"dense's by more than {self.goals.margin:g}"
        dense = self.dense.measured if self.dense else None
        return "dense's" if dense is None or dense.low is None else "the 95 % interval of dense"

    def markdown(self) -> str:
        """The table as Markdown, and the advice."""
        head, *rows = self.table()
        lines = [head, ["---", *["---:"] * (len(head) - 2), "---"], *rows]
        table = "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
        env = self.environment
        where = f"nplex {env['commit']}, torch {env['torch']}, {env['processor']}, {env['date']}"
        return f"{table}\n\n{self.task}; what matters: {', '.join(self.goals.which)}. {where}.\n\n{self.advice()}\n"

    def json(self) -> dict:
        """Everything, as data."""
        chosen = self.recommended
        return {
            "task": self.task,
            "goals": asdict(self.goals),
            "recommended": chosen and {**asdict(chosen.candidate), "code": chosen.candidate.code},
            "seconds_of": self.unit,
            "rows": [
                {**asdict(row.candidate), **{k: v for k, v in asdict(row).items() if k != "candidate"}}
                for row in self.rows
            ],
            "environment": self.environment,
        }


def front_of(found: Sequence[Record], task: str, goals: Goals, unit: str, environment: dict) -> Front:
    """Sums up what a storage holds."""
    measured = {c: r.measured for c, r in results(found).items() if r.state == "complete" and r.measured}
    best = unbeaten(measured, goals)
    rows = [_row(candidate, record, candidate in best) for candidate, record in results(found).items()]
    rows += [
        Row(candidate, "failed", error=f"its process ended {TRIES} times")
        for candidate in given_up(found) - results(found).keys()
    ]
    states = ("measured", "stopped", "failed")

    def order(row: Row) -> tuple[int, float, str]:
        size = row.measured.parameters if row.measured else row.candidate.nominal_parameters
        return states.index(row.state), float(size or 0), row.candidate.key

    return Front(task, goals, tuple(sorted(rows, key=order)), unit, environment)


def unbeaten(measured: dict[Candidate, Measured], goals: Goals) -> set[Candidate]:
    """The Pareto front: rules than which no other is at least as good in all goals and better in one."""
    signs = [-1.0 if direction == "maximize" else 1.0 for direction in goals.directions]
    values = {
        candidate: tuple(sign * value for sign, value in zip(signs, goals.values(found), strict=True))
        for candidate, found in measured.items()
    }

    def beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
        return one != other and all(a <= b for a, b in zip(one, other, strict=True))

    return {c for c, own in values.items() if not any(beats(other, own) for other in values.values())}


def _row(candidate: Candidate, record: Record, front: bool) -> Row:
    last = record.history[-1][0] if record.history else None
    state = "failed" if record.error is not None else {"complete": "measured"}.get(record.state, "stopped")
    return Row(candidate, state, record.measured, front, len(record.history), last, record.error or "")
