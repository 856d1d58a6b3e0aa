"""Times layers on a GPU against torch.nn.Linear, with what the plan predicts beside what was measured.

    python benchmarks/gpu.py                 # under 6 minutes; writes gpu-CARD.json and gpu-CARD.md
    python benchmarks/gpu.py --dry           # on a CPU, tiny sizes, to see that it runs; writes the same files

What decides most comes first, and files are written after each part, so that a run that is cut short has its worth.
Predictions use the defaults for the card (nplex/ops/cards.py), not what this program measures.
"""

import itertools
import re
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

import nplex
from nplex import ops
from nplex.files import write_json
from nplex.nn import LearnedRule, Linear
from nplex.ops import cards, fused, machine, sums

RESULTS = Path(__file__).parent / "results"
RULES = ((4, 7), (4, 4), (8, 24), (8, 8), (4, None))
Row = dict[str, Any]


class Bench:
    """The device, its sizes, and the clock; `dry` takes a CPU and a hundredth of every size."""

    def __init__(self, dry: bool, limit: float) -> None:
        self.dry, self.until = dry, time.perf_counter() + limit
        self.device, self.dtype = ("cpu", torch.float32) if dry else ("cuda", torch.bfloat16)
        self.card = "dry run on a CPU" if dry else torch.cuda.get_device_name()
        self.machine = machine.ACCELERATORS[cards.card()]

    def size(self, real: int, least: int = 16) -> int:
        """A width or a number of tokens."""
        return max(real // 128, least) if self.dry else real

    def tensor(self, *shape: int, **kind: Any) -> Tensor:
        """Random numbers."""
        return torch.randn(*shape, **{"device": self.device, "dtype": self.dtype} | kind)

    def seconds(self, run: Callable[[], object], budget: float = 0.1) -> float:
        """The median of runs that are started one behind the other, each series long enough for the clock."""
        run(), run()
        repeats = 1
        while (took := self._series(run, repeats)) < (1e-4 if self.dry else 5e-3):
            repeats *= 2
        times, end = [took], time.perf_counter() + budget
        while time.perf_counter() < end:
            times.append(self._series(run, repeats))
        return statistics.median(times) / repeats

    def _series(self, run: Callable[[], object], repeats: int) -> float:
        if self.dry:
            start = time.perf_counter()
            for _ in range(repeats):
                run()
            return time.perf_counter() - start
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(repeats):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3


def main(
    dry: Annotated[bool, typer.Option("--dry", help="Tiny, on a CPU.")] = False,
    limit: Annotated[float, typer.Option(min=0, help="Seconds; a part that would begin later is left out.")] = 300,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = RESULTS,
) -> None:
    """Run all parts, print each row, write the table and all figures."""
    torch.manual_seed(0)
    bench, rows = Bench(dry, limit), []
    name = re.sub(r"[^a-z0-9]+", "-", bench.card.lower()).strip("-")
    for part in (ceilings, values, kernels, layers, formulas, blocks, few_rows, few_tokens, captured):
        try:
            for row in part(bench):
                rows.append({"part": part.__name__, **row})
                print(*row.values(), flush=True)
                if time.perf_counter() > bench.until:
                    break
        except Exception:  # each part stands alone: what fails costs itself only
            traceback.print_exc()
            rows.append({"part": part.__name__, "case": "failed", "measured": None, "predicted": None})
        about = {"card": bench.card, "torch": torch.__version__, "nplex": nplex.__version__}
        write_json(out / f"gpu-{name}.json", about | {"machine": asdict(bench.machine), "rows": rows})
        (out / f"gpu-{name}.md").write_text(table(about, rows), "utf-8")
    print(out / f"gpu-{name}.md")


def ceilings(bench: Bench) -> Iterator[Row]:
    """What `nplex measure` finds, beside the defaults."""
    small = {"size": 64, "numbers": 2**16} if bench.dry else {}
    found, expected = asdict(ops.calibrate.measure_accelerator(bench.device, **small)), asdict(bench.machine)
    for what, value in found.items():
        yield {"case": what, "measured": value, "predicted": expected[what]}


def values(bench: Bench) -> Iterator[Row]:
    """The relative error of every method, eager and compiled, against float64; bfloat16 errs by about 0.005."""
    width, tokens = bench.size(1024, 32), bench.size(4096)
    for (n, rank), method in itertools.product(RULES[:3], ops.METHODS):
        layer = Linear(width, width, rule=LearnedRule(n, rank), method=method).double()
        x = torch.randn(tokens, width, dtype=torch.float64)
        exact = [y.detach() for y in step(layer, x)()]
        layer, x = layer.to(bench.device, bench.dtype), x.to(bench.device, bench.dtype)
        for how, run in (("eager", step), *((("compiled", partial(compiled, bench)),) * (method == "bilinear"))):
            found = [y.detach().cpu().double() for y in run(layer, x)()]
            wrong = max(float((y - e).norm() / e.norm()) for y, e in zip(found, exact, strict=True))
            yield {"case": f"n={n} rank={rank} {method} {how}", "measured": wrong, "predicted": None}


def kernels(bench: Bench) -> Iterator[Row]:
    """The kernels of nplex.ops.fused: errors against float64, and the share of a copy's speed (the aim is 0.85)."""
    if not fused.works() or bench.device not in fused.DEVICES:
        yield {"case": "needs a GPU and Triton", "measured": None, "predicted": None}
        return
    for n, rank in RULES[:3]:
        yield from kernels_of(bench, n, rank)


def kernels_of(bench: Bench, n: int, rank: int) -> Iterator[Row]:
    """Those of a layer about 4096 wide."""
    tokens, c = bench.size(16384, 32), bench.size(4096 // n, 32)
    x, u, table = bench.tensor(tokens, n, c).transpose(0, 1), bench.tensor(rank, tokens, c), bench.tensor(n, n, n)
    encode, few, components = bench.tensor(rank, n), bench.tensor(1, n, c), bench.tensor(n, c, c)
    weight, token = bench.tensor(n * c, n * c), torch.empty_like(few)
    places = weight.unflatten(1, (n, c)).unflatten(0, (n, c)).transpose(1, 2)
    out, wide, grads = (torch.empty_like(t) for t in (x, u, components))
    faces = table.permute(1, 2, 0)
    for name, run, (formula, *operands), moved in (
        ("mix the input", lambda: fused.mix(encode, x, wide), ("rn,ntc->rtc", encode, x), (x, wide)),
        ("mix the output", lambda: fused.mix(encode.mT, u, out), ("rn,rtc->ntc", encode, u), (u, out)),
        ("gradients, input", lambda: fused.mix_back(u, x, encode, out), ("rtc,ntc->rn", u, x), (u, x, out)),
        ("gradients, output", lambda: fused.mix_back(x, u, encode.mT, wide), ("ntc,rtc->nr", x, u), (u, x, wide)),
        ("gradients, weight", lambda: fused.mix_back(places, components, faces, grads),
         ("ijab,kab->ijk", places, components), (components, weight, grads)),
        ("weight", lambda: fused.mix(faces, components, places), ("kij,kab->ijab", table, components),
         (components, weight)),
        ("one token", lambda: fused.decode(few, table, components, None),
         ("kij,kab,tjb->tia", table, components, few), (components, few, token)),
    ):  # fmt: skip
        exact = torch.einsum(formula, *(t.double() for t in operands))
        wrong = float((run().double() - exact).norm() / exact.norm())
        yield {"case": f"{name}, n={n} rank={rank}: error", "measured": wrong, "predicted": None}
        size = sum(t.numel() * t.element_size() for t in moved)
        share = size / bench.machine.bytes_per_second / bench.seconds(run)
        yield {"case": f"{name}, n={n} rank={rank}: share of a copy", "measured": share, "predicted": 1.0}


def formulas(bench: Bench) -> Iterator[Row]:
    """Training steps without the kernels, by the formulas that other calls take; a share of torch's."""
    works = fused.works
    fused.works = lambda: False
    try:
        for row in layers(bench, (4096, 1024), (16384,)):
            yield row | {"case": f"{row['case']}, no kernels"}
    finally:
        fused.works = works


def layers(
    bench: Bench, widths: tuple[int, ...] = (4096, 2048, 8192, 1024), counts: tuple[int, ...] = (16384, 2048)
) -> Iterator[Row]:
    """Training steps of square layers, as a share of torch's."""
    for d, tokens in itertools.product(widths, counts):
        width, many = bench.size(d, 32), bench.size(tokens)
        x, kind = bench.tensor(many, width), {"device": bench.device, "dtype": bench.dtype}
        base = bench.seconds(step(nn.Linear(width, width, **kind), x))
        case = f"{d} x {d}, {tokens} tokens"
        predicted = ops.plan_for(width, width, **asked(bench, many, 4, None)).linear.seconds
        yield {"case": f"{case}: torch's Linear, seconds", "measured": base, "predicted": predicted}
        for n, rank in RULES:
            made = ops.plan_for(width, width, **asked(bench, many, n, rank))
            expected = {cost.method: cost.seconds / made.linear.seconds for cost in made.costs}
            for method in ("dense", "bilinear") if rank else ("dense",):
                layer = Linear(width, width, rule=LearnedRule(n, rank, **kind), method=method, **kind)
                share = bench.seconds(step(layer, x)) / base
                name = f"{case}, n={n} rank={rank} {method}{' <- auto' * (method == made.method)}"
                yield {"case": name, "measured": share, "predicted": expected[method]}


def blocks(bench: Bench) -> Iterator[Row]:
    """Training steps of a compiled block, LayerNorm, Linear, GELU, Linear and the residual; a share of torch's."""
    kind, many = {"device": bench.device, "dtype": bench.dtype}, bench.size(16384)
    for d in (4096, 2048):
        width = bench.size(d, 32)
        x = bench.tensor(many, width)
        base = bench.seconds(compiled(bench, Block(lambda w: nn.Linear(w, w, **kind), width, kind), x))
        yield {"case": f"{d} wide, {many} tokens: torch's block, seconds", "measured": base, "predicted": None}
        for (n, rank), method in itertools.product(RULES[:4], ("bilinear", "auto")):
            block = Block(lambda w, n=n, rank=rank, method=method: Linear(
                w, w, rule=LearnedRule(n, rank, **kind), method=method, **kind), width, kind)  # fmt: skip
            made = ops.plan_for(width, width, **asked(bench, many, n, rank))
            request = made.request._replace(compiled=True)
            cost = {m.name: m.cost(request).total("").seconds for m in ops.METHODS.values() if m.cost}
            linear = ops.dense.linear_cost(request, width, width).total("").seconds
            expected = cost["bilinear"] if method == "bilinear" else min(cost["bilinear"], cost["dense"])
            share = bench.seconds(compiled(bench, block, x)) / base
            yield {"case": f"{d} wide, n={n} rank={rank} {method}", "measured": share, "predicted": expected / linear}


class Block(nn.Module):
    """`x + down(gelu(up(norm(x))))`, both as wide as x."""

    def __init__(self, linear: Callable[[int], nn.Module], width: int, kind: dict[str, Any]) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width, **kind), linear(width), linear(width)

    def forward(self, x: Tensor) -> Tensor:
        """The residual and what the two layers add to it."""
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


def compiled(bench: Bench, layer: nn.Module, x: Tensor) -> Callable[[], tuple]:
    """A step of the compiled layer; dry it stays as it is, as compiling takes longest of all."""
    if bench.dry:
        return step(layer, x)
    torch.compiler.reset()
    return step(layer, x, torch.compile(layer))


def few_rows(bench: Bench) -> Iterator[Row]:
    """Mixing as a matmul, and the gradient of a factor, as a share of the speed of a copy."""
    for n, rank in RULES[:3]:
        tokens, width = bench.size(16384), bench.size(4096 // n)
        parts, mixed = bench.tensor(n, tokens * width), bench.tensor(rank, tokens, width)
        weights, many = bench.tensor(rank, n), (n + rank) * tokens * width * parts.element_size()
        took = bench.seconds(lambda weights=weights, parts=parts: weights @ parts)
        share = many / bench.machine.bytes_per_second / took
        yield {"case": f"mix n={n} rank={rank}", "measured": share, "predicted": ops.cost.FEW_ROWS}
        parts = parts.view(n, tokens, width)
        took = bench.seconds(lambda parts=parts, mixed=mixed: sums.in_groups(parts, mixed))
        share = many / bench.machine.bytes_per_second / took
        yield {"case": f"factor gradient n={n} rank={rank}", "measured": share, "predicted": ops.cost.FEW_ROWS}


def captured(bench: Bench) -> Iterator[Row]:
    """As few_tokens, replayed from a CUDA graph, where Python starts nothing."""
    yield from few_tokens(bench, graphs=True)


def few_tokens(bench: Bench, graphs: bool = False) -> Iterator[Row]:
    """Forward of several layers one behind the other, so that no weight waits in the cache; a share of torch's."""
    how = replayed if graphs and not bench.dry else lambda run: run
    kind = {"device": bench.device, "dtype": bench.dtype}
    for d, tokens, n in itertools.product((4096, 8192, 2048), (1, 16), (4, 8)):
        width, x = bench.size(d, 32), bench.tensor(tokens, bench.size(d, 32))
        count = 2 if bench.dry else max(4, 2**28 // d**2)
        dense = [nn.Linear(width, width, **kind) for _ in range(count)]
        ours = [Linear(width, width, rule=LearnedRule(n, **kind), **kind) for _ in range(count)]
        with torch.no_grad():
            base = bench.seconds(how(lambda dense=dense, x=x: [layer(x) for layer in dense]))
            with nplex.nn.cached(nn.ModuleList(ours)):
                took = bench.seconds(how(lambda ours=ours, x=x: [layer(x) for layer in ours]))
        few = asked(bench, tokens, n, None) | {"training": False, "prepared": True}
        if graphs:
            few["machine"] = replace(bench.machine, seconds_per_call=1e-9)
        made = ops.plan_for(width, width, **few)
        expected = min(cost.seconds for cost in made.costs) / made.linear.seconds
        yield {"case": f"{d} x {d}, {tokens} tokens, n={n}, cached", "measured": took / base, "predicted": expected}


def replayed(run: Callable[[], object]) -> Callable[[], object]:
    """The same as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run(), run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def asked(bench: Bench, tokens: int, n: int, rank: int | None) -> dict[str, Any]:
    """What the plan is asked for a training step."""
    rest = {"element_size": bench.dtype.itemsize, "training": True, "machine": bench.machine}
    return {"tokens": tokens, "n": n, "rank": rank} | rest


def step(layer: nn.Module, x: Tensor, run: Callable[[Tensor], Tensor] | None = None) -> Callable[[], tuple]:
    """Forward and backward with all gradients; gives the output and them."""
    x, run = x.requires_grad_(), run or layer
    wanted, grad = [x, *(p for p in layer.parameters() if p.requires_grad)], torch.ones_like(run(x)).detach()

    def once() -> tuple:
        y = run(x)
        return y, *torch.autograd.grad(y, wanted, grad)

    return once


def table(about: dict[str, str], rows: list[Row]) -> str:
    """A section a part."""
    lines = [f"# {about['card']}, torch {about['torch']}, nplex {about['nplex']}", ""]
    lines += ["Predicted figures are arithmetic (nplex/ops/cards.py); a share is of torch's Linear or of a copy."]
    for part, group in itertools.groupby(rows, lambda row: row["part"]):
        lines += ["", f"## {part}", "", "| case | measured | predicted |", "|---|---:|---:|"]
        lines += [f"| {row['case']} | {shown(row['measured'])} | {shown(row['predicted'])} |" for row in group]
    return "\n".join(lines) + "\n"


def shown(value: float | None) -> str:
    """Three digits, or nothing."""
    return "" if value is None else f"{value:.3g}"


if __name__ == "__main__":
    typer.run(main)
