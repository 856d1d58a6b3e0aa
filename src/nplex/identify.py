"""Which known algebra each rule of a model is."""

import torch
from torch import nn

from nplex.algebra import Algebra, BilinearAlgorithm, Identification
from nplex.algebra import identify as of_table
from nplex.nn import Rule


def identify(rule: torch.Tensor | Algebra | BilinearAlgorithm | Rule, seed: int = 0) -> Identification:
    """Of one rule: a table, an algebra, factors, or a rule as a module (`layer.rule`); see nplex.algebra.identify.

    Raises:
        TypeError: It is none of these.
        ValueError: Its table is no cube, not real, not finite, or all zeros.
    """
    return of_table(rule() if isinstance(rule, Rule) else rule, seed)


def identify_model(model: nn.Module, seed: int = 0) -> dict[str, Identification]:
    """Of each rule in a model or layer by its name there; one that is shared stands there once.

    A model that was saved is loaded first, as nplex.load or transformers does it.

    Raises:
        TypeError: The model is no module.
        ValueError: It has no rule, or a rule has no numbers that can be looked at; the rule is named.

    Examples:
        >>> from nplex.algebra import quaternion
        >>> from nplex.nn import Linear
        >>> print(identify_model(Linear(8, 8, rule=quaternion))["rule"].name)
        quaternion
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"the model must be a torch.nn.Module, got {type(model).__name__}")
    rules = {name: module for name, module in model.named_modules() if isinstance(module, Rule)}
    if not rules:
        raise ValueError("the model has no rule: none of its layers is nplex's, or its rule is shared from elsewhere")
    found = {}
    for name, rule in rules.items():
        try:
            found[name] = of_table(rule(), seed)
        except ValueError as error:
            raise ValueError(f"{name or 'rule'}: {error}") from error
    return found
