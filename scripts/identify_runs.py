"""What trained networks have found: the algebra nearest to each rule of runs, before the first step and at the end.

    python scripts/identify_runs.py runs/*/4-seed0   # about a second a rule
    python scripts/identify_runs.py                  # the same tables again, with today's identify

Reads the rules.safetensors of each run folder, takes --layers of its layers, evenly, and writes
results/identified.json and .md: how far the rules have moved, how many got a name, how far the nearest algebra is.
The tables themselves are kept in results/identified.safetensors, so that the runs need not be.
"""

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track
from torch import Tensor

from nplex.algebra import identify
from nplex.files import read_json, read_tensors, write_json, write_tensors, write_text
from nplex.lab.environment import environment
from nplex.lab.run_folder import RESULT
from nplex.lab.summary import machine, markdown_table
from nplex.lab.train import rules

RESULTS = Path(__file__).parents[1] / "results"
KEPT = RESULTS / "identified.safetensors"


@dataclass(frozen=True)
class Learned:
    """A rule of a run, before the first step and at the end."""

    task: str
    rule: str
    seed: int
    layer: str
    start: Tensor
    end: Tensor


def main(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Folders of finished runs; none: those kept.", metavar="[RUN...]")
    ] = None,
    layers: Annotated[int, typer.Option(min=1, help="Of each run, evenly chosen.")] = 8,
) -> None:
    """Identify, and write the table."""
    torch.set_num_threads(1)
    learned = [each for run in runs for each in _of(run, layers)] if runs else _kept()
    rows = [_row(each) for each in track(learned, "rules", console=Console(stderr=True))]
    if runs:
        _keep(learned)
    env = environment()
    write_json(RESULTS / "identified.json", {"environment": env, "rules": rows})
    page = f"{_table(rows)}\n\nnplex {env['commit']}, torch {env['torch']}, {machine(env)}, {env['date']}.\n"
    write_text(RESULTS / "identified.md", page)
    print(page)


def _of(run: Path, layers: int) -> list[Learned]:
    """The chosen rules of a run, which is known by the folder that it is in."""
    result, tables = read_json(run / RESULT), rules.read(run)
    first, last = tables[min(tables)], tables[max(tables)]
    names = list(first)
    chosen = names[:: max(1, len(names) // layers)][:layers]
    made = (run.resolve().parent.name, result["recipe"]["rule"], result["seed"])
    return [Learned(*made, name, first[name], last[name]) for name in chosen]


def _keep(learned: list[Learned]) -> None:
    """Writes the tables, numbered, and in the header what they are of."""
    tensors = {f"{i} {when}": getattr(each, when) for i, each in enumerate(learned) for when in ("start", "end")}
    write_tensors(KEPT, tensors, {"rules": [[each.task, each.rule, each.seed, each.layer] for each in learned]})


def _kept() -> list[Learned]:
    """What `_keep` wrote."""
    tensors, header = read_tensors(KEPT)
    return [Learned(*made, tensors[f"{i} start"], tensors[f"{i} end"]) for i, made in enumerate(header["rules"])]


def _row(each: Learned) -> dict:
    """What is in a rule at its start and at its end."""
    began = time.perf_counter()
    found = {"start": identify(each.start), "end": identify(each.end)}
    return {
        "task": each.task, "rule": each.rule, "seed": each.seed, "layer": each.layer,
        "moved": float((each.end - each.start).norm() / each.start.norm()),
        "seconds": (time.perf_counter() - began) / 2,
        **{
            when: {
                "name": told.name, "verdict": told.verdict,
                "nearest": min((d.distance for d in told.distances), default=None),
                "commutator": told.invariants.commutator, "associator": told.invariants.associator,
            }
            for when, told in found.items()
        },
    }  # fmt: skip


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
