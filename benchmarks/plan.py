"""Times every method over a grid of sizes and prints where the plan takes one that is more than 10 % too slow.

    python benchmarks/plan.py                 # about fifteen minutes; writes benchmarks/results/plan-1-thread.*
    python benchmarks/plan.py --threads 2
    python benchmarks/plan.py --measure       # plans with this machine's constants, measured first
    python benchmarks/plan.py --quick         # a few small cells, to see that it runs; writes nothing

Before anything is timed, every method is compared with the reference. The methods run in turns, each a few times in a
row, of which the first does not count: so none profits from what the one before it left in the cache. A miss counts
only if timing the cell again, with more turns, confirms it.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from rich.console import Console
from rich.progress import track
from torch import Tensor

from nplex import ops
from nplex.algebra import BilinearAlgorithm, as_table, generic_rank
from nplex.files import write_json
from nplex.lab.environment import environment

WIDTHS, SHAPES = (256, 512, 1024, 2048, 4096), ((1, 1), (1, 4), (4, 1))
TOKENS, DIMENSIONS = (1, 2, 4, 8, 16, 32, 64, 128, 512, 2048, 8192), (2, 4, 8, 16)
LARGEST = 2**33  # multiply-adds of a dense layer; larger cells differ from these only in the time they take
LIMIT = 1.1
RESULTS = Path(__file__).parent / "results"


class Case(NamedTuple):
    """Sizes, the rank (0 for a full rule), and "forward" without gradients or "training" with all."""

    d_in: int
    d_out: int
    tokens: int
    n: int
    rank: int
    mode: str


def main(
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 1,
    repeats: Annotated[int, typer.Option(min=3, help="Turns at most; long cells take fewer.")] = 9,
    every: Annotated[int, typer.Option(min=1, help="One of so many cells of the grid, drawn at random.")] = 3,
    measure: Annotated[bool, typer.Option("--measure", help="Plan with this machine's own constants.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A few small cells, nothing written.")] = False,
) -> None:
    """Time the grid; print the misses and a summary and write them with all figures as JSON."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    machine = ops.measure() if measure else None
    cases = list(grid())
    cases = [cases[i] for i in torch.randperm(len(cases))[: len(cases) // every].sort().values.tolist()]
    cases = [case for case in cases if case.d_in * case.d_out * case.tokens <= 2**18][:9] if quick else cases
    cells = []
    for case in track(cases, "timing", console=Console(stderr=True)):
        cell = timed(case, repeats, machine)
        cells.append(timed(case, 3 * repeats, machine) if cell["slower"] > LIMIT else cell)
    text = summary(cells)
    print(text)
    if not quick:
        name = f"plan-{threads}-thread{'s' * (threads > 1)}"
        env = environment()
        found = {
            "environment": env,
            "seed": 0,
            "repeats": repeats,
            "every": every,
            "measured": measure,
            "cells": cells,
        }
        write_json(RESULTS / f"{name}.json", found)
        (RESULTS / f"{name}.md").write_text(heading(env) + text + "\n", "utf-8")


def grid() -> Iterator[Case]:
    """All cells: full rules, generic ranks and rank n."""
    sizes = {(w * up, w * down) for w in WIDTHS for up, down in SHAPES if max(w * up, w * down) <= WIDTHS[-1]}
    for d_in, d_out in sorted(sizes):
        for tokens in TOKENS:
            if d_in * d_out * tokens <= LARGEST:
                for n in DIMENSIONS:
                    for rank in dict.fromkeys((0, generic_rank(n), n)):
                        yield from (Case(d_in, d_out, tokens, n, rank, mode) for mode in ("forward", "training"))


def timed(case: Case, repeats: int, machine: ops.Machine | None) -> dict:
    """The cell of one case: milliseconds of each method, the plan's choice, and how much slower that is."""
    d_in, d_out, tokens, n, rank, mode = case
    components = torch.randn(n, d_out // n, d_in // n) / d_in**0.5
    factors = [torch.randn(n, rank) / rank**0.5 for _ in range(3)] if rank else [torch.randn(n, n, n) / n]
    x, upstream = torch.randn(tokens, d_in), torch.randn(tokens, d_out)
    leaves = [tensor.requires_grad_(mode == "training") for tensor in (x, components, *factors)]
    rule = BilinearAlgorithm(*factors) if rank else factors[0]
    methods = [m for m in ops.METHODS if m != "reference" and (rank or m != "bilinear")]
    if tokens <= 16 and d_in * d_out <= 2**20:
        agree(x, rule, components, methods)

    def call(method: str) -> Callable[[], object]:
        if mode == "forward":
            return lambda: ops.product(x, rule, components, method=method)
        return lambda: torch.autograd.grad(ops.product(x, rule, components, method=method), leaves, upstream)

    seconds = in_turns({method: call(method) for method in methods}, repeats)
    chosen = ops.plan_for(
        d_in, d_out, tokens=tokens, n=n, rank=rank or None, training=mode == "training", machine=machine
    ).method
    best = min(methods, key=lambda method: seconds[method])
    return case._asdict() | {
        "ms": {method: 1e3 * value for method, value in seconds.items()},
        "chosen": chosen, "best": best, "slower": seconds[chosen] / seconds[best],
    }  # fmt: skip


def agree(x: Tensor, rule: Tensor | BilinearAlgorithm, components: Tensor, methods: list[str]) -> None:
    """Stops when a method differs from the reference by more than float32 allows."""
    with torch.no_grad():
        expected = ops.product(x, as_table(rule), components, method="reference")
        for method in methods:
            found = ops.product(x, rule, components, method=method)
            error = ((found - expected).norm() / expected.norm()).item()
            assert error < 1e-4, f"{method} is {error:.1e} from the reference: nothing is timed"


def in_turns(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each. A turn is three runs in a row where they are short, the first of them for the cache."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    began = time.perf_counter()
    for turn in range(repeats):
        for name, run in runs.items():
            for _ in range(2):
                start = time.perf_counter()
                run()
                last = time.perf_counter() - start
                if last > 0.02:
                    break
            else:
                start = time.perf_counter()
                run()
                last = min(last, time.perf_counter() - start)
            if turn > 0 or last > 0.1:
                seconds[name].append(last)
        if turn > 0 and time.perf_counter() - began > repeats * 0.05:
            break
    return {name: statistics.median(values) for name, values in seconds.items()}


def summary(cells: list[dict]) -> str:
    """The misses as a table, the worst first, and how many of how many."""
    misses = sorted((cell for cell in cells if cell["slower"] > LIMIT), key=lambda cell: -cell["slower"])
    worst = max((cell["slower"] for cell in cells), default=1.0)
    lines = [
        f"{len(misses)} of {len(cells)} choices are more than {100 * LIMIT - 100:.0f} % slower than the best method; "
        f"the worst by {100 * worst - 100:.0f} %.",
        "",
        "| size | tokens | n | rank | mode | taken | ms | best | ms | slower |",
        "|---|---:|---:|---:|---|---|---:|---|---:|---:|",
    ]
    for cell in misses:
        ms, chosen, best = cell["ms"], cell["chosen"], cell["best"]
        lines.append(
            f"| {cell['d_in']} x {cell['d_out']} | {cell['tokens']} | {cell['n']} | {cell['rank'] or 'full'} | "
            f"{cell['mode']} | {chosen} | {ms[chosen]:.3f} | {best} | {ms[best]:.3f} | "
            f"{100 * cell['slower'] - 100:.0f} % |"
        )
    return "\n".join(lines if misses else lines[:1])


def heading(env: dict) -> str:
    """Where and when."""
    return (
        f"nplex {env['commit']}, torch {env['torch']}, {env['processor']}, {env['threads']} thread(s), float32, "
        f"{env['date']}\n\n"
    )


if __name__ == "__main__":
    typer.run(main)
