"""Does a run under torchrun end in the same bits, however often its workers are killed?

    python benchmarks/restarts.py            # 20 runs of about a minute
    python benchmarks/restarts.py --runs 1   # to see that it runs; writes no results

A tiny model, trained by `nplex.lab.fit` in two processes on gloo. In each run, three times, one of the workers gets
SIGKILL at a random moment from its start on: while torch is loaded, while the processes find each other, between
any two steps, while a checkpoint is written. torchrun starts both again. What counts: the bits of the weights and
what was logged after each pass, beside a run that nothing killed. A run that takes longer than --longest stands
still: its processes write where they are, then it is ended. Writes results/restarts.json and .md.
"""

import faulthandler
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

RESULTS = Path(__file__).parent / "results" / "restarts"
KILLS, PROCESSES = 3, 2


def train(folder: Path) -> None:
    """A worker: trains in a folder, goes on where there is a checkpoint."""
    (folder / "pids").mkdir(parents=True, exist_ok=True)
    (folder / "pids" / os.environ["RANK"]).write_text(str(os.getpid()))
    import torch
    from torch import nn

    from nplex.files import write_tensors
    from nplex.lab.train import Loss, Schedule, fit, main_process, wait
    from nplex.nn import LearnedRule, Linear

    class Rows:
        """Rows of random numbers, and what a matrix makes of them."""

        main, higher = "error", False
        x = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
        y = x @ torch.randn(16, 8, generator=torch.Generator().manual_seed(2))

        def batches(self, generator: torch.Generator) -> list[list[int]]:
            return [batch.tolist() for batch in torch.randperm(64, generator=generator).split(8)]

        def loss(self, model: nn.Module, indices: list[int], device: torch.device) -> Loss:
            time.sleep(0.02)
            return Loss((model(self.x[indices]) - self.y[indices]).square().mean(1).sum(), len(indices), len(indices))

        @torch.no_grad()
        def scores(self, model: nn.Module, device: torch.device) -> dict[str, float]:
            return {"error": float((model(self.x) - self.y).square().mean())}

    torch.set_num_threads(1)
    torch.manual_seed(0)
    rule = LearnedRule(4, rank=7)
    model = nn.Sequential(Linear(16, 32, rule=4), nn.Tanh(), nn.Dropout(0.1), Linear(32, 8, rule=rule))
    schedule = Schedule(epochs=8, batch_size=8, learning_rate=0.01, keep="best", checkpoint_every=3)
    fit(model, Rows(), schedule, seed=0, folder=folder, config={})
    if main_process():
        write_tensors(folder / "final.safetensors", model.state_dict())
    wait()


def launched(folder: Path) -> subprocess.Popen:
    """torchrun in a process that writes where it is when it gets SIGUSR1."""
    folder.mkdir(parents=True)
    with (folder / "output.txt").open("w") as output:
        return subprocess.Popen([sys.executable, __file__, "torchrun", folder], stdout=output, stderr=output)


def pid(folder: Path, rank: int) -> int:
    """The process of a worker, 0 where there is none yet."""
    path = folder / "pids" / str(rank)
    return int(path.read_text() or 0) if path.exists() else 0


def broken(folder: Path, seed: int, longest: float) -> dict:
    """One run, killed some times; says how it went."""
    rng, began, killed = random.Random(seed), time.monotonic(), []
    process, seen = launched(folder), set[int]()
    due: float | None = None
    while process.poll() is None and time.monotonic() - began < longest:
        time.sleep(0.02)
        if len(killed) == KILLS:
            continue
        rank = (seed + len(killed)) % PROCESSES
        found = pid(folder, rank)
        if due is None and found and found not in seen:
            due = time.monotonic() + 7 * rng.random()
            seen.add(found)
        elif due is not None and time.monotonic() >= due:
            due = None
            if Path(f"/proc/{found}").exists():
                os.kill(found, signal.SIGKILL)
                killed.append(round(time.monotonic() - began, 1))
    stuck = process.poll() is None and time.monotonic() - began >= longest
    if stuck:
        for number in (process.pid, *(pid(folder, rank) for rank in range(PROCESSES))):
            if number and Path(f"/proc/{number}").exists():
                os.kill(number, signal.SIGUSR1)
        time.sleep(2)
        process.terminate()
    process.wait()
    return {"seed": seed, "killed": killed, "stuck": stuck, "code": process.returncode,
            "seconds": round(time.monotonic() - began, 1)}  # fmt: skip


def ends(folder: Path) -> tuple[bytes, list]:
    """The weights, and what was logged after each pass."""
    path = folder / "final.safetensors"
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()] if path.exists() else []
    return path.read_bytes() if path.exists() else b"", [line for line in log if "error" in line]


def write(rows: list[dict]) -> None:
    """The results, and what a reader wants of them."""
    from nplex.files import write_json, write_text
    from nplex.lab.environment import environment

    env, kills = environment(), sum(len(row["killed"]) for row in rows)
    same, stuck = (sum(row[key] for row in rows) for key in ("same", "stuck"))
    write_json(RESULTS.with_suffix(".json"), {"environment": env, "rows": rows})
    head = f"nplex {env['commit']}, torch {env['torch']}, {env['processor']}, {env['date']}"
    table = (
        f"| runs | kills | same bits | stood still |\n|---|---|---|---|\n| {len(rows)} | {kills} | {same} | {stuck} |"
    )
    write_text(RESULTS.with_suffix(".md"), f"{head}\n\n{table}\n")


def main(
    runs: Annotated[int, typer.Option(min=1, help="How many; with 20 the results are written.")] = 20,
    longest: Annotated[float, typer.Option(help="Seconds after which a run stands still.")] = 600.0,
    first: Annotated[int, typer.Option(help="Seed of the first run.")] = 0,
) -> None:
    """Runs all, one after the other."""
    with tempfile.TemporaryDirectory() as name:
        whole = launched(Path(name) / "whole")
        if whole.wait() != 0:
            raise SystemExit((Path(name) / "whole" / "output.txt").read_text())
        rows = []
        for seed in range(first, first + runs):
            folder = Path(name) / str(seed)
            row = broken(folder, seed, longest)
            row["same"] = row["code"] == 0 and ends(folder) == ends(Path(name) / "whole")
            print(json.dumps(row), flush=True)
            if not row["same"]:
                print((folder / "output.txt").read_text(), file=sys.stderr, flush=True)
            rows.append(row)
    if runs == 20:
        write(rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["torchrun"]:
        faulthandler.register(signal.SIGUSR1, all_threads=True)
        from torch.distributed import run

        run.main([
            "--standalone", f"--nproc-per-node={PROCESSES}", "--max-restarts=9", __file__, "train", sys.argv[2],
        ])  # fmt: skip
    elif sys.argv[1:2] == ["train"]:
        faulthandler.register(signal.SIGUSR1, all_threads=True)
        train(Path(sys.argv[2]))
    else:
        typer.run(main)
