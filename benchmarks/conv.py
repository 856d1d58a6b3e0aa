"""Times convolutions against torch.nn.Conv2d, in turns: by the dense weight, and mixed, R groups, mixed.

    python benchmarks/conv.py                # about three minutes; writes benchmarks/results/conv-1-thread.*
    python benchmarks/conv.py --threads 2
    python benchmarks/conv.py --quick        # one small size, to see that it runs; writes nothing

Before anything is timed, both methods are compared. A ratio below 1 is faster than torch's. Training is forward and
backward with all gradients; forward is without gradients.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from rich.console import Console
from rich.progress import track
from torch import nn

from nplex.convert import parse_rule
from nplex.files import write_json
from nplex.lab.environment import environment
from nplex.nn import Conv2d
from nplex.ops.conv import planned

RESULTS = Path(__file__).parent / "results"
RULES = ("2", "2:2", "2:3", "4", "4:4", "4:7", "8", "8:8", "8:24")


class Case(NamedTuple):
    """Channels, places a side, images, kernel."""

    channels: int
    side: int
    batch: int
    kernel: int

    def __str__(self) -> str:
        return f"{self.channels} channels, {self.kernel} x {self.kernel}, {self.batch} of {self.side} x {self.side}"


CASES = (Case(64, 28, 8, 3), Case(128, 28, 4, 3), Case(256, 14, 8, 3), Case(512, 7, 8, 3), Case(256, 14, 8, 1))


def main(
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 1,
    repeats: Annotated[int, typer.Option(min=3, help="Turns; the median counts.")] = 9,
    quick: Annotated[bool, typer.Option("--quick", help="One small size, nothing written.")] = False,
) -> None:
    """Time all cases, print the table and write it with all figures as JSON."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    cases = (Case(16, 6, 2, 3),) if quick else CASES
    rows = [row for case in track(cases, "timing", console=Console(stderr=True)) for row in timed(case, repeats)]
    text = table(rows)
    print(text)
    if not quick:
        env = environment()
        name = f"conv-{threads}-thread{'s' * (threads > 1)}"
        write_json(RESULTS / f"{name}.json", {"environment": env, "seed": 0, "repeats": repeats, "rows": rows})
        head = (
            f"nplex {env['commit']}, torch {env['torch']}, {env['processor']}, {env['threads']} thread(s), float32, "
        )
        (RESULTS / f"{name}.md").write_text(f"{head}{env['date']}\n\n{text}\n", "utf-8")


def timed(case: Case, repeats: int) -> list[dict]:
    """For each mode the seconds of torch's layer, and of each rule by each method."""
    x = torch.randn(case.batch, case.channels, case.side, case.side, requires_grad=True)
    layers: dict[str, nn.Module] = {"torch": nn.Conv2d(case.channels, case.channels, case.kernel, padding="same")}
    chosen = {}
    for rule in RULES:
        for method in ("dense", "bilinear") if ":" in rule else ("dense",):
            layer = Conv2d(
                case.channels, case.channels, case.kernel, padding="same", rule=parse_rule(rule), method=method
            )
            agree(layer, x)
            layers[f"{rule} {method}"] = layer
        chosen[rule] = planned(x, layer.rule(), layer.components)
    rows = []
    for mode in ("forward", "training"):
        seconds = in_turns({name: call(layer, x, mode) for name, layer in layers.items()}, repeats)
        rows.append({**case._asdict(), "case": str(case), "mode": mode, "seconds": seconds, "chosen": chosen})
    return rows


def agree(layer: Conv2d, x: torch.Tensor) -> None:
    """Stops when a layer is not torch's with the same weight."""
    with torch.no_grad():
        expected = layer.to_torch()(x)
        error = ((layer(x) - expected).norm() / expected.norm()).item()
    assert error < 1e-4, f"{layer} by {layer.method} is {error:.1e} from torch's: nothing is timed"


def call(layer: nn.Module, x: torch.Tensor, mode: str) -> Callable[[], object]:
    """One call of the layer."""

    def forward() -> object:
        with torch.no_grad():
            return layer(x)

    def training() -> object:
        y = layer(x)
        return torch.autograd.grad(y, [x, *layer.parameters()], torch.ones_like(y))

    return forward if mode == "forward" else training


def in_turns(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each; one turn of all before they count."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def table(rows: list[dict]) -> str:
    """Ratios to torch's layer: dense, and bilinear where the rule has a rank; the planned one is bold."""
    lines = [
        "Time as a share of torch's Conv2d: by the dense weight / mixed, R groups, mixed. What `auto` takes is bold.",
        "",
        f"| case | mode | torch ms | {' | '.join(RULES)} |",
        f"|---|---|---:|{'---:|' * len(RULES)}",
    ]
    for row in rows:
        dense = row["seconds"]["torch"]
        cells = []
        for rule in RULES:
            found = [(m, row["seconds"].get(f"{rule} {m}")) for m in ("dense", "bilinear")]
            shown = [
                f"**{s / dense:.2f}**" if m == row["chosen"][rule] else f"{s / dense:.2f}" for m, s in found if s
            ]
            cells.append(" / ".join(shown))
        lines.append(f"| {row['case']} | {row['mode']} | {1e3 * dense:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
