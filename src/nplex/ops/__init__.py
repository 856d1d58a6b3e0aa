"""The product, one file per method; `product` is the door and `plan` says which method it takes."""

from nplex.ops.dense import expand
from nplex.ops.machine import Cost, Machine, measure
from nplex.ops.plan import Plan, plan
from nplex.ops.product import METHODS, product

__all__ = ["product", "plan", "Plan", "Cost", "Machine", "measure", "METHODS", "expand"]
