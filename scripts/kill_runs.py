"""Kills runs 20 times at random moments, resumes each time, and compares the end with an unbroken run's bits.

    python scripts/kill_runs.py [--kills 20] [--epochs 2] [--out runs/kills]

Trains the agreement recipe on the built-in data with rule 4: once unbroken, then with kill -9 at random moments, from
the start of the process to its end; a run that came to its end is compared, and another one is begun until all kills
are spent. Every file is read after every kill. Writes results/kills.json and .md. Exit code 1 if weights, answers or
history differ, or if a file was damaged.
"""

import argparse
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from nplex.files import read_json, read_tensors, write_json, write_text
from nplex.lab.environment import environment


def command(out: Path, epochs: int) -> list[str]:
    """One run; --resume does no harm where nothing is."""
    task = [sys.executable, "-m", "nplex", "run", "agreement", "--rule", "4", "--epochs", str(epochs)]
    return [*task, "--out", str(out), "--resume"]


def damaged(folder: Path) -> list[str]:
    """Files that cannot be read."""
    wrong = []
    for path in folder.glob("*"):
        try:
            if path.suffix == ".safetensors":
                read_tensors(path)
            elif path.suffix == ".json":
                read_json(path)
        except ValueError as error:
            wrong.append(str(error))
    return wrong


@dataclass
class Kills:
    """Runs that are killed until so many kills are spent.

    Attributes:
        out: the folder of all runs.
        epochs: of each.
        moments: seconds after which the next process is killed.
        wanted: kills in all.
        spent: kills so far, and where: seconds and lines logged.
        wrong: what could not be read.
    """

    out: Path
    epochs: int
    moments: Iterator[float]
    wanted: int
    spent: list[dict] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def one_run(self, number: int) -> Path:
        """A run from its beginning to its end, killed as often as there are kills left."""
        folder = self.out / f"broken-{number}"
        while True:
            process = subprocess.Popen(command(folder, self.epochs), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            moment = next(self.moments) if len(self.spent) < self.wanted else None
            try:
                said, _ = process.communicate(timeout=moment)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                self.note(folder, moment or 0.0)
                continue
            if process.returncode:
                raise SystemExit(said.decode())
            return folder

    def note(self, folder: Path, moment: float) -> None:
        """Reads all files after a kill."""
        log = folder / "log.jsonl"
        lines = log.read_text().count("\n") if log.exists() else 0
        self.wrong += damaged(folder)
        self.spent.append({"run": folder.name, "seconds": round(moment, 2), "lines logged": lines})
        print(
            f"kill {len(self.spent):2} after {moment:5.1f} s, {lines} lines logged, {len(self.wrong)} damaged",
            flush=True,
        )


def same(whole: Path, broken: Path) -> bool:
    """Whether the weights are the same bits, and history, answers and scores the same."""
    weights = [(folder / "model.safetensors").read_bytes() for folder in (whole, broken)]
    one, two = (read_json(folder / "result.json") for folder in (whole, broken))
    return weights[0] == weights[1] and all(one[name] == two[name] for name in ("history", "answers", "scores"))


def page(found: dict) -> str:
    """The result in words."""
    env, runs, kills = found["environment"], found["runs"], len(found["kills"])
    options = f"--kills {kills} --epochs {found['epochs']} --seed {found['seed']}"
    return (
        f"{kills} kills (-9) at random moments, in {runs} runs of the agreement recipe, n = 4, "
        f"{found['epochs']} epochs, each resumed until its end: {found['equal']} of {runs} ended in the same "
        f"weights, answers and history as a run that was never stopped; {found['damaged']} files damaged.\n\n"
        f"`python scripts/kill_runs.py {options}`, nplex {env['commit']}, torch {env['torch']}, {env['processor']}, "
        f"{env['date']}.\n"
    )


def main() -> int:
    """Runs all and compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/kills"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    options = parser.parse_args()
    whole, rng = options.out / "whole", random.Random(options.seed)
    shutil.rmtree(options.out, ignore_errors=True)
    began = time.monotonic()
    subprocess.run(command(whole, options.epochs), check=True, capture_output=True)
    span = time.monotonic() - began
    kills = Kills(options.out, options.epochs, (span * (0.05 + 0.4 * rng.random()) for _ in count()), options.kills)
    folders = []
    while not folders or len(kills.spent) < options.kills:
        folders.append(kills.one_run(len(folders)))
        print(f"{folders[-1].name}: {'the same' if same(whole, folders[-1]) else 'NOT THE SAME'}", flush=True)
    equal = sum(same(whole, folder) for folder in folders)
    found = {
        "kills": kills.spent, "runs": len(folders), "equal": equal, "damaged": len(kills.wrong),
        "epochs": options.epochs, "seed": options.seed, "environment": environment(),
    }  # fmt: skip
    write_json(options.results / "kills.json", found)
    write_text(options.results / "kills.md", page(found))
    print(page(found))
    return 0 if equal == len(folders) and not kills.wrong else 1


if __name__ == "__main__":
    sys.exit(main())
