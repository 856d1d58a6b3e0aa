"""How a model is healed, and what came of it: values."""

from dataclasses import dataclass

from nplex.convert.report import text_table


@dataclass(frozen=True)
class Healing:
    """Steps, rates and whatever else of healing has a number.

    Attributes:
        group: blocks of a group.
        group_steps: of groups apart from each other, a batch each; 0 for none.
        steps: of the whole model, a batch each; 0 for none.
        group_rate: the learning rate of groups: AdamW without decay by nplex.optim.param_groups, down as a cosine.
        rate: the learning rate of the whole model.
        clip: the gradient of a group, or of the whole model, is scaled down to this norm.
        everything: whether all parameters are trained; else those that the teacher does not have, biases and norms.
        fade: the share of the first phase in which converted layers fade in, `y = (1 - a) dense + a converted` with a
            from 0 to 1; 0 for none. The dense layers are the teacher's, on the model's device.
        seed: of the order of batches.
        cache: bytes for what the teacher gives for batches that come again; what does not fit is computed again.
        checkpoint_every: steps between checkpoints, where there is a folder.
    """

    group: int = 2
    group_steps: int = 400
    steps: int = 300
    group_rate: float = 3e-3
    rate: float = 1e-3
    clip: float = 1.0
    everything: bool = False
    fade: float = 0.0
    seed: int = 0
    cache: int = 2**30
    checkpoint_every: int = 50

    def __post_init__(self) -> None:
        least_of = {"group": 1, "group_steps": 0, "steps": 0, "seed": 0, "cache": 0, "checkpoint_every": 1}
        for name, least in least_of.items():
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name} must be a whole number of {least} or more, got {value!r}")
        for name in ("group_rate", "rate", "clip", "fade"):
            if isinstance(getattr(self, name), bool) or not isinstance(getattr(self, name), int | float):
                raise ValueError(f"{name} must be a number, got {getattr(self, name)!r}")
        for name in ("group_rate", "rate", "clip"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be greater than 0 and finite, got {getattr(self, name)!r}")
        if not 0 <= self.fade <= 1:
            raise ValueError(f"fade is a share of the first phase's steps, 0 to 1, got {self.fade!r}")
        if self.group_steps + self.steps == 0:
            raise ValueError("group_steps and steps are both 0; give one of them steps")


@dataclass(frozen=True)
class HealingRow:
    """One phase.

    Attributes:
        phase: "groups" or "whole model".
        steps: of it.
        rate: the learning rate that it began with.
        before: the loss of the phase before it, on the batches that measure.
        after: the same loss after it.
        seconds: of training.
    """

    phase: str
    steps: int
    rate: float
    before: float
    after: float
    seconds: float


@dataclass(frozen=True)
class HealingReport:
    """What healing did.

    Attributes:
        rows: one for each phase.
        blocks: name, and error of its hidden states in the whole model before and after, of each call of a block.
        outputs: the loss of outputs before and after.
        trained: how many parameters were trained.
        held_out: how many batches measured and were not trained on; 0 where all were trained on.
        idle: components, rules and the like that got no gradient in the last phase: nothing that was compared uses
            them.
    """

    rows: tuple[HealingRow, ...]
    blocks: tuple[tuple[str, float, float], ...]
    outputs: tuple[float, float]
    trained: int
    held_out: int
    idle: tuple[str, ...] = ()

    def __str__(self) -> str:
        phases = [("phase", "steps", "rate", "loss before", "after", "seconds")]
        for row in self.rows:
            numbers = (f"{row.rate:g}", f"{row.before:.4f}", f"{row.after:.4f}", f"{row.seconds:.1f}")
            phases.append((row.phase, str(row.steps), *numbers))
        errors = [("in the whole model", "error before", "after")]
        for name, before, after in (*self.blocks, ("outputs", *self.outputs)):
            errors.append((name, f"{before:.4f}", f"{after:.4f}"))
        where = "a batch that was" if self.held_out == 0 else "1 batch that was not"
        where = where if self.held_out < 2 else f"{self.held_out} batches that were not"
        lines = [*text_table(phases, "<>>>>>"), *text_table(errors, "<>>")]
        lines.append(f"{self.trained:,} parameters trained; measured on {where} trained on")
        if self.idle:
            lines.append(f"not healed, as nothing that is compared uses them: {', '.join(self.idle)}")
        return "\n".join(lines)
