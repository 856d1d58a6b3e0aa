"""Words a second of greedy and beam search, by the models of the recipes: dense, and their twins.

    python benchmarks/generation.py            # some minutes; writes benchmarks/results/generation-1-thread.*
    python benchmarks/generation.py --quick    # two rules of the small size, to see that it runs; writes nothing

The encoder-decoder of the translation recipe and the decoder-only model of the language recipe, at both sizes, with
first values: what is written is random, and its end is a word that is never taken, so that all write as many. Before
anything is timed, each model must write the very words that its dense twin with the same weights writes. Every turn
runs all rules. A ratio above 1 is faster than dense.
"""

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track
from torch import nn

import nplex
from nplex.convert import parse_rule
from nplex.files import write_json, write_text
from nplex.lab.environment import environment
from nplex.lab.generation import beam, greedy
from nplex.lab.recipes.encoder_decoder import EncoderDecoder
from nplex.lab.recipes.language_model import LanguageModel
from nplex.lab.recipes.language_modelling import BYTES
from nplex.lab.recipes.tasks import recipe_of
from nplex.lab.summary import markdown_table

RESULTS = Path(__file__).parent / "results"
CONSOLE = Console(stderr=True)
RULES = ("dense", "2", "4", "4:7", "4:4", "8", "8:8")
LENGTH, NEVER, BEAMS = 32, -1, 5
Write = Callable[[], list[list[int]]]


@dataclass(frozen=True)
class Case:
    """A model at a size, and how it writes.

    Attributes:
        task: whose model.
        size: of the recipe.
        search: greedy or beam.
        texts: at once.
    """

    task: str
    size: str
    search: str
    texts: int

    def __str__(self) -> str:
        beams = f" of {BEAMS}" if self.search == "beam" else ""
        return f"{self.task}, {self.size}: {self.search}{beams}, {self.texts} text{'s' * (self.texts > 1)}"


CASES = tuple(
    Case(task, size, search, texts)
    for task in ("translation", "language")
    for size in ("small", "paper")
    for search, texts in (("greedy", 1), ("greedy", 32), ("beam", 8))
)


def main(
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 1,
    repeats: Annotated[int, typer.Option(min=3, help="Turns; the median counts.")] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="Two rules, small size, nothing written.")] = False,
) -> None:
    """Measure all; print the table and write it with all figures as JSON."""
    torch.set_num_threads(threads)
    rules = (RULES[0], RULES[-1]) if quick else RULES
    cases = [case for case in CASES if case.size == "small"] if quick else CASES
    rows = []
    for size, task in dict.fromkeys((case.size, case.task) for case in cases):
        models = {rule: built(task, size, rule) for rule in rules}
        for case in (case for case in cases if (case.size, case.task) == (size, task)):
            seconds = measured(case, models, repeats)
            speed = {rule: case.texts * LENGTH / statistics.median(each) for rule, each in seconds.items()}
            rows.append({"case": str(case), "seconds": seconds, "words_per_second": speed})
    text = markdown_table([["written words a second", *rules], *(line(row) for row in rows)])
    print(text)
    if not quick:
        name = RESULTS / f"generation-{threads}-thread{'s' * (threads > 1)}"
        env = environment()
        write_json(name.with_suffix(".json"), {"environment": env, "seed": 0, "length": LENGTH, "cases": rows})
        write_text(name.with_suffix(".md"), heading(env) + text + "\n")


def built(task: str, size: str, rule: str) -> nn.Module:
    """The recipe's model with first values, its blocks converted."""
    torch.manual_seed(0)
    recipe = recipe_of(task, rule, size=size)
    sizes = {name: getattr(recipe, name) for name in ("width", "heads", "feed_forward", "layers", "dropout")}
    if task == "translation":
        model: nn.Module = EncoderDecoder(recipe.vocabulary, longest=2 * recipe.longest, **sizes)
    else:
        model = LanguageModel(BYTES, longest=recipe.length, **sizes)
    parsed = parse_rule(rule)
    if parsed is not None:
        nplex.convert_(model, parsed, where=recipe.converted)
    return model.eval()


def writer(case: Case, model: nn.Module) -> Write:
    """A search from random sources, or prompts, of LENGTH words."""
    source = torch.randint(4, 250, (case.texts, LENGTH), generator=torch.Generator().manual_seed(1))
    options = {"longest": LENGTH, "begin": 2, "end": NEVER}
    if case.search == "greedy":
        return lambda: greedy(model, source, **options)
    return lambda: beam(model, source, beams=BEAMS, **options)


def measured(case: Case, models: dict[str, nn.Module], repeats: int) -> dict[str, list[float]]:
    """Seconds of each rule, one for each turn; the first turn is compared with the dense twin's words."""
    writers = {rule: writer(case, model) for rule, model in models.items()}
    for rule, write in list(writers.items())[1:]:
        twin = copy.deepcopy(models[rule])
        nplex.fold_(twin)
        same = alike(write(), writer(case, twin)())
        assert same > 0.98, f"{case}, {rule}: only {same:.0%} of the words are those of the dense twin"
    seconds: dict[str, list[float]] = {rule: [] for rule in writers}
    for _ in track(range(repeats), str(case), console=CONSOLE):
        for rule, write in writers.items():
            began = time.perf_counter()
            write()
            seconds[rule].append(time.perf_counter() - began)
    return seconds


def alike(first: list[list[int]], second: list[list[int]]) -> float:
    """The share of words that are the same; by rounding two that are nearly as likely may change places."""
    pairs = [a == b for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True)]
    return sum(pairs) / len(pairs)


def line(row: dict) -> list[str]:
    """Words a second of each rule, and their ratio to dense."""
    speed = row["words_per_second"]
    dense = speed[RULES[0]]
    return [row["case"], *(f"{value:,.0f} ({value / dense:.2f})" for value in speed.values())]


def heading(env: dict) -> str:
    """What was measured, where and when."""
    return (
        f"nplex {env['commit']}, torch {env['torch']}, {env['processor']}, {env['threads']} thread(s), float32, "
        f"{env['date']}\n\n"
        f"Texts of {LENGTH} words from sources of {LENGTH}; the encoder, or reading the prompt, is in the time. "
        "In brackets the ratio to dense: above 1 is faster.\n\n"
    )


if __name__ == "__main__":
    typer.run(main)
