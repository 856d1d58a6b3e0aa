"""Layers with torch.nn's names and signatures, and a rule."""

from nplex.nn.cached import cached
from nplex.nn.conv import Conv1d, Conv2d, Conv3d
from nplex.nn.linear import Linear
from nplex.nn.rule import FixedRule, LearnedRule, Rule, as_rule
from nplex.nn.sharing import missing_rules, share

__all__ = [
    "Linear",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "Rule",
    "LearnedRule",
    "FixedRule",
    "as_rule",
    "share",
    "missing_rules",
    "cached",
]
