"""Times the layer against torch.nn.functional.linear, in turns: the targets, and the ratio for any number of tokens.

    python benchmarks/ops.py                     # about ten minutes; writes benchmarks/results/ops-1-thread.*
    python benchmarks/ops.py --threads 2
    python benchmarks/ops.py --dtype bfloat16    # ops-1-thread-bfloat16.*
    python benchmarks/ops.py --quick             # small sizes, to see that it runs; writes nothing

Before anything is timed, every method is compared with the reference. A ratio below 1 is faster than dense. Training
is forward and backward with all gradients, made anew each time; forward is without gradients. "cached" is inside
nplex.nn.cached, as in generation: what a method makes of rule and components alone is at hand.
"""

import contextlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
import typer
from rich.console import Console
from rich.progress import track
from torch import nn

from nplex.convert import parse_rule
from nplex.files import write_json
from nplex.lab.environment import environment
from nplex.nn import LearnedRule, Linear, cached
from nplex.ops import METHODS, plan_for

RESULTS = Path(__file__).parent / "results"
TARGETED = ("4:7", "4:4", "8:24", "8:8", "4", "8")
SWEPT = ("2", "2:2", "4", "4:7", "4:4", "8", "8:24", "8:8")
WIDTHS, TOKENS = (512, 2048), (1, 4, 16, 64, 256, 1024, 4096)


class Case(NamedTuple):
    """A line of the targets: the layer, the call, and the ratio to reach for each of TARGETED."""

    d_in: int
    d_out: int
    tokens: int
    mode: str
    targets: tuple[float, ...]


CASES = (
    Case(2048, 2048, 1024, "training", (0.52, 0.30, 0.48, 0.19, 1.06, 1.06)),
    Case(512, 2048, 2048, "training", (0.60, 0.36, 0.60, 0.26, 1.08, 1.08)),
    Case(2048, 512, 2048, "training", (0.60, 0.36, 0.60, 0.26, 1.08, 1.08)),
    Case(2048, 2048, 1024, "forward", (0.49, 0.29, 0.45, 0.17, 1.04, 1.04)),
    Case(4096, 4096, 1, "forward", (0.32, 0.32, 0.20, 0.15, 0.32, 0.20)),
)


def main(
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 1,
    repeats: Annotated[int, typer.Option(min=3, help="Turns; the median counts.")] = 15,
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="Of all numbers.")] = "float32",
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes, nothing written.")] = False,
) -> None:
    """Time the targets and the sweep over tokens; print the tables and write them with all figures as JSON."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))
    cases = [case._replace(d_in=64, d_out=64, tokens=8) for case in CASES] if quick else CASES
    sizes = [(width, tokens) for width in ((64,) if quick else WIDTHS) for tokens in ((1, 64) if quick else TOKENS)]
    console = Console(stderr=True)
    targets = [cell for case in track(cases, "targets", console=console) for cell in targeted(case, repeats)]
    sweep = [cell for size in track(sizes, "any number of tokens", console=console) for cell in swept(*size, repeats)]
    text = "\n\n".join([target_table(targets), *(sweep_table(sweep, width) for width, _ in sizes[:: len(TOKENS)])])
    print(text)
    if not quick:
        name = f"ops-{threads}-thread{'s' * (threads > 1)}{'-bfloat16' * (dtype == 'bfloat16')}"
        env = environment()
        found = {
            "environment": env,
            "dtype": dtype,
            "seed": 0,
            "repeats": repeats,
            "targets": targets,
            "sweep": sweep,
        }
        write_json(RESULTS / f"{name}.json", found)
        (RESULTS / f"{name}.md").write_text(heading(env, dtype) + text + "\n", "utf-8")
        if dtype == "float32" and threads == 1:
            figure(sweep, RESULTS / f"{name}.png")


def targeted(case: Case, repeats: int) -> list[dict]:
    """Every rule at one target: the ratio of the method meant, for one token of the best one, cached or not."""
    dense, layers = nn.Linear(case.d_in, case.d_out), {rule: layer(case.d_in, case.d_out, rule) for rule in TARGETED}
    runs: dict[tuple[str, str], Callable] = {("dense", "linear"): call(dense, case)}
    for twin in layers.values():
        agree(twin)
    few = [method for method in METHODS if method != "reference"]
    for keep in (False, True)[: 1 + (case.tokens == 1)]:
        for method in few:
            for rule, twin in layers.items():  # inside: a layer that was just called would lie in the cache
                possible = method != "bilinear" or twin.rule.rank is not None
                if possible and (case.tokens == 1 or method == ("dense" if twin.rule.rank is None else "bilinear")):
                    runs[rule, method + ", cached" * keep] = call(twin, case, method, keep)
    times = in_turns(runs, repeats * (3 if case.tokens == 1 else 1))
    cells = []
    for (rule, twin), target in zip(layers.items(), case.targets, strict=True):
        mine = {method: seconds for (of, method), seconds in times.items() if of == rule}
        best = min(mine, key=lambda method: mine[method])
        ratio = {method: seconds / times["dense", "linear"] for method, seconds in mine.items()}
        cells.append(case._asdict() | {
            "rule": rule, "limit": limit(twin, case), "target": target, "ratio": ratio[best], "method": best,
            "met": ratio[best] <= target, "ratios": ratio, "dense_ms": 1e3 * times["dense", "linear"],
        })  # fmt: skip
    return cells


def swept(width: int, tokens: int, repeats: int) -> list[dict]:
    """width x width at a number of tokens, as the plan computes it: forward, cached forward, training."""
    cells = []
    dense, layers = nn.Linear(width, width), {rule: layer(width, width, rule) for rule in SWEPT}
    for mode in ("forward", "cached", "training"):
        case = Case(width, width, tokens, "training" if mode == "training" else "forward", ())
        runs = {("dense", ""): call(dense, case)}
        for rule, twin in layers.items():
            runs[rule, ""] = call(twin, case, keep=mode == "cached")
        times = in_turns(runs, repeats * (5 if tokens * width < 2**17 else 1))
        for rule, twin in layers.items():
            cells.append({
                "width": width, "tokens": tokens, "mode": mode, "rule": rule,
                "ratio": times[rule, ""] / times["dense", ""], "dense_ms": 1e3 * times["dense", ""],
                "method": planned(twin, case, mode == "cached"),
            })  # fmt: skip
    return cells


def layer(d_in: int, d_out: int, rule: str) -> Linear:
    """A layer of nplex."""
    module = parse_rule(rule)
    assert isinstance(module, LearnedRule)
    return Linear(d_in, d_out, rule=module)


def limit(twin: Linear, case: Case) -> float:
    """Of the dense arithmetic at many tokens, of the bytes of the dense weight at one."""
    n, rank = twin.rule.n, twin.rule.rank
    if case.tokens == 1:
        return min(1 / n, 1.0 if rank is None else rank / n**2)
    return 1.0 if rank is None else rank / n**2


def planned(twin: Linear, case: Case, keep: bool) -> str:
    """The method that the plan takes."""
    return plan_for(
        case.d_in, case.d_out, tokens=case.tokens, n=twin.rule.n, rank=twin.rule.rank,
        element_size=torch.get_default_dtype().itemsize, training=case.mode == "training", prepared=keep,
    ).method  # fmt: skip


def agree(twin: Linear) -> None:
    """Stops when a method differs from the reference by more than rounding."""
    x = torch.randn(5, twin.in_features)
    allowed = 1e-5 if x.dtype == torch.float32 else 0.1
    results = {}
    for method in METHODS:
        if not METHODS[method].needs_factors or twin.rule.rank is not None:
            twin.method = method
            results[method] = twin(x).detach().float()
    twin.method = "auto"
    for method, found in results.items():
        error = ((found - results["reference"]).norm() / results["reference"].norm()).item()
        assert error < allowed, f"{method} is {error:.1e} from the reference: nothing is timed"


def call(module: nn.Module, case: Case, method: str = "auto", keep: bool = False) -> Callable[[], float]:
    """What times one call, in seconds."""
    x = torch.randn(case.tokens, case.d_in, requires_grad=case.mode == "training")
    grad = torch.randn(case.tokens, case.d_out)
    inside = contextlib.ExitStack()
    if keep:
        inside.enter_context(cached(module))
        held = module.cache
        inside.close()

    def forward() -> float:
        if isinstance(module, Linear):
            module.method, module.cache = method, held if keep else None
        with torch.no_grad():
            began = time.perf_counter()
            module(x)
            return time.perf_counter() - began

    def training() -> float:
        if isinstance(module, Linear):
            module.method, module.cache = method, None
        x.grad = None
        module.zero_grad()
        began = time.perf_counter()
        module(x).backward(grad)
        return time.perf_counter() - began

    return forward if case.mode == "forward" else training


def in_turns(runs: dict[tuple[str, str], Callable[[], float]], repeats: int) -> dict[tuple[str, str], float]:
    """Median seconds of each; every turn runs all, so that a busy machine hits all alike."""
    seconds: dict[tuple[str, str], list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 2):
        for name, run in runs.items():
            taken = run()
            if turn > 1:
                seconds[name].append(taken)
    return {name: statistics.median(values) for name, values in seconds.items()}


def target_table(cells: list[dict]) -> str:
    """A line for each case, a column for each rule: what was reached, what was to be reached, the limit."""
    lines = [
        "**Targets**: time as a share of torch's linear, with the target in brackets and then the limit: of the "
        "arithmetic, for one token of the bytes read. Full rules by the dense method, others by the bilinear one; "
        "for one token the best method.",
        "",
        "| case | " + " | ".join(f"n = {rule.replace(':', ', rank ')}" for rule in TARGETED) + " |",
        "|---|" + "---|" * len(TARGETED),
    ]
    for case in dict.fromkeys((c["d_in"], c["d_out"], c["tokens"], c["mode"]) for c in cells):
        row = [c for c in cells if (c["d_in"], c["d_out"], c["tokens"], c["mode"]) == case]
        values = [f"{'**' * c['met']}{c['ratio']:.2f}{'**' * c['met']} ({c['target']:.2f}; {c['limit']:.3g})"
                  + f" {c['method']}" * (c["tokens"] == 1) for c in row]  # fmt: skip
        d_in, d_out, tokens, mode = case
        name = f"{mode}, {d_in} x {d_out}, {tokens} token{'s' * (tokens != 1)}, dense {row[0]['dense_ms']:.1f} ms"
        lines.append(f"| {name} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def sweep_table(cells: list[dict], width: int) -> str:
    """Ratios of one width: a row for each mode and rule, a column for each number of tokens."""
    mine = [cell for cell in cells if cell["width"] == width]
    tokens = list(dict.fromkeys(cell["tokens"] for cell in mine))
    marks = {"dense": "d", "bilinear": "b", "rule_first": "r", "components_first": "c"}
    lines = [
        f"**{width} x {width}**, any number of tokens, by the planned method: d dense, b bilinear, r rule_first, "
        "c components_first",
        "",
        "| mode | n, rank | " + " | ".join(map(str, tokens)) + " |",
        "|---|---|" + "---:|" * len(tokens),
    ]
    for mode, rule in dict.fromkeys((cell["mode"], cell["rule"]) for cell in mine):
        row = [cell for cell in mine if (cell["mode"], cell["rule"]) == (mode, rule)]
        values = " | ".join(f"{cell['ratio']:.2f} {marks[cell['method']]}" for cell in row)
        lines.append(f"| {mode} | {rule.replace(':', ', ')} | {values} |")
    return "\n".join(lines)


def heading(env: dict, dtype: str) -> str:
    """Where and when."""
    return (
        f"nplex {env['commit']}, torch {env['torch']}, {env['processor']}, {env['threads']} thread(s), {dtype}, "
        f"{env['date']}\n\n"
    )


def figure(cells: list[dict], path: Path) -> None:
    """Ratio against tokens: a column for each n, a row for each width."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(11, 7), layout="constrained")
    grid = picture.subplots(len(WIDTHS), 3, sharex=True, sharey=True)
    for row, width in zip(grid, WIDTHS, strict=True):
        for axes, n in zip(row, ("2", "4", "8"), strict=True):
            for rule in [rule for rule in SWEPT if rule.partition(":")[0] == n]:
                rank = rule.partition(":")[2]
                color, kind = (
                    ("C0", "full rule") if not rank else ("C2", "rank n") if rank == n else ("C1", "rank 7, 24")
                )
                for mode, style in (("forward", "-"), ("cached", ":"), ("training", "--")):
                    mine = [c for c in cells if (c["width"], c["rule"], c["mode"]) == (width, rule, mode)]
                    line = [c["tokens"] for c in mine], [c["ratio"] for c in mine]
                    axes.plot(*line, style, color=color, marker="o", markersize=3, label=f"{kind}, {mode}")
            axes.axhline(1, color="0.4", linewidth=1)
            axes.set(xscale="log", yscale="log", title=f"n = {n}, {width} x {width}")
            axes.set_yticks([0.1, 0.2, 0.5, 1, 2], ["0.1", "0.2", "0.5", "1", "2"])
            axes.set_xticks(TOKENS, [str(count) for count in TOKENS])
            axes.minorticks_off()
            axes.grid(alpha=0.25)
    for axes in grid[-1]:
        axes.set_xlabel("tokens")
    for row in grid:
        row[0].set_ylabel("time / torch's linear")
    picture.legend(*grid[0][1].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    picture.savefig(path, dpi=130)


if __name__ == "__main__":
    typer.run(main)
