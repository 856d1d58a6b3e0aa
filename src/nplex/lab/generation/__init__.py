"""Writing with a trained model, word by word, with a cache of keys and values."""

from nplex.lab.generation.beam import beam
from nplex.lab.generation.greedy import greedy
from nplex.lab.generation.writer import State, Writer

__all__ = ["Writer", "State", "greedy", "beam"]
