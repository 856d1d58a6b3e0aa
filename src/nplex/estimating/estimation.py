"""estimate: what each of several rules would give a model."""

import math
import statistics
import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nplex.convert.report import label, rule_label
from nplex.convert.spec import Choice, Conversion, LowRank
from nplex.convert.survey import Survey, survey
from nplex.convert.swap import convert_
from nplex.convert.where import Layers
from nplex.estimating.costs import Call, change
from nplex.estimating.result import Estimate, LayerEstimate, RuleEstimate
from nplex.estimating.running import (
    ADAM,
    Seen,
    Times,
    layer_timings,
    observed,
    runnable,
    timings,
    training_bytes,
)
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
        rows = [base.dense()]
        for spec, found in zip(specs, surveys, strict=True):
            row = base.row(_text(spec.choices[0]), found)
            rows.append(replace(row, measured=_measured(model, example, spec)) if measure and row.layers else row)
    return Estimate(tuple(rows), torch.get_num_threads(), next(model.parameters()).device.type)


class _Timed(NamedTuple):
    """A layer as it is called with one size of input."""

    call: Call
    times: Times


class _Base:
    """What was seen of the dense model."""

    def __init__(self, model: nn.Module, example: Any, names: list[str]) -> None:
        seen = observed(model, example, names)
        self.flops, self.times = seen.flops, timings(model, example)
        self.memory = training_bytes(model, example)
        self.layers = {name: model.get_submodule(name) for name in names}
        known: dict[tuple, Times] = {}
        self.calls = {name: [*self._timed(name, seen, known)] for name in names}
        self.usual = {training: self._usual(training) for training in (False, True)}
        self.parameters = list(model.parameters())
        self.bytes = sum(t.nbytes for t in (*self.parameters, *model.buffers()))

    def _timed(self, name: str, seen: Seen, known: dict[tuple, Times]) -> Iterable[_Timed]:
        layer = self.layers[name]
        number = next(p for p in layer.parameters() if p.ndim > 1)
        for times, args, kwargs in seen.inputs[name]:
            x = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
            call = Call(_tokens(layer, x), times, number.element_size(), number.device.type)
            key = label(layer), tuple(x.shape), *kwargs
            if key not in known:
                known[key] = layer_timings(layer, args, kwargs)
            yield _Timed(call, known[key])

    def dense(self) -> RuleEstimate:
        """The row of the model as it is."""
        count = sum(p.numel() for p in self.parameters)
        return RuleEstimate(
            "dense", count, self.bytes, self.flops, self.memory, self.times.inference, self.times.step
        )

    def row(self, rule: str, found: Survey) -> RuleEstimate:
        """The row of a rule."""
        layers = [self._layer(row, found.choices[row.name]) for row in found.report.rows if row.changes]
        saved = found.report.total_before - found.report.total_after
        size = self.parameters[0].element_size()
        seconds = self.times.optimizer * saved / max(found.report.total_before, 1)
        return RuleEstimate(
            rule,
            found.report.total_after,
            self.bytes - size * saved,
            self.flops + sum(each.flops - each.dense_flops for each in layers),
            self.memory - ADAM * size * saved + sum(each.kept for each in layers),
            self.times.inference + sum(each.inference - each.dense_inference for each in layers),
            self.times.step + sum(each.step - each.dense_step for each in layers) - seconds,
            tuple(layers),
        )

    def _layer(self, row: Any, choice: Choice) -> LayerEstimate:
        """What a rule does to one layer: its measured times, and what the plan says of the change."""
        layer, sums, method = self.layers[row.name], [], "not called"
        for call, times in self.calls[row.name]:
            for training in (False, True):
                found = change(layer, choice, call, training=training)
                before, after = found.seconds
                real = times.step if training else times.inference
                scale = real / before if _multiplies(layer) and before else self.usual[training]
                after = real + scale * (after - before)
                sums.append((training, call.times, real, max(after, real / 100), found.flops, found.kept))
                method = found.method
        forward, step = ([each for each in sums if each[0] is training] for training in (False, True))
        return LayerEstimate(
            row.name, row.was, row.now, method, row.now_parameters,
            *(sum(times * flops[i] for _, times, *_, flops, _ in forward) for i in (0, 1)),
            sum(times * kept for _, times, *_, kept in step),
            *(sum(each[1] * each[i] for each in which) for which in (forward, step) for i in (2, 3)),
        )  # fmt: skip

    def _usual(self, training: bool) -> float:
        """How much slower this machine is than planned, in the middle of all layers that only multiply."""
        found = []
        for name, layer in self.layers.items():
            for call, times in self.calls[name] if _multiplies(layer) else ():
                planned = change(layer, Choice("*", 1, False), call, training=training).seconds[0]
                found += [(times.step if training else times.inference) / planned] if planned else []
        return statistics.median(found) if found else 1.0


def _multiplies(layer: nn.Module) -> bool:
    """Whether its time is that of its products."""
    kinds = nn.MultiheadAttention, nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.RNNCellBase
    return not isinstance(layer, kinds)


def _tokens(layer: nn.Module, x: Tensor) -> int:
    """Rows of the input, or places of the output."""
    if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
        return x.numel()
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return x.shape[0] * math.prod(-(-s // by) for s, by in zip(x.shape[2:], layer.stride, strict=True))
    return x.numel() // x.shape[-1]


def _text(choice: Choice) -> str:
    """A rule as the command line writes it."""
    return f"low-rank:{choice.rule.size}" if isinstance(choice.rule, LowRank) else rule_label(choice.template)


def _measured(model: nn.Module, example: Any, spec: Conversion) -> tuple[float, float, int]:
    """Seconds of inference and of a step, and bytes, of a converted copy."""
    copied = runnable(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the rank of a rule, told before
        convert_(copied, spec.rule, where=spec.where, everything=spec.everything)
    inference, step, _ = timings(copied, example)
    return inference, step, training_bytes(copied, example)
