"""Known products learned from examples: what the paper does with its artificial data."""

from nplex.lab.products.known import product_named
from nplex.lab.products.learned import Learned, RuleLearning, learn

__all__ = ["Learned", "RuleLearning", "learn", "product_named"]
