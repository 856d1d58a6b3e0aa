"""The paper's tables: our runs, their differences to dense, and the published numbers beside."""

from nplex.reproduce.page import Reproduced
from nplex.reproduce.part import reproduce

__all__ = ["Reproduced", "reproduce"]
