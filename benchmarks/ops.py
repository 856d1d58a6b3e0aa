"""Times every method of the product against torch.nn.functional.linear, in turns.

    python benchmarks/ops.py                     # about ten minutes; writes benchmarks/results/ops-1-thread.*
    python benchmarks/ops.py --threads 2
    python benchmarks/ops.py --quick             # one size, to see that it runs

Before anything is timed, every method is compared with the reference. A ratio below 1 is faster than dense.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F

from nplex import ops
from nplex.algebra import as_table
from nplex.checkpoint import write_json
from nplex.convert import parse_rule
from nplex.environment import environment

RULES = ("2", "4", "4:7", "4:4", "8", "8:24", "8:8")
SIZES = ((256, 256), (1024, 1024), (2048, 2048), (512, 2048), (2048, 512))
TOKENS = (1, 32, 1024)
TIMED = tuple(method for method in ops.METHODS if method != "auto")
RESULTS = Path(__file__).parent / "results"


def main(
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 1,
    repeats: Annotated[int, typer.Option(min=3, help="Turns; the median counts.")] = 7,
    quick: Annotated[bool, typer.Option("--quick", help="One size only, nothing written.")] = False,
) -> None:
    """Time every method; print the table and write it with all figures as JSON."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    cases = [(size, tokens, rule) for size in SIZES for tokens in TOKENS for rule in RULES]
    cases = cases[1:2] if quick else cases
    cells = []
    for (d_in, d_out), tokens, rule in track(cases, "timing", console=Console(stderr=True)):
        cells += measure(d_in, d_out, tokens, rule, repeats)
    text = "\n\n".join(table(cells, mode, tokens) for mode in ("forward", "training") for tokens in TOKENS)
    print(text)
    if not quick:
        name = f"ops-{threads}-thread{'s' * (threads > 1)}"
        found = {"environment": environment(), "seed": 0, "repeats": repeats, "cells": cells}
        write_json(RESULTS / f"{name}.json", found)
        (RESULTS / f"{name}.md").write_text(heading(found["environment"]) + text + "\n", "utf-8")


def measure(d_in: int, d_out: int, tokens: int, rule: str, repeats: int) -> list[dict]:
    """The cells of one size and rule: median milliseconds of each method, and their ratio to dense."""
    module = parse_rule(rule)
    value, n = module(), module.n
    x = torch.randn(tokens, d_in, requires_grad=True)
    components = torch.randn(n, d_out // n, d_in // n, requires_grad=True)
    weight, bias = torch.randn(d_out, d_in, requires_grad=True), torch.randn(d_out, requires_grad=True)
    methods = [m for m in TIMED if m != "bilinear" or module.rank is not None]
    agree(x, value, components, bias, methods)

    runs: dict[str, Callable[[], Tensor]] = {"linear": lambda: F.linear(x, weight, bias)}
    for method in methods:
        runs[method] = lambda method=method: ops.product(x, module(), components, bias, method=method)
    cells = []
    for mode, timed in (("forward", forward), ("training", training)):
        times = in_turns(runs, timed, repeats)
        for method in methods:
            cells.append({
                "d_in": d_in, "d_out": d_out, "tokens": tokens, "rule": rule, "method": method, "mode": mode,
                "ms": 1e3 * times[method], "dense_ms": 1e3 * times["linear"],
                "ratio": times[method] / times["linear"],
                "planned": ops.plan(d_in, d_out, tokens=tokens, n=n, rank=module.rank).method == method,
            })  # fmt: skip
    return cells


def agree(x: Tensor, rule: object, components: Tensor, bias: Tensor, methods: list[str]) -> None:
    """Stops when a method differs from the reference by more than float32 allows."""
    expected = ops.product(x, as_table(rule), components, bias, method="reference")
    for method in methods:
        found = ops.product(x, rule, components, bias, method=method)
        error = ((found - expected).norm() / expected.norm()).item()
        assert error < 1e-5, f"{method} is {error:.1e} from the reference: nothing is timed"


def forward(run: Callable[[], Tensor]) -> None:
    """Inference."""
    with torch.no_grad():
        run()


def training(run: Callable[[], Tensor]) -> None:
    """Forward and backward, all gradients."""
    run().sum().backward()


def in_turns(runs: dict[str, Callable], timed: Callable, repeats: int) -> dict[str, float]:
    """Median seconds of each; every turn runs all, so that a busy machine hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 2):
        for name, run in runs.items():
            began = time.perf_counter()
            timed(run)
            if turn > 1:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def table(cells: list[dict], mode: str, tokens: int) -> str:
    """Ratios to dense as Markdown: a row for each rule and method, a column for each size; * is the plan's."""
    chosen = [cell for cell in cells if cell["mode"] == mode and cell["tokens"] == tokens]
    sizes = list(dict.fromkeys((cell["d_in"], cell["d_out"]) for cell in chosen))
    lines = [
        f"**{mode}, {tokens} token{'s' * (tokens != 1)}**, time as a share of torch's linear",
        "",
        "| rule | method | " + " | ".join(f"{d_in} x {d_out}" for d_in, d_out in sizes) + " |",
        "|---|---|" + "---:|" * len(sizes),
    ]
    for rule, method in dict.fromkeys((cell["rule"], cell["method"]) for cell in chosen):
        row = [cell for cell in chosen if (cell["rule"], cell["method"]) == (rule, method)]
        values = " | ".join(f"{cell['ratio']:.2f}{'*' if cell['planned'] else ''}" for cell in row)
        lines.append(f"| {rule} | {method} | {values} |")
    return "\n".join(lines)


def heading(env: dict) -> str:
    """Where and when."""
    return (
        f"nplex {env['commit']}, torch {env['torch']}, {env['processor']}, {env['threads']} thread(s), float32, "
        f"{env['date']}\n\n`*`: the method that the plan takes\n\n"
    )


if __name__ == "__main__":
    typer.run(main)
