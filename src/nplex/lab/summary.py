"""The table of a comparison: means over seeds with intervals, as a value that prints itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from nplex.lab.scores import wilson

NAMES = {"accuracy": "accuracy %", "bleu": "BLEU", "loss": "loss, nats", "score": "score"}
DIGITS = {"accuracy": 2, "bleu": 2, "loss": 4, "score": 4}


@dataclass(frozen=True)
class Line:
    """One rule.

    Attributes:
        rule: as on the command line.
        layer_parameters: of the layers that the rule converts.
        share: of the dense layers' parameters; 0 where those are not known.
        scores: means over seeds; the main one first. Accuracy and BLEU from 0 to 100, loss in nats.
        low: lower end of the 95 % interval of the main score on other text of the same kind.
        high: upper end.
        seeds: the main score of each seed.
        training_seconds: mean over seeds.
        training_tokens_per_second: mean over seeds.
        testing_tokens_per_second: mean over seeds.
    """

    rule: str
    layer_parameters: int
    share: float
    scores: dict[str, float]
    low: float
    high: float
    seeds: tuple[float, ...]
    training_seconds: float
    training_tokens_per_second: float
    testing_tokens_per_second: float

    @property
    def score(self) -> float:
        """The mean of the main score."""
        return next(iter(self.scores.values()))


@dataclass(frozen=True)
class Summary:
    """All rules of a comparison, and what needs no model.

    Attributes:
        task: as on the command line.
        kind: accuracy, bleu or loss.
        lines: one for each rule.
        baseline: its name, and its scores; none where it was not kept.
        examples: how many the test part has.
        notes: how it was scored, as sacreBLEU's signature.
        environment: what the last run ran on.
    """

    task: str
    kind: str
    lines: tuple[Line, ...]
    baseline: tuple[str, dict[str, float]]
    examples: int
    notes: dict[str, str]
    environment: dict

    def table(self) -> list[list[str]]:
        """Header and rows as text."""
        digits, (name, scores), writes = DIGITS[self.kind], self.baseline, self.kind == "bleu"
        main, *others = self.lines[0].scores
        head = ["rule", "layer parameters", "of dense", NAMES[self.kind], "95 % interval", *others]
        rows = [
            [
                line.rule,
                f"{line.layer_parameters:,}",
                f"{line.share:.3f}" if line.share else "",
                f"{line.score:.{digits}f}",
                f"{line.low:.{digits - 1}f}-{line.high:.{digits - 1}f}" if line.low < line.high else "",
                *(f"{line.scores[other]:.{digits - 1}f}" for other in others),
                f"{line.training_seconds:,.0f}",
                f"{line.training_tokens_per_second:,.0f}",
                *([f"{line.testing_tokens_per_second:,.0f}"] if writes else []),
            ]
            for line in self.lines
        ]
        head = [*head, "training s", "tokens/s", *(["written tokens/s"] if writes else [])]
        if not scores:
            return [head, *rows]
        cells = [f"{scores[other]:.{digits - 1}f}" if other in scores else "" for other in others]
        last = [name, "", "", f"{scores[main]:.{digits}f}", "", *cells, "", "", *([""] if writes else [])]
        return [head, *rows, last]

    def markdown(self) -> str:
        """The table as Markdown, with the score of each seed and what it was measured on."""
        table = markdown_table(self.table())
        return f"{table}\n\n{self.examples:,} test examples. {self.each_seed()} {self.where()}\n"

    def each_seed(self) -> str:
        """The score of each seed, and how it was scored, in sentences."""
        digits = DIGITS[self.kind]
        seeds = "; ".join(f"{line.rule} {', '.join(f'{s:.{digits}f}' for s in line.seeds)}" for line in self.lines)
        return f"Each seed: {seeds}." + "".join(f" {name}: {value}." for name, value in self.notes.items())

    def where(self) -> str:
        """Versions and machine, in a sentence."""
        env = self.environment
        return f"nplex {env['commit']}, torch {env['torch']}, {machine(env)}, {env['date']}."


def machine(environment: dict) -> str:
    """The processor with its threads, and the accelerator where there was one."""
    processor = f"{environment['processor']}, {environment['threads']} thread(s)"
    accelerator = environment.get("accelerator", "none")
    return processor if accelerator == "none" else f"{accelerator}, {processor}"


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Header and rows as Markdown, numbers to the right."""
    head, *others = rows
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *others]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def summarise(results: Sequence[dict], baseline: tuple[str, dict[str, float]]) -> Summary:
    """Sums up the results of runs: a line for each rule, in the order in which they first come."""
    rules = dict.fromkeys(result["recipe"]["rule"] for result in results)
    grouped = {rule: [r for r in results if r["recipe"]["rule"] == rule] for rule in rules}
    first, last = results[0], results[-1]
    dense = first["dense_layer_parameters"] or grouped.get("dense", [{}])[0].get("layer_parameters", 0)
    lines = tuple(_line(rule, runs, dense) for rule, runs in grouped.items())
    return Summary(
        first["task"], first["kind"], lines, baseline, first["examples"], first["notes"], last["environment"]
    )


def _line(rule: str, runs: Sequence[dict], dense: int) -> Line:
    low, high = _interval(runs)
    layer = runs[0]["layer_parameters"]
    return Line(
        rule=rule,
        layer_parameters=layer,
        share=layer / dense if dense else 0.0,
        scores={name: fmean([run["scores"][name] for run in runs]) for name in runs[0]["scores"]},
        low=low,
        high=high,
        seeds=tuple(next(iter(run["scores"].values())) for run in runs),
        training_seconds=fmean([run["training_seconds"] for run in runs]),
        training_tokens_per_second=fmean([run["training_tokens_per_second"] for run in runs]),
        testing_tokens_per_second=fmean([run["testing_tokens_per_second"] for run in runs]),
    )


def _interval(runs: Sequence[dict]) -> tuple[float, float]:
    """Of accuracies from all answers together; else the means of the runs' own ends."""
    if runs[0]["kind"] == "accuracy":
        low, high = wilson([run["answers"][0] for run in runs])
        return 100 * low, 100 * high
    return fmean([run["interval"][0] for run in runs]), fmean([run["interval"][1] for run in runs])
