"""What rules would give a model: size, memory and time, before anything is converted."""

from nplex.estimating.estimation import estimate
from nplex.estimating.result import Estimate, LayerEstimate, RuleEstimate

__all__ = ["estimate", "Estimate", "RuleEstimate", "LayerEstimate"]
