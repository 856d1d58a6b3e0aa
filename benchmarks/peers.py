"""Times nplex.nn.Linear beside the layers of other packages, in one process and in turns.

    make bench-peers                             # in an environment of its own; about ten minutes
    python benchmarks/peers.py --quick           # one small size, nothing written; what is not installed is listed

Before anything is timed, each layer's parameters are counted (within 10 % of nplex's with the same n), and where
the mathematics is the same, its output is compared with nplex's for the same numbers. Training is forward and
backward with all gradients, the input's too, from a full gradient of the output; gradients are dropped before each
step, untimed. In turns: a layer finds the processor's caches full of the others, as it would inside a model.

tensorly-torch's factorized layers get opt_einsum, without which Tucker and CP ask for hundreds of gigabytes. Its CP
layer is not run as "reconstructed": 20 to 60 times dense in trials. LoKr is an adapter, one Kronecker product
beside a frozen dense layer: "delta" is that product alone, which is what could replace a layer; "adapter" is the
whole, base and delta, with the parameters that are trained.
"""

import importlib.metadata
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import baselines
import torch
import typer
from baselines import Layer
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from nplex.files import write_json
from nplex.lab.environment import environment

SIZES = ((1024, 1024), (2048, 2048), (512, 2048))
TOKENS = (1, 1024)
MODES = ("forward", "training")
LICENCES = {
    "tensorly": "BSD-3-Clause", "tensorly-torch": "BSD-3-Clause", "opt_einsum": "MIT", "peft": "Apache-2.0",
    "lycoris-lora": "Apache-2.0", "HypercomplexKeras": "Apache-2.0",
}  # fmt: skip
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Contender:
    """A layer by name: `build(d_in, d_out)` makes it, to be compared with nplex of this n; whose it is."""

    name: str
    n: int
    build: Callable[[int, int], Layer]
    foreign: bool = False


def main(
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 1,
    repeats: Annotated[
        int, typer.Option(min=3, help="Turns, five times as many for one token; the median counts.")
    ] = 9,
    quick: Annotated[bool, typer.Option("--quick", help="One small size, nothing written.")] = False,
) -> None:
    """Check and time every layer; print the tables and write them with all figures as JSON."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    cells, failed = [], {}
    for d_in, d_out in track(((256, 256),) if quick else SIZES, "timing", console=Console(stderr=True)):
        cells += measure(d_in, d_out, repeats, failed)
    env = environment()
    tables = [table(cells, mode, tokens) for mode in MODES for tokens in TOKENS]
    text = "\n\n".join([heading(env), counted(cells), *tables, *([not_timed(failed)] if failed else [])])
    print(text)
    if not quick:
        name = f"peers-{threads}-thread{'s' * (threads > 1)}"
        found = {"environment": env, "peers": peers(), "seed": 0, "repeats": repeats}
        write_json(RESULTS / f"{name}.json", found | {"failed": failed, "cells": cells})
        (RESULTS / f"{name}.md").write_text(text + "\n", "utf-8")


def contenders() -> list[Contender]:
    """Every row of the tables, dense first."""
    found = [Contender("torch.nn.Linear", 1, baselines.dense)]
    for n, rules in ((4, ("4", "4:7", "4:4", "quaternion")), (8, ("8", "8:24", "8:8"))):
        found += [Contender(f"nplex {rule}", n, partial(baselines.hypercomplex, rule=rule)) for rule in rules]
        found.append(Contender("sum of torch.kron", n, partial(baselines.sum_of_kron, n=n)))
        if n == 4:
            found.append(Contender("quaternion, 16 blocks", n, baselines.quaternion_blocks))
        found.append(Contender("low rank", n, partial(baselines.low_rank, n=n)))
        found.append(Contender("Monarch-like", n, partial(baselines.monarch, n=n)))
        algebra = {4: "Quaternions", 8: "Octonions"}[n]
        found.append(
            Contender(f"HypercomplexKeras {algebra}", n, partial(baselines.hyperdense, algebra=algebra), True)
        )
        for kind, way in (
            ("blocktt", "factorized"), ("blocktt", "reconstructed"), ("tucker", "factorized"),
            ("tucker", "reconstructed"), ("cp", "factorized"),
        ):  # fmt: skip
            build = partial(baselines.tensorly, n=n, kind=kind, way=way)
            found.append(Contender(f"tltorch {kind} {way}", n, build, True))
    for part in ("delta", "adapter"):
        found.append(Contender(f"peft LoKr {part}", 4, partial(baselines.peft_lokr, part=part), True))
    for part in ("delta", "adapter, bypass", "adapter, rebuild"):
        found.append(Contender(f"lycoris LoKr {part}", 4, partial(baselines.lycoris_lokr, part=part), True))
    return sorted(found, key=lambda contender: contender.n)


def measure(d_in: int, d_out: int, repeats: int, failed: dict[str, str]) -> list[dict]:
    """The cells of one size; what cannot be built, counted, compared or run goes to `failed`."""
    layers, facts = {}, {}
    for contender in contenders():
        try:
            layer = contender.build(d_in, d_out)
            facts[contender] = check(contender, layer, d_in, d_out)
            layers[contender], layer.twin = layer, None
        except Exception as error:
            if not contender.foreign:
                raise
            failed[f"{contender.name}, n = {contender.n}, {d_in} x {d_out}"] = (
                f"{str(error) or type(error).__name__:.200}"
            )
    cells = []
    for tokens in TOKENS:
        x, gradient = torch.randn(tokens, d_in, requires_grad=True), torch.randn(tokens, d_out)
        for mode in MODES:
            turns = repeats * (5 if tokens == 1 else 1)
            times = in_turns(layers, x, gradient if mode == "training" else None, turns)
            whole = next(iter(times.values()))
            for contender, seconds in times.items():
                cells.append({
                    "layer": contender.name, "n": contender.n, "d_in": d_in, "d_out": d_out, **facts[contender],
                    "tokens": tokens, "mode": mode, "ms": 1e3 * seconds, "ratio": seconds / whole,
                })  # fmt: skip
    return cells


def check(contender: Contender, layer: Layer, d_in: int, d_out: int) -> dict:
    """Counts parameters against nplex's of the same n, and compares the output with the twin's.

    Raises:
        ValueError: one of them is off.
    """
    n, parameters = contender.n, count(layer.module)
    ours = d_in * d_out // n + (n**3 if n > 1 else 0) + d_out
    if abs(parameters / ours - 1) > 0.1:
        raise ValueError(f"{parameters} parameters, where nplex with n = {n} has {ours}")
    for tokens in TOKENS:
        x = torch.randn(tokens, d_in, requires_grad=True)
        found = layer.run(x)
        expected = found if layer.twin is None else layer.twin(x)
        error = ((found - expected).norm() / expected.norm()).item()
        if not error < 1e-5 or found.shape != (tokens, d_out):
            raise ValueError(f"its output is {error:.1e} from nplex's with the same numbers")
        found.backward(torch.ones_like(found))
    return {"parameters": parameters, "to_nplex": parameters / ours, "compared": layer.twin is not None}


def count(module: nn.Module) -> int:
    """Parameters that are trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def in_turns(
    layers: dict[Contender, Layer], x: Tensor, gradient: Tensor | None, repeats: int
) -> dict[Contender, float]:
    """Median seconds of each, forward or with a gradient a training step; every turn runs all."""
    seconds: dict[Contender, list[float]] = {contender: [] for contender in layers}
    for turn in range(repeats + 2):
        for contender, layer in layers.items():
            layer.module.zero_grad()
            x.grad = None
            with torch.set_grad_enabled(gradient is not None):
                began = time.perf_counter()
                y = layer.run(x)
                if gradient is not None:
                    y.backward(gradient)
                taken = time.perf_counter() - began
            if turn > 1:
                seconds[contender].append(taken)
    return {contender: statistics.median(values) for contender, values in seconds.items()}


def counted(cells: list[dict]) -> str:
    """Parameters as Markdown, a row a layer, a column a size; and whether outputs were compared."""
    lines = ["**Parameters that are trained**, and their number relative to nplex's with the same n", ""]
    lines += header(cells, ("layer", "n"), ("output compared",))
    for (layer, n), row in rows(cells, MODES[0], TOKENS[0]):
        values = [f"{cell['parameters']:,} ({cell['to_nplex']:.2f})" if cell else "" for cell in row]
        compared = "yes" if all(cell["compared"] for cell in row if cell) else ""
        lines.append("| " + " | ".join([layer, str(n), *values, compared]) + " |")
    return "\n".join(lines)


def table(cells: list[dict], mode: str, tokens: int) -> str:
    """Ratios to dense as Markdown, a row a layer, a column a size; dense in milliseconds too."""
    lines = [f"**{mode}, {tokens} token{'s' * (tokens != 1)}**, time as a share of torch.nn.Linear's", ""]
    lines += header(cells, ("layer", "n", "parameters, share of dense"))
    for (layer, n), row in rows(cells, mode, tokens):
        values = [f"{cell['ratio']:.2f}" + f" ({cell['ms']:.2f} ms)" * (n == 1) if cell else "" for cell in row]
        first = next(cell for cell in row if cell)
        share = first["parameters"] / (first["d_in"] * first["d_out"] + first["d_out"])
        lines.append("| " + " | ".join([layer, str(n), f"{share:.3f}", *values]) + " |")
    return "\n".join(lines)


def header(cells: list[dict], before: tuple[str, ...], after: tuple[str, ...] = ()) -> list[str]:
    """The first two lines of a table with a column for each size."""
    sizes = [f"{d_in} x {d_out}" for d_in, d_out in sizes_of(cells)]
    marks = ["---"] * len(before) + ["---:"] * len(sizes) + ["---"] * len(after)
    return ["| " + " | ".join([*before, *sizes, *after]) + " |", "|" + "|".join(marks) + "|"]


def sizes_of(cells: list[dict]) -> list[tuple[int, int]]:
    """The sizes that were timed."""
    return list(dict.fromkeys((cell["d_in"], cell["d_out"]) for cell in cells))


def rows(cells: list[dict], mode: str, tokens: int) -> list[tuple[tuple[str, int], list[dict | None]]]:
    """The cells of each layer by size, None where it was not timed; layers in the order of `contenders`."""
    chosen = {
        (cell["layer"], cell["n"], cell["d_in"], cell["d_out"]): cell
        for cell in cells
        if (cell["mode"], cell["tokens"]) == (mode, tokens)
    }
    found = [((each.name, each.n), [chosen.get((each.name, each.n, *size)) for size in sizes_of(cells)])
             for each in contenders()]  # fmt: skip
    return [(key, row) for key, row in found if any(row)]


def not_timed(failed: dict[str, str]) -> str:
    """Layers without a row, and why, those of one reason together."""
    lines = ["**Not timed**", ""]
    for reason in dict.fromkeys(failed.values()):
        lines.append(f"- {reason}: " + "; ".join(name for name, why in failed.items() if why == reason))
    return "\n".join(lines)


def peers() -> dict[str, str]:
    """The version and licence of each package that layers come from."""
    found = {}
    for name, licence in LICENCES.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = "not installed"
        found[name] = f"{version} ({licence})"
    return found


def heading(env: dict) -> str:
    """Where, when, and what from."""
    packages = ", ".join(f"{name} {version}" for name, version in peers().items())
    return (
        f"nplex {env['commit']}, torch {env['torch']}, {env['processor']}, {env['threads']} thread(s), float32, "
        f"{env['date']}\n\n{packages}\n\nLoKr delta: the Kronecker product alone; adapter: with the frozen dense "
        f"layer that it stands beside"
    )


if __name__ == "__main__":
    typer.run(main)
