"""Which known algebra each rule of a model is."""

from typing import overload

import torch
from torch import nn

from nplex.algebra import Algebra, BilinearAlgorithm, Identification
from nplex.algebra import identify as of_table
from nplex.nn import Rule


@overload
def identify(
    of: torch.Tensor | Algebra | BilinearAlgorithm | Rule, seed: int = 0, *, noise: float = 0.01
) -> Identification: ...


@overload
def identify(of: nn.Module, seed: int = 0, *, noise: float = 0.01) -> dict[str, Identification]: ...


def identify(
    of: torch.Tensor | Algebra | BilinearAlgorithm | nn.Module, seed: int = 0, *, noise: float = 0.01
) -> Identification | dict[str, Identification]:
    """The known algebra that a rule is (nplex.algebra.identify), or each rule of a model or layer by its name there.

    A rule that is shared stands there once. A saved model is loaded first, as nplex.load or transformers does it.

    Args:
        of: A table, an algebra, factors, a rule as a module (`layer.rule`), or a model or layer.
        seed: The same seed gives the same result.
        noise: The share of a table's norm that may be noise; it matters at n = 2 only.

    Raises:
        TypeError: It is none of these.
        ValueError: A rule's table is not a cube, not real, not finite, or all zeros, and the rule is named; or the
            model has no rule.

    Examples:
        >>> from nplex.algebra import quaternion
        >>> from nplex.nn import Linear
        >>> print(identify(Linear(8, 8, rule=quaternion))["rule"].name)
        quaternion
    """
    if isinstance(of, Rule):
        return of_table(of(), seed, noise=noise)
    if not isinstance(of, nn.Module):
        return of_table(of, seed, noise=noise)
    rules = {name: module for name, module in of.named_modules() if isinstance(module, Rule)}
    if not rules:
        raise ValueError("the model has no rule: none of its layers is nplex's, or its rule is shared from elsewhere")
    found = {}
    for name, rule in rules.items():
        try:
            found[name] = of_table(rule(), seed, noise=noise)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return found
