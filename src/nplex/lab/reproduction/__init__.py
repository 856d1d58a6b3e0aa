"""The paper's tables: our runs, their differences to dense, and the published numbers beside."""

from nplex.lab.reproduction.page import Reproduced
from nplex.lab.reproduction.part import reproduce

__all__ = ["Reproduced", "reproduce"]
