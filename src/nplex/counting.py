"""Parameters of a model: how many, where, and how many a dense one would have."""

from dataclasses import dataclass

from torch import nn
from torch.nn.parameter import is_lazy

from nplex.convert.twins import is_layer, shadow
from nplex.nn import Rule


@dataclass(frozen=True)
class Count:
    """Numbers of parameters, tied and shared ones once.

    Attributes:
        total: all parameters.
        trainable: those that require gradients.
        layers: those of hypercomplex layers, their rules included.
        rules: those of rules.
        dense: what the whole model would have if its hypercomplex layers were torch's.
        bytes: of all parameters and buffers.
    """

    total: int
    trainable: int
    layers: int
    rules: int
    dense: int
    bytes: int

    def __str__(self) -> str:
        return (
            f"{self.total:,} parameters ({self.trainable:,} trainable, {self.bytes / 2**20:.1f} MiB)\n"
            f"  hypercomplex layers {self.layers:,}, of these rules {self.rules:,}; "
            f"with dense layers the model would have {self.dense:,} ({100 * self.total / max(self.dense, 1):.1f} %)"
        )


def count(model: nn.Module) -> Count:
    """Counts the parameters of any model.

    Raises:
        ValueError: a layer is not initialised yet; names it.

    Examples:
        >>> from nplex.nn import Linear
        >>> print(count(nn.Sequential(Linear(64, 64, rule=4), nn.Linear(64, 2))))
        1,282 parameters (1,282 trainable, 0.0 MiB)
          hypercomplex layers 1,152, of these rules 64; with dense layers the model would have 4,290 (29.9 %)
    """
    if lazy := [name for name, p in model.named_parameters() if is_lazy(p)]:
        raise ValueError(f"{lazy[0]} is not initialised yet and has no size: run one batch first, then count")
    parameters = set(model.parameters())
    every = [module for module in model.modules() if is_layer(module)]
    parts = {part for layer in every for part in layer.modules() if part is not layer}
    layers = [layer for layer in every if layer not in parts]
    rules = [module for root in (model, *every) for module in _rules(root)]
    rule_parameters = {p: None for rule in rules for p in rule.parameters()}
    layer_parameters = {p: None for layer in layers for p in layer.parameters()} | rule_parameters
    of_layers = sum(p.numel() for p in layer_parameters if p in parameters)
    dense = sum(p.numel() for layer in layers for p in shadow(layer).to_torch().parameters())
    total = sum(p.numel() for p in parameters)
    return Count(
        total=total,
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        layers=of_layers,
        rules=sum(p.numel() for p in rule_parameters if p in parameters),
        dense=total - of_layers + dense,
        bytes=sum(t.numel() * t.element_size() for t in (*parameters, *model.buffers())),
    )


def _rules(module: nn.Module) -> list[Rule]:
    """The rules registered in a module, and the one that it refers to."""
    own = vars(module).get("rule")
    return [m for m in (*module.modules(), own) if isinstance(m, Rule)]
