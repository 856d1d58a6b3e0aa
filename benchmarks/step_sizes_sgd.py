"""Which norm of a rule lets SGD with momentum train convolutions at the dense network's rate: n, or n^1.5?

    python benchmarks/step_sizes_sgd.py             # 15 minutes of one core
    python benchmarks/step_sizes_sgd.py --steps 5   # to see that it runs; writes no results

A network of causal convolutions with batch norm on the bytes of step_sizes.py: 4 residual blocks of width 128 and
kernel 5, 16 lines of 64 bytes a step, 300 steps of SGD (momentum .9, no decay), 30 steps of warm-up, then a cosine.
Every contestant is trained at every rate, in steps of 2. Runs that are done are in --out and not done again. Writes
results/step-sizes-sgd.json and .md.
"""

import math
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track
from step_sizes import LINES, RESULTS, TESTED, lines, texts
from torch import nn
from torch.nn import functional as F

import nplex
from nplex.files import read_json, write_json, write_text
from nplex.lab.environment import environment
from nplex.nn import LearnedRule

CONSOLE = Console(stderr=True)
WIDTH, KERNEL, BLOCKS, WARM_UP = 128, 5, 4, 30
RATES = tuple(0.4 * 2.0**power for power in range(-8, 4))
DIVERGED = math.log(256)  # nats a byte of one who knows nothing
CONTESTANTS = [(1, 1.0), (4, 1.0), (4, 1.5), (8, 1.0), (8, 1.5)]  # n, and the power of n that is the rule's norm


class Block(nn.Module):
    """`x + relu(norm(conv(x)))`, which sees the past alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(WIDTH, WIDTH, KERNEL), nn.BatchNorm1d(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The same shape: lines x WIDTH x bytes."""
        return x + F.relu(self.norm(self.conv(F.pad(x, (KERNEL - 1, 0)))))


class Bytes(nn.Module):
    """A language model of causal convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(256, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.head = nn.Linear(WIDTH, 256)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """The mean loss, in nats a byte, of all but the first."""
        x = self.blocks(self.words(text[:, :-1]).transpose(1, 2))
        return F.cross_entropy(self.head(x.transpose(1, 2)).transpose(1, 2), text[:, 1:])


def trained(n: int, power: float, rate: float, steps: int) -> float:
    """The loss on the test part, in nats a byte."""
    torch.manual_seed(0)
    train, test = texts()
    model = Bytes()
    if n > 1:
        nplex.convert_(model, LearnedRule(n, norm=n**power), where=nplex.only("blocks.*"))
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    curve = lambda step: min((step + 1) / WARM_UP, (1 + math.cos(math.pi * step / steps)) / 2)  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, curve)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        model(lines(train, LINES, generator)).backward()
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        return float(model(lines(test, TESTED, torch.Generator().manual_seed(0))))


def main(
    steps: Annotated[int, typer.Option(min=1)] = 300,
    out: Annotated[Path, typer.Option(help="Where runs that are done are kept.")] = Path("runs/step-sizes-sgd"),
) -> None:
    """Run what is missing, then print the table; write it where the steps are 300 or more."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)

    def loss(n: int, power: float, rate: float) -> float:
        file = out / f"{n}-{power:g}-{rate:g}-{steps}.json"
        if not file.exists():
            write_json(file, {"loss": trained(n, power, rate, steps)})
        return read_json(file)["loss"]

    jobs = [(n, power, rate) for n, power in CONTESTANTS for rate in RATES]
    found = {
        "steps": steps,
        "runs": [
            {"n": n, "power": power, "rate": rate, "loss": loss(n, power, rate)}
            for n, power, rate in track(jobs, console=CONSOLE)
        ],
        "environment": environment(),
    }
    print(shown := page(found))
    if steps >= 300:
        write_json(RESULTS / "step-sizes-sgd.json", found)
        write_text(RESULTS / "step-sizes-sgd.md", shown + "\n")


def page(found: dict) -> str:
    """The table, as Markdown: a row for each rate, the best of each column in bold."""
    losses = {(r["n"], r["power"], r["rate"]): r["loss"] for r in found["runs"]}
    best = {c: min(losses[*c, rate] for rate in RATES) for c in CONTESTANTS}
    names = [
        "dense" if n == 1 else f"n = {n}, norm n{'' if power == 1 else f'^{power:g}'}" for n, power in CONTESTANTS
    ]
    rows = [f"| rate | {' | '.join(names)} |", "| ---: |" + " ---: |" * len(names)]
    for rate in RATES:
        cells = [losses[*c, rate] for c in CONTESTANTS]
        shown = [f"{x:.3f}" if x < DIVERGED else "diverged" for x in cells]
        bold = [f"**{text}**" if x == best[c] else text for c, x, text in zip(CONTESTANTS, cells, shown, strict=True)]
        rows.append(f"| {rate:.4g} | {' | '.join(bold)} |")
    made = found["environment"]
    return "\n".join([
        "# SGD with momentum on convolutions: nats a byte for each rate", "",
        f"Bytes of Python's standard library, {BLOCKS} blocks of causal convolutions, width {WIDTH}, "
        f"{found['steps']} steps, one seed. Made by `python benchmarks/step_sizes_sgd.py`, commit {made['commit']}, "
        f"torch {made['torch']}.", "",
        *rows,
    ])  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
