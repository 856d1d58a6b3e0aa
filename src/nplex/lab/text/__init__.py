"""Text for the recipes: lines of files, vocabularies, subwords, batches of like length."""

from nplex.lab.text.aligned import read_aligned
from nplex.lab.text.batches import batches, pad, token_batches
from nplex.lab.text.labelled import Example, find_split, read_labelled
from nplex.lab.text.lines import find_file, read_lines
from nplex.lab.text.pairs import Columns, Pair, read_pairs
from nplex.lab.text.subwords import BEGIN, END, Subwords
from nplex.lab.text.vocabulary import PAD, QUERY, SPECIAL, UNKNOWN, Vocabulary

__all__ = [
    "find_file", "read_lines", "find_split", "Example", "read_labelled", "read_aligned", "Columns", "Pair",
    "read_pairs", "PAD", "UNKNOWN", "QUERY", "SPECIAL", "Vocabulary", "BEGIN", "END", "Subwords",
    "pad", "batches", "token_batches",
]  # fmt: skip
