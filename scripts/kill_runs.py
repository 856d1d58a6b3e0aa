"""Kills a run 20 times at random moments, resumes it each time, and compares the end with an unbroken run's bits.

    python scripts/kill_runs.py [--kills 20] [--epochs 3] [--out runs/kills]

Trains the agreement recipe on the built-in data with rule 4, twice: once unbroken, once with kill -9 at random
moments, from the start of the process to its end. Every file is read after every kill. Exit code 1 if the weights,
the answers or the history differ, or if a file was damaged.
"""

import argparse
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from nplex.checkpoint import read_json, read_tensors


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


def main() -> int:
    """Runs both and compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/kills"))
    options = parser.parse_args()
    whole, broken, rng = options.out / "whole", options.out / "broken", random.Random(options.seed)
    shutil.rmtree(options.out, ignore_errors=True)
    began = time.monotonic()
    subprocess.run(command(whole, options.epochs), check=True, capture_output=True)
    span, kills, wrong = time.monotonic() - began, 0, []
    while kills < options.kills:
        process = subprocess.Popen(
            command(broken, options.epochs), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        moment = span / options.epochs * (0.2 + 1.1 * rng.random())  # long enough to pass an epoch now and then
        try:
            process.wait(moment)
            break  # it came to its end before all kills were spent
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        kills += 1
        step = (broken / "log.jsonl").read_text().count("\n") if (broken / "log.jsonl").exists() else 0
        wrong += damaged(broken)
        print(f"kill {kills:2} after {moment:5.1f} s, {step} lines logged, {len(wrong)} files damaged", flush=True)
    subprocess.run(command(broken, options.epochs), check=True, capture_output=True)
    same = (whole / "model.safetensors").read_bytes() == (broken / "model.safetensors").read_bytes()
    results = [read_json(folder / "result.json") for folder in (whole, broken)]
    equal = all(results[0][name] == results[1][name] for name in ("history", "answers", "scores"))
    print(f"{kills} kills; weights {'equal' if same else 'DIFFER'}; results {'equal' if equal else 'DIFFER'}")
    return 0 if same and equal and not wrong else 1


if __name__ == "__main__":
    sys.exit(main())
