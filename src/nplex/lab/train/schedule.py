"""How long and how fast a model is trained."""

import math
from dataclasses import dataclass
from typing import Literal

from torch import nn

from nplex.lab.fields import check_fields
from nplex.optim import param_groups


@dataclass(frozen=True)
class Schedule:
    """AdamW with the groups of nplex.optim, a linear warm-up, then a curve.

    Attributes:
        epochs: passes over the training examples.
        batch_size: examples a step, over all processes and gradient-accumulation steps.
        batch_tokens: if not 0, batches hold as many padded tokens instead.
        accumulate: gradient-accumulation steps of a batch; the gradient is that of the whole.
        learning_rate: the highest, of a dense layer; those of components are multiples, see nplex.optim.
        warmup: the share of all steps over which the rate grows.
        shape: of the rate after that: down to 0 as a cosine or a line, as 1 / sqrt(step), or level.
        weight_decay: on weights and components; never on biases, norms and embeddings.
        rule_rate: the learning rate of rules, as a multiple of the others'.
        rule_decay: the weight decay of rules.
        clip: gradients are scaled down to this norm.
        label_smoothing: of the tasks that write text.
        precision: of accelerate: "no", "bf16", "fp16".
        patience: stop after so many epochs without a better dev score; 0 never stops.
        keep: the weights at the end: of the last epoch, of the best by the dev score, or the mean of the last ones.
        average: how many of them.
        checkpoint_every: steps between checkpoints, besides those after each epoch; 0 for none.

    Raises:
        ValueError: a number is out of range, or a choice unknown.
    """

    epochs: int = 5
    batch_size: int = 64
    batch_tokens: int = 0
    accumulate: int = 1
    learning_rate: float = 1e-3
    warmup: float = 0.1
    shape: Literal["cosine", "linear", "inverse_sqrt", "constant"] = "cosine"
    weight_decay: float = 0.01
    rule_rate: float = 1.0
    rule_decay: float = 0.0
    clip: float = 1.0
    label_smoothing: float = 0.0
    precision: Literal["no", "bf16", "fp16"] = "no"
    patience: int = 0
    keep: Literal["last", "best", "average"] = "last"
    average: int = 5
    checkpoint_every: int = 0

    def __post_init__(self) -> None:
        check_fields(self)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, counted from 0."""
        warm = max(1, round(self.warmup * steps))
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        done = min(1.0, (step - warm) / max(1, steps - warm))
        curve = {
            "cosine": 0.5 * (1 + math.cos(math.pi * done)),
            "linear": 1 - done,
            "inverse_sqrt": math.sqrt(warm / (step + 1)),
            "constant": 1.0,
        }
        return self.learning_rate * curve[self.shape]


def groups(model: nn.Module, schedule: Schedule) -> list[dict]:
    """The groups of nplex.optim; each has `factor`, by which the rate of a step is multiplied."""
    made = param_groups(model, lr=1.0, weight_decay=schedule.weight_decay, rule_lr=schedule.rule_rate)
    for group in made:
        group["factor"] = group.pop("lr")
        if group["name"] == "rules":
            group["weight_decay"] = schedule.rule_decay
    return made
