"""estimate: what each of several rules would give a model."""

import math
import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from nplex.convert.report import Row, label, rule_label
from nplex.convert.spec import Choice, Conversion, LowRank
from nplex.convert.survey import Survey, survey
from nplex.convert.swap import convert_
from nplex.convert.where import Layers
from nplex.estimating.costs import change
from nplex.estimating.result import Estimate, LayerEstimate, RuleEstimate
from nplex.estimating.running import ADAM, Times, layer_timings, observed, runnable, timings, training_bytes
from nplex.nn.written import RuleLike


def estimate(
    model: nn.Module,
    example: Any,
    rules: Iterable[RuleLike] = (2, 4, 8, "4:7"),
    *,
    where: Layers | None = None,
    everything: bool = False,
    measure: bool = False,
) -> Estimate:
    """What each rule would give: parameters, arithmetic, memory, and seconds of inference and of a training step.

    The dense model is run and its layers are timed; what a rule changes is then what the plan says of it. Nothing is
    changed: a copy is run, converted ones are made one at a time. So it takes the memory of the model, a copy, its
    gradients and Adam's moments, and what the example needs for backward. Of a model on the meta device the copy gets
    random numbers. It takes some seconds for each kind of layer, with measure=True also for each rule.

    A step is forward, backward and AdamW; inference is inside nplex.nn.cached. Quality is not estimated.

    Args:
        model: not yet converted.
        example: what its forward takes: a tensor, a tuple or list of arguments, or a mapping of names to them.
        rules: each as convert_ takes it for all layers.
        where: which layers, as in convert_.
        everything: as in convert_.
        measure: whether converted models are run too, so that measured times stand beside the predicted ones.

    Raises:
        TypeError: the model is not a module, or a rule is none.
        ValueError: a rule or where is wrong, the model cannot be copied, or does not take the example.

    Examples:
        >>> model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256))
        >>> found = estimate(model, torch.randn(64, 256), rules=[4, "4:7"])
        >>> [(row.rule, row.parameters) for row in found.rows]
        [('dense', 262912), ('4', 66432), ('4:7', 66472)]
    """
    given = [rule for rule in rules if rule != "dense"] if not isinstance(rules, Tensor) else [rules]
    specs = [Conversion(rule, where, everything=everything) for rule in given]
    with torch.random.fork_rng(range(torch.cuda.device_count())), torch.inference_mode(False):
        surveys = [survey(model, spec) for spec in specs]
        base = _Base(runnable(model), example, sorted({name for found in surveys for name in found.choices}))
        rows = [base.dense]
        for spec, found in zip(specs, surveys, strict=True):
            row = base.row(_text(spec.choices[0]), found)
            rows.append(replace(row, measured=_measured(model, example, spec)) if measure and row.layers else row)
    return Estimate(tuple(rows), torch.get_num_threads(), next(base.model.parameters()).device.type)


class _Base:
    """What was seen of the dense model."""

    def __init__(self, model: nn.Module, example: Any, names: list[str]) -> None:
        self.model = model
        inputs, flops = observed(model, example, names)
        times, memory = timings(model, example), training_bytes(model, example)
        count = sum(p.numel() for p in model.parameters())
        size = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
        self.dense = RuleEstimate("dense", count, size, flops, memory, times.inference, times.step)
        self.optimizer = times.optimizer / count
        self.calls: dict[str, list[tuple[int, Times]]] = {name: [] for name in names}
        known: dict[tuple, Times] = {}
        for name, given in ((name, each) for name, calls in inputs.items() for each in calls):
            layer, x = model.get_submodule(name), next(filter(torch.is_tensor, (*given[0], *given[1].values())))
            if (key := (label(layer), x.shape, *given[1])) not in known:
                known[key] = layer_timings(layer, given)
            self.calls[name].append((_tokens(layer, x), known[key]))

    def row(self, rule: str, found: Survey) -> RuleEstimate:
        """The row of a rule: that of the dense model, and what changes."""
        layers = tuple(self._layer(row, found.choices[row.name]) for row in found.report.rows if row.changes)
        dense, saved = self.dense, found.report.total_before - found.report.total_after
        size = next(self.model.parameters()).element_size()

        def changed(of: str) -> Any:
            return getattr(dense, of) + sum(
                after - before for before, after in (getattr(each, of) for each in layers)
            )

        return RuleEstimate(
            rule, found.report.total_after, dense.bytes - size * saved, changed("flops"),
            dense.memory - ADAM * size * saved + sum(each.kept for each in layers), changed("inference"),
            changed("step") - self.optimizer * saved, layers,
        )  # fmt: skip

    def _layer(self, row: Row, choice: Choice) -> LayerEstimate:
        """What a rule does to one layer in all its calls: its measured times, and the change that is planned."""
        layer, method, kept = self.model.get_submodule(row.name), "not called", 0
        sums: dict[str, list[Any]] = {"flops": [0, 0], "inference": [0.0, 0.0], "step": [0.0, 0.0]}
        for tokens, times in self.calls[row.name]:
            for of in ("inference", "step"):
                found = change(layer, choice, tokens, training=of == "step")
                real, (before, after) = getattr(times, of), found.seconds
                scale = real / before if before and not isinstance(layer, nn.MultiheadAttention) else 1.0
                both = {of: (real, max(real + scale * (after - before), 0.0))}
                both |= {"flops": found.flops} if of == "inference" else {}
                for key, pair in both.items():
                    sums[key] = [total + part for total, part in zip(sums[key], pair, strict=True)]
            method, kept = found.method, kept + found.kept
        pairs = {key: tuple(pair) for key, pair in sums.items()}
        return LayerEstimate(row.name, row.was, row.now or "", method, row.now_parameters, kept=kept, **pairs)


def _tokens(layer: Any, x: Tensor) -> int:
    """Rows of the input, or places of the output."""
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return x.shape[0] * math.prod(-(-s // by) for s, by in zip(x.shape[2:], layer.stride, strict=True))
    return x.numel() // (x.shape[-1] if x.is_floating_point() else 1)


def _text(choice: Choice) -> str:
    """A rule as the command line writes it."""
    return f"low-rank:{choice.rule.size}" if isinstance(choice.rule, LowRank) else rule_label(choice.template)


def _measured(model: nn.Module, example: Any, spec: Conversion) -> tuple[float, float, int]:
    """Seconds of inference and of a step, and bytes, of a converted copy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the rank of a rule, told before
        convert_(copied := runnable(model), spec.rule, where=spec.where, everything=spec.everything)
    inference, step, _ = timings(copied, example)
    return inference, step, training_bytes(copied, example)
