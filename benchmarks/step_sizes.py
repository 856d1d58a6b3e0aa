"""Does the dense model's learning rate serve hypercomplex layers, with plain AdamW and with nplex.optim's groups?

    python benchmarks/step_sizes.py             # 45 minutes of one core
    python benchmarks/step_sizes.py --steps 5   # to see that it runs; writes no results
    python benchmarks/step_sizes_sgd.py         # the same question for SGD and convolutions: 15 minutes

A language model on the bytes of Python's own standard library: 2 blocks of torch's encoder layer, width 256, 16 lines
of 64 bytes a step, 500 steps, AdamW (.9, .98) without decay, 50 steps of warm-up, then a cosine to 0. The dense model
is trained at RATES; the others, whose blocks are converted, at the dense model's best one, by
`AdamW(model.parameters(), lr)` and by `AdamW(nplex.optim.param_groups(model, lr=lr))`, and around it with the first
seed. Runs that are done are in --out and not done again. Writes results/step-sizes.json and .md.
"""

import math
import sysconfig
from pathlib import Path
from statistics import fmean
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track
from torch import nn
from torch.nn import functional as F

import nplex
from nplex.convert import parse_rule
from nplex.files import read_json, write_json, write_text
from nplex.lab.environment import environment

RESULTS = Path(__file__).parents[1] / "results"
CONSOLE = Console(stderr=True)
LENGTH, LINES, WARM_UP, TESTED = 64, 16, 50, 512
RATES = (1e-3, 1.4e-3, 2e-3, 2.8e-3, 4e-3)
RULES = ("4", "4:4", "8:8", "quaternion")


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


def trained(rule: str, grouped: bool, rate: float, seed: int, width: int, steps: int) -> float:
    """The loss on the test part, in nats a byte."""
    torch.manual_seed(seed)
    train, test = texts()
    model, made = Bytes(width), parse_rule(rule)
    if made is not None:
        nplex.convert_(model, made, where=nplex.only("blocks.*"))
    what = nplex.optim.param_groups(model, lr=rate) if grouped else model.parameters()
    optimizer = torch.optim.AdamW(what, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    curve = lambda step: min((step + 1) / WARM_UP, (1 + math.cos(math.pi * step / steps)) / 2)  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, curve)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        model(lines(train, LINES, generator)).backward()
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

    def loss(rule: str, grouped: bool, rate: float, seed: int) -> float:
        file = (
            out / f"{rule.replace(':', 'r')}-{'groups' if grouped else 'plain'}-{rate:g}-{seed}-{width}-{steps}.json"
        )
        if not file.exists():
            write_json(file, {"loss": trained(rule, grouped, rate, seed, width, steps)})
        return read_json(file)["loss"]

    dense = {
        rate: [loss("dense", False, rate, seed) for seed in range(seeds)] for rate in track(RATES, console=CONSOLE)
    }
    best = min(dense, key=lambda rate: fmean(dense[rate]))
    rows = [{"rule": "dense", "grouped": False, "rate": rate, "losses": losses} for rate, losses in dense.items()]
    jobs = [(rule, grouped) for rule in RULES for grouped in (False, True)]
    for rule, grouped in track(jobs, console=CONSOLE):
        losses = [loss(rule, grouped, best, seed) for seed in range(seeds)]
        rows.append({"rule": rule, "grouped": grouped, "rate": best, "losses": losses})
    found = {"width": width, "steps": steps, "best": best, "rows": rows, "environment": environment()}
    print(shown := page(found))
    if steps >= 500:
        write_json(RESULTS / "step-sizes.json", found)
        write_text(RESULTS / "step-sizes.md", shown + "\n")


def page(found: dict) -> str:
    """The table, as Markdown."""
    best = next(r for r in found["rows"] if r["rule"] == "dense" and r["rate"] == found["best"])
    rows = [
        "| layers of the blocks | optimizer | rate | nats a byte, each seed | mean | above dense |",
        "| --- | --- | ---: | --- | ---: | ---: |",
    ]
    for row in found["rows"]:
        losses, mean = ", ".join(f"{loss:.3f}" for loss in row["losses"]), fmean(row["losses"])
        how = "nplex.optim" if row["grouped"] else "plain AdamW"
        gap = mean - fmean(best["losses"])
        rows.append(f"| {row['rule']} | {how} | {row['rate']:g} | {losses} | {mean:.3f} | {gap:+.3f} |")
    made = found["environment"]
    return "\n".join(
        [
            "# The dense model's rate, with and without groups", "",
            f"Bytes of Python's standard library, 2 blocks of width {found['width']}, {found['steps']} steps. "
            f"Made by `python benchmarks/step_sizes.py`, commit {made['commit']}, torch {made['torch']}.", "",
            *rows,
        ]
    )  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
