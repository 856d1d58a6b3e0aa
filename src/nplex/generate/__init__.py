"""Writing with a trained model, word by word, with a cache of keys and values."""

from nplex.generate.beam import beam
from nplex.generate.greedy import greedy
from nplex.generate.writer import State, Writer

__all__ = ["Writer", "State", "greedy", "beam"]
