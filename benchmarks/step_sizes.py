"""Does the dense model's learning rate serve hypercomplex layers, with plain AdamW?

    python benchmarks/step_sizes.py             # 63 runs
    python benchmarks/step_sizes.py --steps 5   # to see that it runs; writes no results
    python benchmarks/step_sizes_sgd.py         # the same question for SGD and convolutions: 15 minutes

A language model on the bytes of Python's own standard library: 2 blocks of torch's encoder layer, width 256, 16
lines of 64 bytes a step, 500 steps, AdamW (.9, .98) without decay, 50 steps of warm-up, then a cosine to 0. Every
contestant is trained at each of RATES with the first seed, and with all seeds at the rate that is best for the dense
model. "norm n" are rules of `1 / sqrt(n)` of the default's size; "groups" is
`AdamW(nplex.optim.param_groups(model, lr=lr))`, all others are `AdamW(model.parameters(), lr)`. Runs that are done
are in --out and not done again. Writes results/step-sizes.json, .md and .png.
"""

import math
import sysconfig
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from torch import nn
from torch.nn import functional as F

import nplex
from nplex import algebra
from nplex.figures import new_figure, write_figure
from nplex.files import read_json, write_json, write_text
from nplex.lab.environment import environment
from nplex.nn import LearnedRule

RESULTS = Path(__file__).parents[1] / "results"
CONSOLE = Console(stderr=True)
LENGTH, LINES, WARM_UP, TESTED = 64, 16, 50, 512
RATES = (1e-3, 1.41e-3, 2e-3, 2.83e-3, 4e-3)
CONTESTANTS = {
    "dense": lambda: None,
    "n = 2": lambda: LearnedRule(2),
    "n = 4": lambda: LearnedRule(4),
    "n = 4, rank 4": lambda: LearnedRule(4, rank=4),
    "n = 8, rank 8": lambda: LearnedRule(8, rank=8),
    "n = 4, rank 4, norm n": lambda: LearnedRule(4, rank=4, norm=4.0),
    "n = 8, rank 8, norm n": lambda: LearnedRule(8, rank=8, norm=8.0),
    "quaternion": lambda: algebra.quaternion,
    "quaternion, groups": lambda: algebra.quaternion,
}


class Bytes(nn.Module):
    """A decoder-only transformer of torch's encoder layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(256, width), nn.Embedding(LENGTH, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, 256, bias=False)
        for table in (self.words, self.places):
            nn.init.normal_(table.weight, std=0.02)
        for block in self.blocks.layers:  # torch's encoder copies one block
            for part in block.modules():
                if isinstance(part, (nn.Linear, nn.MultiheadAttention)):
                    part._reset_parameters() if isinstance(part, nn.MultiheadAttention) else part.reset_parameters()

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """The mean loss, in nats a byte, of all but the first."""
        x = self.words(text[:, :-1]) + self.places.weight
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)
        return F.cross_entropy(self.head(self.blocks(x, mask=mask, is_causal=True)).transpose(1, 2), text[:, 1:])


def texts() -> tuple[torch.Tensor, torch.Tensor]:
    """Bytes to train on, and every tenth module to test on."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    parts = [[file for i, file in enumerate(files) if (i % 10 == 0) is tested] for tested in (False, True)]
    joined = [b"".join(file.read_bytes() for file in part) for part in parts]
    train, test = (torch.frombuffer(bytearray(text), dtype=torch.uint8).long() for text in joined)
    return train, test


def lines(text: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """So many random pieces, one byte longer than LENGTH."""
    starts = torch.randint(0, len(text) - LENGTH, (count, 1), generator=generator)
    return text[starts + torch.arange(LENGTH + 1)]


def trained(contestant: str, rate: float, seed: int, width: int, steps: int) -> float:
    """The loss on the test part, in nats a byte."""
    torch.manual_seed(seed)
    model, rule = Bytes(width), CONTESTANTS[contestant]()
    if rule is not None:
        nplex.convert_(model, rule, where=nplex.only("blocks.*"))
    grouped = contestant.endswith("groups")
    what = nplex.optim.param_groups(model, lr=rate) if grouped else model.parameters()
    return fitted(model, what, rate, seed, steps, lambda step, text: model(text))


def fitted(
    model: nn.Module,
    what: Iterable[Any],
    rate: float,
    seed: int,
    steps: int,
    loss: Callable[[int, torch.Tensor], torch.Tensor],
) -> float:
    """The loss on the test part after `steps` of AdamW with `loss(step, text)`."""
    train, test = texts()
    optimizer = torch.optim.AdamW(what, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    curve = lambda step: min((step + 1) / WARM_UP, (1 + math.cos(math.pi * step / steps)) / 2)  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, curve)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        optimizer.zero_grad()
        loss(step, lines(train, LINES, generator)).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        pieces = lines(test, TESTED, torch.Generator().manual_seed(0))
        return fmean(float(model(piece)) for piece in pieces.split(LINES))


def main(
    seeds: Annotated[int, typer.Option(min=1, help="How many, from 0.")] = 3,
    width: Annotated[int, typer.Option(min=16)] = 256,
    steps: Annotated[int, typer.Option(min=1)] = 500,
    out: Annotated[Path, typer.Option(help="Where runs that are done are kept.")] = Path("runs/step-sizes"),
) -> None:
    """Run what is missing, then print the table; write it where the steps are 500 or more."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)

    def loss(contestant: str, rate: float, seed: int) -> float:
        name = "-".join(contestant.replace(",", "").replace("=", "").split())
        file = out / f"{name}-{rate:g}-{seed}-{width}-{steps}.json"
        if not file.exists():
            write_json(file, {"loss": trained(contestant, rate, seed, width, steps)})
        return read_json(file)["loss"]

    dense = {rate: loss("dense", rate, 0) for rate in track(RATES, "dense", console=CONSOLE)}
    best = min(dense, key=lambda rate: dense[rate])
    at_best = {
        name: [loss(name, best, seed) for seed in range(seeds)]
        for name in track(CONTESTANTS, "all seeds", console=CONSOLE)
    }
    by_rate = {
        name: {f"{rate:g}": loss(name, rate, 0) for rate in RATES}
        for name in track(CONTESTANTS, "all rates", console=CONSOLE)
    }
    found = {
        "width": width, "steps": steps, "best": best, "at_best": at_best, "by_rate": by_rate,
        "environment": environment(),
    }  # fmt: skip
    print(shown := page(found))
    if steps >= 500:
        write_json(RESULTS / "step-sizes.json", found)
        write_text(RESULTS / "step-sizes.md", shown + "\n")
        draw(found, RESULTS / "step-sizes.png")


def page(found: dict) -> str:
    """Two tables, as Markdown."""
    dense, made = fmean(found["at_best"]["dense"]), found["environment"]
    rows = ["| blocks | nats a byte, each seed | mean | above dense |", "| --- | --- | ---: | ---: |"]
    for name, losses in found["at_best"].items():
        mean = fmean(losses)
        rows.append(f"| {name} | {', '.join(f'{loss:.3f}' for loss in losses)} | {mean:.3f} | {mean - dense:+.3f} |")
    rates = list(found["by_rate"]["dense"])
    more = ["| blocks | " + " | ".join(rates) + " |", "| --- |" + " ---: |" * len(rates)]
    for name, losses in found["by_rate"].items():
        best = min(losses.values())
        more.append(
            f"| {name} | {' | '.join(f'**{x:.3f}**' if x == best else f'{x:.3f}' for x in losses.values())} |"
        )
    return "\n".join([
        "# Does the dense model's rate serve hypercomplex layers?", "",
        f"Bytes of Python's standard library, 2 blocks of width {found['width']}, {found['steps']} steps of AdamW. "
        f"Made by `python benchmarks/step_sizes.py`, commit {made['commit']}, torch {made['torch']}.", "",
        f"At {found['best']:g}, the dense model's best rate:", "", *rows, "",
        "Each rate, first seed, the best in bold:", "", *more,
    ])  # fmt: skip


def draw(found: dict, path: Path) -> None:
    """The loss against the rate, a line for each contestant."""
    figure = new_figure()
    axes = figure.add_subplot()
    for name, losses in found["by_rate"].items():
        style = "--" if "norm n" in name else ":" if "groups" in name else "-"
        axes.plot([float(rate) for rate in losses], list(losses.values()), style, marker="o", label=name)
    axes.axvline(found["best"], color="0.7", zorder=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(RATES), [f"{rate:g}" for rate in RATES])
    axes.set_xlabel("learning rate of plain AdamW")
    axes.set_ylabel("nats a byte on the test part")
    axes.legend(fontsize="small")
    write_figure(figure, path)


if __name__ == "__main__":
    typer.run(main)
