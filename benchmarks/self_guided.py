"""Does a dense twin that is faded out help a hypercomplex model, at equal training FLOPs?

    python benchmarks/self_guided.py            # 18 runs; not run yet
    python benchmarks/self_guided.py --steps 6  # to see that it runs; writes no results

Self-guided training (Wei et al., arXiv 2406.16450): in the first part of training each converted weight is
`a W_dense + (1 - a) W`, a falls from 1 to 0 by a cosine, and W_dense starts as W; after that W is alone. The language
model, the data and AdamW are those of step_sizes.py, the rate is that file's best for the dense model. Compared with
the same steps without the guide, and with so many more steps that the FLOPs are the guided run's. Runs that are done
are in --out. Writes results/self-guided.json and .md.
"""

import math
from pathlib import Path
from statistics import fmean
from typing import Annotated

import step_sizes
import torch
import typer
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

import nplex
from nplex.files import read_json, write_json, write_text
from nplex.lab.environment import environment
from nplex.nn import LearnedRule

RESULTS = Path(__file__).parents[1] / "results"
CONSOLE = Console(stderr=True)
RATE, WIDTH, GUIDED = 1.41e-3, 256, 0.25  # the dense model's best rate; the part of training that has a guide
RULES = {"n = 4, rank 4": (4, 4), "n = 8, rank 8": (8, 8)}
WAYS = ("plain", "guided", "plain, as many FLOPs as guided")


class Guide(nn.Module):
    """The dense model beside a converted one, and its loss with mixed weights."""

    def __init__(self, converted: nn.Module) -> None:
        super().__init__()
        self.dense = step_sizes.Bytes(WIDTH)
        names = dict(converted.named_parameters())
        self.weights = [name for name, _ in self.dense.named_parameters() if name not in names]
        for name in self.weights:
            self.dense.get_parameter(name).data.copy_(computed(converted, name))
        for name, parameter in self.dense.named_parameters():
            parameter.requires_grad_(name in self.weights)

    def loss(self, converted: nn.Module, text: Tensor, share: float) -> Tensor:
        """`share` of the guide's weights and the rest of the model's own."""
        mixed = dict(converted.named_parameters())
        mixed = {name: mixed[name] for name, _ in self.dense.named_parameters() if name in mixed}
        for name in self.weights:
            mixed[name] = share * self.dense.get_parameter(name) + (1 - share) * computed(converted, name)
        return torch.func.functional_call(self.dense, mixed, text)


def computed(model: nn.Module, name: str) -> Tensor:
    """The dense weight of a converted layer, by the name that it has in the dense model."""
    layer, _, weight = name.rpartition(".")
    return getattr(model.get_submodule(layer), weight)


def trained(rule: str, guided: int, seed: int, steps: int) -> float:
    """The loss on the test part after `steps`, `guided` of them with a guide; as step_sizes.trained without."""
    torch.manual_seed(seed)
    n, rank = RULES[rule]
    model = step_sizes.Bytes(WIDTH)
    nplex.convert_(model, LearnedRule(n, rank=rank), where=nplex.only("blocks.*"))
    guide = Guide(model)
    parameters = [*model.parameters(), *(guide.parameters() if guided else ())]

    def loss(step: int, text: Tensor) -> Tensor:
        return guide.loss(model, text, (1 + math.cos(math.pi * step / guided)) / 2) if step < guided else model(text)

    return step_sizes.fitted(model, [p for p in parameters if p.requires_grad], RATE, seed, steps, loss)


def flops(rule: str) -> tuple[float, float]:
    """Of a step of the converted model, and of the guide's layers in one: matmuls, forward and backward."""
    n, rank = RULES[rule]
    tokens = step_sizes.LINES * step_sizes.LENGTH
    shapes = [(WIDTH, WIDTH)] * 4 + [(WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH)]  # of one block: (d_in, d_out)
    plans = [nplex.ops.plan_for(d_in, d_out, tokens=tokens, n=n, rank=rank, training=True) for d_in, d_out in shapes]
    layers = 2 * sum(next(cost.flops for cost in plan.costs if cost.method == "bilinear") for plan in plans)
    attention, head = 2 * 12.0 * tokens * step_sizes.LENGTH * WIDTH, 6.0 * tokens * WIDTH * 256
    return layers + attention + head, 2 * sum(6.0 * tokens * d_in * d_out for d_in, d_out in shapes)


def main(
    seeds: Annotated[int, typer.Option(min=1, help="How many, from 0.")] = 3,
    steps: Annotated[int, typer.Option(min=4)] = 500,
    out: Annotated[Path, typer.Option(help="Where runs that are done are kept.")] = Path("runs/self-guided"),
) -> None:
    """Run what is missing, then print the table; write it where the steps are 500 or more."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    rows, guided = [], round(GUIDED * steps)
    for rule, way in track([(rule, way) for rule in RULES for way in WAYS], "self-guided", console=CONSOLE):
        own, guides = flops(rule)
        more = steps + round(guided * guides / own) if way == WAYS[2] else steps
        losses = []
        for seed in range(seeds):
            file = (
                out
                / f"{'-'.join(map(str, RULES[rule]))}-{way.replace(', ', '-').replace(' ', '-')}-{seed}-{steps}.json"
            )
            if not file.exists():
                write_json(file, {"loss": trained(rule, guided if way == "guided" else 0, seed, more)})
            losses.append(read_json(file)["loss"])
        total = own * more + (guides * guided if way == "guided" else 0)
        rows.append({"rule": rule, "way": way, "steps": more, "flops": total, "losses": losses})
    found = {"rate": RATE, "width": WIDTH, "guided": guided, "rows": rows, "environment": environment()}
    print(shown := page(found))
    if steps >= 500:
        write_json(RESULTS / "self-guided.json", found)
        write_text(RESULTS / "self-guided.md", shown + "\n")


def page(found: dict) -> str:
    """The table, as Markdown."""
    made = found["environment"]
    rows = [
        f"| {row['rule']} | {row['way']} | {row['steps']} | {row['flops'] / 1e12:.2f} | "
        f"{', '.join(f'{loss:.3f}' for loss in row['losses'])} | {fmean(row['losses']):.3f} |"
        for row in found["rows"]
    ]
    return "\n".join([
        "# Does a dense twin that is faded out help, at equal training FLOPs?", "",
        f"Bytes of Python's standard library, 2 blocks of width {found['width']}, AdamW at {found['rate']:g}; the "
        f"guide is there for the first {found['guided']} steps. Made by `python benchmarks/self_guided.py`, commit "
        f"{made['commit']}, torch {made['torch']}, {made['processor']}, one thread.", "",
        "| blocks | training | steps | TFLOP | nats a byte, each seed | mean |",
        "| --- | --- | ---: | ---: | --- | ---: |",
        *rows,
    ])  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
