"""What is made anew from something given: a rule like it, a parameter that shares no memory."""

import copy

from torch import Tensor, nn

from nplex.algebra import Algebra
from nplex.nn.rule import Rule


def fresh_rule(rule: int | Algebra | Rule) -> int | Algebra | Rule:
    """What a part is to be given: a free copy of a rule with new first values; a shared rule, n or an algebra itself.

    Examples:
        >>> from nplex.nn import LearnedRule
        >>> fresh_rule(LearnedRule(4, rank=7))
        LearnedRule(n=4, rank=7)
    """
    if not isinstance(rule, Rule) or rule.place == "shared":
        return rule
    copied = copy.deepcopy(rule)
    copied.reset_parameters()
    return copied


def fresh_parameter(values: Tensor) -> nn.Parameter:
    """Values that were just built as a parameter; copied only where they are a part of something larger.

    A large model is folded layer by layer: a copy of each weight would leave as many holes in memory.
    """
    alone = values.is_contiguous() and values.untyped_storage().nbytes() == values.numel() * values.element_size()
    return nn.Parameter(values.detach() if alone else values.detach().clone())
