"""The table of a comparison: means over seeds with intervals, as a value that prints itself."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """One rule.

    Attributes:
        rule: as on the command line.
        layer_parameters: of the layers that the rule converts.
        share: of the dense layers' parameters.
        accuracy: mean over seeds, for all examples and per source, 0 to 1.
        low: lower end of the 95 % interval of the mean accuracy on other text of the same kind.
        high: upper end.
        seeds: the accuracy of each seed.
        training_seconds: mean over seeds.
        training_tokens_per_second: mean over seeds.
        testing_tokens_per_second: mean over seeds.
    """

    rule: str
    layer_parameters: int
    share: float
    accuracy: dict[str, float]
    low: float
    high: float
    seeds: tuple[float, ...]
    training_seconds: float
    training_tokens_per_second: float
    testing_tokens_per_second: float


@dataclass(frozen=True)
class Summary:
    """All rules of a comparison, and the majority baseline."""

    lines: tuple[Line, ...]
    majority: dict[str, float]
    examples: int
    environment: dict

    def table(self) -> list[list[str]]:
        """Header and rows as text."""
        sources = [source for source in self.majority if source != "all"]
        head = ["rule", "layer parameters", "of dense", "accuracy %", "95 % interval", *sources]
        rows = [
            [
                line.rule,
                f"{line.layer_parameters:,}",
                f"{line.share:.3f}",
                f"{100 * line.accuracy['all']:.2f}",
                f"{100 * line.low:.1f}-{100 * line.high:.1f}",
                *(f"{100 * line.accuracy[source]:.1f}" for source in sources),
                f"{line.training_seconds:.0f}",
                f"{line.training_tokens_per_second:,.0f}",
            ]
            for line in self.lines
        ]
        majority = [f"{100 * self.majority[source]:.1f}" for source in sources]
        last = ["majority", "", "", f"{100 * self.majority['all']:.2f}", "", *majority, "", ""]
        return [[*head, "training s", "tokens/s"], *rows, last]

    def markdown(self) -> str:
        """The table as Markdown, with the accuracy of each seed and what it was measured on."""
        head, *rows = self.table()
        lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        seeds = "; ".join(f"{line.rule} {', '.join(f'{100 * s:.2f}' for s in line.seeds)}" for line in self.lines)
        env = self.environment
        where = (
            f"{self.examples:,} test examples. Each seed: {seeds}. nplex {env['commit']}, torch {env['torch']}, "
            f"{env['processor']}, {env['threads']} thread(s), {env['date']}."
        )
        return f"{table}\n\n{where}\n"


def summarise(results: Sequence[dict], rules: Sequence[str], majority: dict[str, float]) -> Summary:
    """Sums up the results of runs: a line for each rule, in the order given."""
    grouped = {rule: [r for r in results if r["recipe"]["rule"] == rule] for rule in rules}
    lines = tuple(_line(rule, runs) for rule, runs in grouped.items())
    return Summary(lines, majority, len(results[0]["correct"]), results[-1]["environment"])


def interval(correct: Sequence[str]) -> tuple[float, float]:
    """Wilson's 95 % interval of the mean accuracy, with `N p (1 - p) / s^2` for the number of examples.

    p is the mean and s the standard deviation over examples, each counted with its mean over the seeds: with one
    seed this is N; with more, examples that all seeds get right or wrong together are not taken for independent.
    The spread between seeds is a thing of its own and not in it.

    Args:
        correct: for each seed a text of 0 and 1, one for each example.

    Source: Wilson, Probable inference, the law of succession, and statistical inference (1927).
    """
    per_example = [sum(map(int, values)) / len(values) for values in zip(*correct, strict=True)]
    p = _mean(per_example)
    variance = _mean([(value - p) ** 2 for value in per_example])
    count = len(per_example) * (p * (1 - p) / variance if variance else 1.0)
    z = 1.96
    centre = (p + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(p * (1 - p) / count + (z / (2 * count)) ** 2)
    return max(0.0, centre - half), min(1.0, centre + half)


def _line(rule: str, runs: Sequence[dict]) -> Line:
    low, high = interval([run["correct"] for run in runs])
    layer = runs[0]["layer_parameters"]
    return Line(
        rule=rule,
        layer_parameters=layer,
        share=layer / runs[0]["dense_layer_parameters"],
        accuracy={source: _mean([run["accuracy"][source] for run in runs]) for source in runs[0]["accuracy"]},
        low=low,
        high=high,
        seeds=tuple(run["accuracy"]["all"] for run in runs),
        training_seconds=_mean([run["training_seconds"] for run in runs]),
        training_tokens_per_second=_mean([run["training_tokens_per_second"] for run in runs]),
        testing_tokens_per_second=_mean([run["testing_tokens_per_second"] for run in runs]),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
