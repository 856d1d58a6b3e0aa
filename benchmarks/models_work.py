"""What benchmarks/models.py does with a model: a training step, an evaluation, a generation; and what they must keep.

A workload is one of the modules models_transformer, models_lstm; a model is what its `build` gives.
"""

import copy
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import nplex
from nplex.convert import parse_rule
from nplex.nn import cached

GENERATING = {"generation, 1": 1, "generation, 16": 16}
MODES = ("training", "evaluation", *GENERATING)
Run = Callable[[], dict[str, float]]


def built(make: Callable[[], nn.Module], rule: str) -> Any:
    """A model with all its linear layers converted; its dense weights never exist, so they do not count as memory."""
    with torch.device("meta"):
        model = make()
    given = parse_rule(rule)
    if given is not None:
        nplex.convert_(model, given)
    model.to_empty(device="cpu")
    for module in reversed(list(model.modules())):  # the model itself last
        getattr(module, "reset_parameters", lambda: None)()
    return model


def runs(model: Any, workload: ModuleType, sizes: object) -> dict[str, Run]:
    """One run of each mode, as functions that return seconds by name."""
    words = workload.batch(sizes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def training() -> dict[str, float]:
        model.train()
        began = time.perf_counter()
        optimizer.zero_grad()
        model.loss(*words).backward()
        optimizer.step()
        return {"training": time.perf_counter() - began}

    @torch.no_grad()
    def evaluation() -> dict[str, float]:
        model.eval()
        began = time.perf_counter()
        model.loss(*words)
        return {"evaluation": time.perf_counter() - began}

    return {
        "training": training,
        "evaluation": evaluation,
        **{mode: generation(model, workload.prompt(sizes, count), mode) for mode, count in GENERATING.items()},
    }


def generation(model: Any, prompt: tuple[Tensor, ...], mode: str) -> Run:
    """Seconds a step, which gives one token to each sentence; and those before the first, of an encoder."""
    *source, first = prompt

    @torch.no_grad()
    def run() -> dict[str, float]:
        model.eval()
        began = time.perf_counter()
        state = model.start(*source)
        started = time.perf_counter()
        steps = model.generate(state, first).shape[1] - 1
        return {f"start of {mode}": started - began, mode: (time.perf_counter() - started) / steps}

    return run


def expanded(model: Any) -> Any:
    """A dense model of the same function: each converted layer as torch's own."""
    dense = copy.deepcopy(model)
    for name, module in model.named_modules():
        if isinstance(module, nplex.nn.Linear):
            parent, _, attribute = name.rpartition(".")
            setattr(dense.get_submodule(parent), attribute, module.to_torch())
    return dense


def agree(model: Any, workload: ModuleType, sizes: object) -> dict[str, float]:
    """Stops when a model differs from its dense twin, or one place at a time from all at once; relative errors."""
    words = [part[:2] for part in workload.batch(sizes)]
    twin = workload.twin(model)
    linears = [module for module in model.modules() if isinstance(module, nplex.nn.Linear)]
    dense = sum(layer.in_features * layer.out_features for layer in linears)
    assert sum(layer.components.numel() * layer.rule.n for layer in linears) == dense, "components are not 1/n"
    assert nplex.count(model).dense == nplex.count(twin).total, "the dense twin has other sizes"

    found, expected = outputs(model, workload, words), outputs(twin, workload, words)
    errors = {name: relative(found[name], expected[name]) for name in found}
    errors["stepwise"] = relative(found["places"], found["logits"])
    for name, error in errors.items():
        assert error < 1e-4, f"{name}: {error:.1e} from what it should be; nothing is timed"
    return errors


def outputs(model: Any, workload: ModuleType, words: list[Tensor]) -> dict[str, Tensor]:
    """Logits of all places at once, the same place by place, and the gradient of the embeddings."""
    model.eval()
    model.loss(*words).backward()
    gradient = model.get_parameter("words.weight").grad
    assert gradient is not None
    gradient = gradient.clone()
    model.zero_grad()
    with torch.no_grad(), cached(model):
        logits, places = workload.logits(model, *words)
    return {"logits": logits, "places": places, "gradient": gradient}


def relative(found: Tensor, expected: Tensor) -> float:
    """`|found - expected| / |expected|`."""
    return ((found - expected).norm() / expected.norm()).item()
