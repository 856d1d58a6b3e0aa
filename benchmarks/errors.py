"""Rounding errors of every method on trained rules, against the dense method's.

    python benchmarks/errors.py                  # trains six models first, about ten minutes
    python benchmarks/errors.py --quick          # two models, one epoch; writes nothing

Models are trained on the built-in agreement set (kept in --out, so that a second call only measures). Every layer
then multiplies 256 random inputs by every method, in float32 and in bfloat16, and is compared with the same numbers
multiplied in float64. Full rules are measured as they are, and again after nplex.factorize_. Writes
benchmarks/results/errors.*.
"""

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

import nplex
from nplex.files import read_tensors, write_json
from nplex.lab.environment import environment
from nplex.lab.experiment import run
from nplex.lab.recipes.subject_verb_agreement import agreement
from nplex.lab.run_folder import MODEL
from nplex.nn import Linear
from nplex.ops import METHODS

RESULTS = Path(__file__).parent / "results"
RULES = ("4", "4:7", "4:4", "8", "8:24", "8:8")
LIMITS = {torch.float32: 3.0, torch.bfloat16: 2.0}


def main(
    out: Annotated[Path, typer.Option(help="Where the trained models are kept.")] = Path("runs/errors"),
    quick: Annotated[bool, typer.Option("--quick", help="Two rules, one epoch, nothing written.")] = False,
) -> None:
    """Train, measure, print the table and write it with all figures as JSON."""
    torch.set_num_threads(1)
    out, rules = (out / "quick", ("4", "4:7")) if quick else (out, RULES)
    rows = []
    for rule in track(rules, "training and measuring", console=Console(stderr=True)):
        model = trained(rule, out / rule.replace(":", "-"), quick)
        rows += measured(model, rule)
        if ":" not in rule:
            with torch.random.fork_rng():
                report = nplex.factorize_(model)
            rows += measured(model, f"{rule}, factorized to rank {max(row.after or 0 for row in report.rows)}")
    print(text := table(rows))
    if not quick:
        env = environment()
        write_json(RESULTS / "errors.json", {"environment": env, "seed": 0, "rows": rows})
        heading = f"nplex {env['commit']}, torch {env['torch']}, {env['processor']}, {env['date']}\n\n"
        (RESULTS / "errors.md").write_text(heading + text + "\n", "utf-8")


def trained(rule: str, folder: Path, quick: bool) -> nn.Module:
    """A trained model, from its folder if it is there."""
    recipe = agreement(rule)
    recipe = replace(recipe, schedule=replace(recipe.schedule, epochs=1)) if quick else recipe
    data = recipe.load(None)
    run(recipe, data, 0, folder)
    model = recipe.build(data)
    model.load_state_dict(read_tensors(folder / MODEL)[0])
    return model


def measured(model: nn.Module, rule: str) -> list[dict]:
    """For each type and method the errors of all layers, and their ratio to the dense method's."""
    layers = [layer for layer in model.modules() if isinstance(layer, Linear)]
    rows = []
    for dtype in LIMITS:
        found: dict[str, list[float]] = {}
        for layer in layers:
            for method, error in errors(layer, dtype).items():
                found.setdefault(method, []).append(error)
        dense = found["dense"]
        for method, values in found.items():
            ratios = [value / base for value, base in zip(values, dense, strict=True)]
            rows.append({
                "rule": rule, "type": str(dtype).removeprefix("torch."), "method": method,
                "error": statistics.median(values), "largest_error": max(values),
                "ratio": statistics.median(ratios), "largest_ratio": max(ratios), "limit": LIMITS[dtype],
            })  # fmt: skip
    return rows


@torch.no_grad()
def errors(layer: Linear, dtype: torch.dtype) -> dict[str, float]:
    """`|| y - exact || / || exact ||` by each method, all inputs rounded to dtype first."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, layer.in_features, generator=generator).to(dtype)
    rule = layer.rule()
    parts = [t.to(dtype) for t in ([rule] if isinstance(rule, Tensor) else rule)]
    components, bias = layer.components.to(dtype), None if layer.bias is None else layer.bias.to(dtype)
    features = (layer.in_features, layer.out_features)

    def product(method: str, cast: torch.dtype) -> Tensor:
        held = parts[0].to(cast) if isinstance(rule, Tensor) else type(rule)(*(part.to(cast) for part in parts))
        offset = None if bias is None else bias.to(cast)
        return nplex.ops.product(x.to(cast), held, components.to(cast), offset, features=features, method=method)

    exact = product("reference", torch.float64)
    methods = [m for m in METHODS if m != "reference" and (m != "bilinear" or layer.rule.rank)]
    return {m: float((product(m, dtype).double() - exact).norm() / exact.norm()) for m in methods}


def table(rows: list[dict]) -> str:
    """Median error, and its ratio to the dense method's, median and largest over the layers."""
    lines = [
        "Relative error of a layer's output against float64: median over the model's layers, and as a multiple of "
        "the dense method's on the same layer (median, largest), with its limit",
        "",
        "| rule | type | method | error | of dense | largest | limit |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        late = " **over**" * (row["largest_ratio"] > row["limit"])
        lines.append(
            f"| {row['rule']} | {row['type']} | {row['method']} | {row['error']:.1e} | {row['ratio']:.2f} "
            f"| {row['largest_ratio']:.2f}{late} | {row['limit']:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
