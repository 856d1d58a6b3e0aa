"""What trained networks have found: the algebra nearest to each rule of runs, before the first step and at the end.

    python scripts/identify_runs.py runs/*/4-seed0   # a few seconds for a rule of n = 4, more for n = 8

Reads the rules.safetensors of each run folder, takes --layers of its layers, evenly, and writes
results/identified.json and .md: how far the rules have moved, how many got a name, how far the nearest algebra is.
"""

import statistics
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track

from nplex.algebra.identify import identify
from nplex.checkpoint import read_json, write_json, write_text
from nplex.environment import environment
from nplex.place import RESULT
from nplex.summary import machine, markdown_table
from nplex.train import rules

RESULTS = Path(__file__).parents[1] / "results"


def main(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs.", metavar="RUN...")],
    layers: Annotated[int, typer.Option(min=1, help="Of each run, evenly chosen.")] = 8,
) -> None:
    """Identify, and write the table."""
    torch.set_num_threads(1)
    rows = [row for run in runs for row in _rows(run, layers)]
    env = environment()
    write_json(RESULTS / "identified.json", {"environment": env, "rules": rows})
    page = f"{_table(rows)}\n\nnplex {env['commit']}, torch {env['torch']}, {machine(env)}, {env['date']}.\n"
    write_text(RESULTS / "identified.md", page)
    print(page)


def _rows(run: Path, layers: int) -> list[dict]:
    """The chosen rules of a run, each at its start and at its end."""
    result, tables = read_json(run / RESULT), rules.read(run)
    first, last = tables[min(tables)], tables[max(tables)]
    names = list(first)
    chosen = names[:: max(1, len(names) // layers)][:layers]
    label = f"{result['task']} {result['recipe']['set']}".strip()
    rows = []
    for name in track(chosen, f"{label}, {result['recipe']['rule']}", console=Console(stderr=True)):
        began = time.perf_counter()
        found = {when: identify(table[name]) for when, table in (("start", first), ("end", last))}
        rows.append({
            "task": label, "rule": result["recipe"]["rule"], "seed": result["seed"], "layer": name,
            "moved": float((last[name] - first[name]).norm() / first[name].norm()),
            "seconds": (time.perf_counter() - began) / 2,
            **{
                when: {
                    "name": each.name, "confidence": each.confidence, "verdict": each.verdict,
                    "nearest": min((d.distance for d in each.distances), default=None),
                    "commutator": each.invariants.commutator, "associator": each.invariants.associator,
                }
                for when, each in found.items()
            },
        })  # fmt: skip
    return rows


def _table(rows: list[dict]) -> str:
    """A line for each run."""
    head = [
        "task", "rule", "layers", "moved, median", "named at the start", "at the end", "nearest at the start, median",
        "at the end, median", "at the end, least", "associator at the start", "at the end",
    ]  # fmt: skip
    lines = [head]
    for key in dict.fromkeys((row["task"], row["rule"]) for row in rows):
        those = [row for row in rows if (row["task"], row["rule"]) == key]
        near = {when: [row[when]["nearest"] for row in those] for when in ("start", "end")}
        law = {
            when: [row[when]["associator"] for row in those if row[when]["associator"] is not None]
            for when in ("start", "end")
        }
        lines.append([
            *key, str(len(those)), f"{statistics.median(row['moved'] for row in those):.0%}",
            *(_named(those, when) for when in ("start", "end")),
            f"{statistics.median(near['start']):.3f}", f"{statistics.median(near['end']):.3f}",
            f"{min(near['end']):.3f}",
            *(f"{statistics.median(values):.2f}" if values else "" for values in law.values()),
        ])  # fmt: skip
    return markdown_table(lines)


def _named(rows: list[dict], when: str) -> str:
    """How many have which name."""
    names = [row[when]["name"] for row in rows if row[when]["name"]]
    return ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names)) or "none"


if __name__ == "__main__":
    typer.run(main)
