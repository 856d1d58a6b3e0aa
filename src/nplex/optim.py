"""Step sizes: parameter groups in which a step changes W as much as one of the dense layer does."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nplex.algebra import as_table
from nplex.convert.report import label, text_table
from nplex.convert.twins import is_layer
from nplex.nn import Embedding, EmbeddingBag, LearnedRule, LowRankLinear, Rule

__all__ = ["param_groups", "explain", "factor", "Explanation", "Step"]

EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag, Embedding, EmbeddingBag)
NO_DECAY = (*EMBEDDINGS, nn.LayerNorm)
OPTIMIZERS = ("adamw", "sgd", "adafactor")


@dataclass(frozen=True)
class Step:
    """The rate of one layer's components, as a multiple of the dense layer's rate.

    Attributes:
        name: of the layer.
        layer: its class, sizes and rule.
        adamw: for optimizers whose steps have one size for all numbers: Adam, AdamW, Lion, RMSprop.
        sgd: for SGD with and without momentum.
        adafactor: for steps relative to the size of the numbers: Adafactor.
    """

    name: str
    layer: str
    adamw: float
    sgd: float
    adafactor: float


@dataclass(frozen=True)
class Explanation:
    """The factors of all hypercomplex layers of a model, and where they come from.

    Attributes:
        steps: one for each layer.
    """

    steps: tuple[Step, ...]

    def __str__(self) -> str:
        if not self.steps:
            return "no hypercomplex layers: every factor is 1"
        header = ("name", "layer", *OPTIMIZERS)
        rows = [(s.name, s.layer, f"{s.adamw:.2f}", f"{s.sgd:.2f}", f"{s.adafactor:.2f}") for s in self.steps]
        return "\n".join([
            "factors on the dense model's learning rate, for the components of each layer",
            *text_table([header, *rows], "<<>>>"),
            "With it one step lowers the loss as much, to first order, as one step of the dense layer:",
            "  adamw  n^2 / sum_k ||rule[k]||    sgd  n^2 / ||rule||^2    adafactor  n ||rule|| / sum_k ||rule[k]||",
        ])


def explain(model: nn.Module) -> Explanation:
    """The factor of every hypercomplex layer for each kind of optimizer: a value that prints itself.

    Examples:
        >>> from nplex.algebra import quaternion
        >>> from nplex.nn import Linear
        >>> step, = explain(nn.Sequential(Linear(64, 64, rule=quaternion))).steps
        >>> round(step.adamw, 3), round(step.sgd, 3)
        (2.0, 1.0)
    """
    steps = []
    for name, layer in model.named_modules():
        if _components(layer):
            steps.append(
                Step(
                    name or "(the model)",
                    label(layer, layer.rule),  # pyright: ignore[reportArgumentType]
                    **{o: factor(layer, o) for o in OPTIMIZERS},
                )
            )
    return Explanation(tuple(steps))


def param_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.0,
    optimizer: str = "adamw",
    rule_lr: float | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups for any torch optimizer, from the rate and decay of the dense model.

    The components of a layer get the rate `factor * lr`, with the factor of `explain`, and the decay
    `weight_decay / factor`: what a step takes off is their product. Rules, biases, norms and embeddings have no
    decay. Parameters that require no gradient are left out. Fresh learned rules have factor 1 for "adamw".

    Args:
        model: any model.
        lr: the dense model's learning rate.
        weight_decay: the dense model's weight decay.
        optimizer: what the groups are for: "adamw" for Adam, AdamW, Lion and all whose steps have one size for all
            numbers, "sgd" for SGD with and without momentum, "adafactor".
        rule_lr: the rate of the rules, that of the dense model by default.

    Returns:
        Groups with params, lr, weight_decay, and a name.

    Raises:
        ValueError: the optimizer is unknown, a rate or decay is negative, or nothing can be trained.

    Source: Qiu et al., Compute Better Spent (2024), arXiv 2406.06248, section 3, for structured matrices in general.

    Examples:
        >>> from nplex.algebra import quaternion
        >>> from nplex.nn import Linear
        >>> model = nn.Sequential(Linear(64, 64, rule=4), Linear(64, 64, rule=quaternion), nn.LayerNorm(64))
        >>> optimizer = torch.optim.AdamW(param_groups(model, lr=1e-3, weight_decay=0.1))
        >>> [group["name"] for group in optimizer.param_groups]
        ['components x 1', 'no decay', 'rules', 'components x 2']
    """
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}; got {optimizer!r}")
    for name, value in (("lr", lr), ("weight_decay", weight_decay), ("rule_lr", rule_lr)):
        if value is not None and not value >= 0:
            raise ValueError(f"{name} must be 0 or more, got {value!r}")
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("no parameter of this model requires a gradient, so there is nothing to optimize")
    groups: dict[tuple[str, float, float], list[Tensor]] = {}
    for parameter, (name, times, decays) in _factors(model, optimizer).items():
        rate = rule_lr if name == "rules" and rule_lr is not None else lr * times
        groups.setdefault((name, rate, decays * weight_decay / times), []).append(parameter)
    return [
        {"params": params, "lr": rate, "weight_decay": decay, "name": name}
        for (name, rate, decay), params in groups.items()
    ]


def _factors(model: nn.Module, optimizer: str) -> dict[Tensor, tuple[str, float, bool]]:
    """The group of each trained parameter, the factor on its rate, and whether it decays.

    A tied one counts where it comes first, but an embedding's never decays.
    """
    found: dict[Tensor, tuple[str, float, bool]] = {}
    embeddings = {p for m in model.modules() if isinstance(m, EMBEDDINGS) for p in m.parameters(recurse=False)}
    for module in model.modules():
        times = round(factor(module, optimizer), 6)
        components = set(_components(module))
        for parameter in module.parameters(recurse=isinstance(module, Rule)):
            if isinstance(module, Rule):
                group = "rules", 1.0, False
            elif parameter in components:
                group = f"components x {times:g}", times, parameter not in embeddings
            elif isinstance(module, NO_DECAY) or parameter.ndim < 2 or is_layer(module):
                group = "no decay", 1.0, False
            else:
                group = "weights", 1.0, parameter not in embeddings
            if parameter.requires_grad:
                found.setdefault(parameter, group)
    return found


@torch.no_grad()
def factor(layer: nn.Module, optimizer: str) -> float:
    """What the dense layer's rate is multiplied by for a layer's components; 1 for modules that have none.

    With blocks of gradients `G_k = sum_ij rule[k, i, j] g_i x_j^T` a step of Adam's lowers the loss by
    `lr sum_k ||G_k||_1`, which is proportional to `lr sum_k ||rule[k]||`; one of SGD by `lr sum_k ||G_k||^2`,
    proportional to `lr ||rule||^2`. An embedding's step reaches few rows, so there `rule[k, i]` counts alone;
    components of low rank are compared with a dense product of two factors of that rank. Of a learned rule the first
    size counts, so that a model that goes on has the same groups.
    """
    if not _components(layer):
        return 1.0
    n, norm, faces, rows = _sizes(layer.rule)  # pyright: ignore[reportArgumentType]
    if isinstance(layer, EMBEDDINGS):
        faces = rows
    size = norm / n  # of the rule; its components start 1 / size as large as those of a rule of norm n
    if isinstance(layer, LowRankLinear):
        by_sign, size = n * math.sqrt(norm) / faces, math.sqrt(size)
    else:
        by_sign = n**2 / faces
    return {"adamw": by_sign, "sgd": size**-2, "adafactor": by_sign * size}[optimizer]


def _sizes(rule: Rule) -> tuple[int, float, float, float]:
    """n, `||rule||`, `sum_k ||rule[k]||` and `sum_ki ||rule[k, i]||`; of learned rules what they start with."""
    if isinstance(rule, LearnedRule):
        return rule.n, rule.initial_norm, rule.initial_faces, rule.n**0.5 * rule.initial_faces
    table = as_table(rule()).double()
    sizes = table.norm(), table.flatten(1).norm(dim=1).sum(), table.norm(dim=2).sum()
    return rule.n, *map(float, sizes)  # pyright: ignore[reportReturnType]


def _components(layer: nn.Module) -> list[nn.Parameter]:
    """The parameters of a layer that its rule puts together."""
    if not is_layer(layer):
        return []
    own = layer.named_parameters(recurse=False)
    return [p for name, p in own if "components" in name or name in ("left", "right")]
