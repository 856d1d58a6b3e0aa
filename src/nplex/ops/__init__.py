"""The product, one file per method; `product` is the door and `plan_for` says which method it takes."""

from nplex.ops.calibrate import measure
from nplex.ops.cost import Cost
from nplex.ops.dense import expand
from nplex.ops.dispatch import product
from nplex.ops.machine import Machine
from nplex.ops.methods import METHODS
from nplex.ops.plan import Plan, plan_for

__all__ = ["product", "plan_for", "Plan", "Cost", "Machine", "measure", "METHODS", "expand"]
