"""Text for the recipes: lines of files, vocabularies, subwords, batches of like length."""

from nplex.lab.text.batching import batches, longest, moved, pad, pad_sides
from nplex.lab.text.lines import find_file, read_lines
from nplex.lab.text.readers import Columns, Pairs, Row, read_parallel, read_rows
from nplex.lab.text.subwords import BEGIN, END, Subwords
from nplex.lab.text.vocabulary import PAD, QUERY, SPECIAL, UNKNOWN, Vocabulary

__all__ = [
    "find_file", "read_lines", "Columns", "Row", "Pairs", "read_rows", "read_parallel",
    "PAD", "UNKNOWN", "QUERY", "SPECIAL", "Vocabulary", "BEGIN", "END", "Subwords",
    "pad", "pad_sides", "moved", "longest", "batches",
]  # fmt: skip
