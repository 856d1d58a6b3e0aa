"""Times whole models, dense and converted: an encoder-decoder transformer, and an LSTM language model.

    python benchmarks/models.py                  # about half an hour; writes benchmarks/results/models-1-thread.*
    python benchmarks/models.py --threads 2
    python benchmarks/models.py --quick          # tiny models, to see that it runs; writes nothing

Training step (forward, loss, backward, AdamW), evaluation (loss without gradients), generation token by token, and
the peak memory of each, in a process of its own. Before anything is timed, every model is compared with its dense
twin, which holds its expanded weights, and generation with the full pass. The models are in models_transformer.py and
models_lstm.py, what is run in models_work.py, the memory in models_memory.py. A ratio below 1 is better than dense.
"""

import contextlib
import statistics
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Annotated

import models_memory
import models_work
import torch
import typer
from models_memory import WORKLOADS
from models_work import GENERATING, MODES, Run
from rich.console import Console
from rich.progress import track

import nplex
from nplex.files import write_json
from nplex.lab.environment import environment
from nplex.nn import cached

RESULTS = Path(__file__).parent / "results"
CONSOLE = Console(stderr=True)
HELD = ("parameters", "gradients", "optimizer_state")


def main(
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 1,
    repeats: Annotated[int, typer.Option(min=3, help="Turns; the median counts.")] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny models, nothing written.")] = False,
) -> None:
    """Measure both models; print the tables and write them with all figures as JSON."""
    torch.set_num_threads(threads)
    found = {name: measure(name, repeats, quick) for name in WORKLOADS}
    text = "\n\n".join(tables(WORKLOADS[name], rows) for name, rows in found.items())
    print(text)
    if not quick:
        env = environment()
        name = f"models-{threads}-thread{'s' * (threads > 1)}"
        sizes = {key: asdict(module.FULL) for key, module in WORKLOADS.items()}
        write_json(
            RESULTS / f"{name}.json",
            {"environment": env, "seed": 0, "repeats": repeats, "sizes": sizes, "models": found},
        )
        (RESULTS / f"{name}.md").write_text(heading(env) + text + "\n", "utf-8")


def measure(name: str, repeats: int, quick: bool) -> list[dict]:
    """A row for each variant of a workload: what it holds, how long it takes, its peak memory."""
    torch.manual_seed(0)
    workload = WORKLOADS[name]
    sizes = workload.QUICK if quick else workload.FULL
    variants = (workload.VARIANTS[0], workload.VARIANTS[-1]) if quick else workload.VARIANTS
    rows = []
    for variant in track(variants, f"{name}: memory", console=CONSOLE):
        memory = {mode: models_memory.measured(name, variant, mode, quick=quick) for mode in MODES}
        rows.append({"variant": variant, "bytes": models_memory.held(workload, variant, sizes), "memory": memory})

    models = {variant: workload.build(variant, sizes) for variant in variants}
    for row in track(rows, f"{name}: agreement", console=CONSOLE):
        model = models[row["variant"]]
        count = nplex.count(model)
        row |= {"parameters": count.total, "of_layers": count.layers, "of_rules": count.rules}
        row["errors"] = models_work.agree(model, workload, sizes)
    seconds = timed(models, workload, sizes, repeats)
    for row in rows:
        row["seconds"] = seconds[row["variant"]]
        row["ms"] = {mode: 1e3 * statistics.median(values) for mode, values in row["seconds"].items()}
    return rows


def timed(
    models: dict[str, torch.nn.Module], workload: ModuleType, sizes: object, repeats: int
) -> dict[str, dict[str, list[float]]]:
    """Seconds by variant and mode, one for each turn; weights are kept built, except in training."""
    runs = {variant: models_work.runs(model, workload, sizes) for variant, model in models.items()}
    seconds: dict[str, dict[str, list[float]]] = {variant: {} for variant in models}
    with torch.no_grad(), contextlib.ExitStack() as stack:
        for model in models.values():
            stack.enter_context(cached(model))
        for mode in MODES[1:]:
            in_turns({variant: run[mode] for variant, run in runs.items()}, seconds, repeats, mode)
    in_turns({variant: run["training"] for variant, run in runs.items()}, seconds, repeats, "training")
    return seconds


def in_turns(runs: dict[str, Run], seconds: dict[str, dict[str, list[float]]], repeats: int, mode: str) -> None:
    """Every turn runs all variants, so that a busy machine hits all alike; the first turn does not count."""
    for turn in track(range(repeats + 1), mode, console=CONSOLE):
        for variant, run in runs.items():
            for name, value in run().items():
                seconds[variant].setdefault(name, []).extend([value] if turn else [])


def tables(workload: ModuleType, rows: list[dict]) -> str:
    """Times, and memory: a row for each variant."""
    dense = rows[0]
    fastest = {mode: min(row["ms"][mode] for row in rows if row["variant"].startswith("dense")) for mode in MODES}
    time_head = ["parameters", "training ms", "evaluation ms", *(f"{mode}: ms a step" for mode in GENERATING)]
    memory_head = ["parameters MB", "gradients MB", "optimizer state MB", *(f"{mode} MB" for mode in MODES)]
    times, memories = [], []
    for row in rows:
        name, ms, held, memory = row["variant"], row["ms"], row["bytes"], row["memory"]
        counted = f"{row['parameters']:,} ({row['parameters'] / dense['parameters']:.2f})"
        times.append([name, counted, *(shown(ms[mode], fastest[mode]) for mode in MODES)])
        megabytes = [shown(held[key] / 1e6, dense["bytes"][key] / 1e6) for key in HELD]
        for mode in MODES:
            megabytes.append(shown(memory[mode]["peak"] / 1e6, dense["memory"][mode]["peak"] / 1e6))
        memories.append([name, *megabytes])
    return "\n\n".join([
        workload.NOTE,
        "Time, and its ratio to the dense model (to the faster one, where there are two):",
        markdown(["rule", *time_head], times),
        "What training holds, then the peak memory of each mode, and the ratios to dense:",
        markdown(["rule", *memory_head], memories),
    ])


def shown(value: float, dense: float) -> str:
    """A figure and its ratio to the dense model's."""
    ratio = f"{value / dense:.2f}" if dense else "-"
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} ({ratio})"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def heading(env: dict) -> str:
    """Where and when."""
    return (
        f"nplex {env['commit']}, torch {env['torch']}, {env['processor']}, {env['threads']} thread(s), float32, "
        f"{env['date']}\n\n"
    )


if __name__ == "__main__":
    typer.run(main)
