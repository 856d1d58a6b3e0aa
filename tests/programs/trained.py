"""Trains a tiny model, alone or under torchrun: python trained.py FOLDER KEEP [PAUSE]. With a pause it drops out.

LOSE_AT=N in the environment kills the second process at its N-th loss, once; TERM_AT=N asks it to end there.
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn

from nplex.files import write_tensors
from nplex.lab.train import Loss, Schedule, fit, main_process, wait
from nplex.nn import LearnedRule, Linear

FOLDER, KEEP, PAUSE = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
DROPOUT = 0.2 if len(sys.argv) > 3 else 0.0  # processes have random numbers of their own
LOSE_AT, TERM_AT = (int(os.environ.get(name, "0")) for name in ("LOSE_AT", "TERM_AT"))
torch.set_num_threads(1)


class Task:
    """Rows of random numbers and what a matrix makes of them; examples count differently, as texts do."""

    main, higher = "error", False

    def __init__(self):
        generator, self.losses = torch.Generator().manual_seed(1), 0
        self.x = torch.randn(50, 6, generator=generator)
        self.y = self.x @ torch.randn(6, 4, generator=generator)

    def batches(self, generator):
        return [batch.tolist() for batch in torch.randperm(50, generator=generator).split(7)]

    def loss(self, model, indices, device):
        time.sleep(PAUSE)
        self.losses += 1
        if self.losses == LOSE_AT and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.losses == TERM_AT and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        weights = torch.tensor([1 + index % 3 for index in indices])
        errors = (model(self.x[indices]) - self.y[indices]).square().mean(1)
        return Loss((weights * errors).sum(), int(weights.sum()), len(indices))

    def scores(self, model, device):
        with torch.no_grad():
            return {"error": (model(self.x) - self.y).square().mean().item()}


torch.manual_seed(0)
model = nn.Sequential(Linear(6, 8, rule=2), nn.Tanh(), nn.Dropout(DROPOUT), Linear(8, 4, rule=LearnedRule(2, rank=3)))
schedule = Schedule(
    epochs=6, batch_size=7, accumulate=2, learning_rate=0.03, rule_rate=0.5, rule_decay=0.01, keep=KEEP, average=3,
    checkpoint_every=3,
)  # fmt: skip
state = fit(model, Task(), schedule, seed=0, folder=FOLDER, config={"keep": KEEP})
if main_process():
    write_tensors(FOLDER / "final.safetensors", model.state_dict(), {"steps": state.step, "tokens": state.tokens})
wait()
