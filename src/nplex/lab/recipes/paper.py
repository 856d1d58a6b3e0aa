"""The paper's tables as data, to set our results beside.

Source: Zhang et al., Beyond fully-connected layers with quaternions, ICLR 2021 (arXiv 2102.08597); the parameters of
the agreement table are recalled, not checked.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class PaperTable:
    """A table of single runs, without intervals.

    Attributes:
        title: what it measures.
        score: of its columns.
        columns: their names.
        rows: by the rule as on our command line, dense first: the parameters as the paper gives them, in thousands or
            millions, and the score of each column, in points.
    """

    title: str
    score: str
    columns: tuple[str, ...]
    rows: dict[str, tuple]

    def score_of(self, rule: str, column: str) -> float | None:
        """The published score, if there is one."""
        if rule not in self.rows or column not in self.columns:
            return None
        return self.rows[rule][1 + self.columns.index(column)]

    def parameters_of(self, rule: str) -> str:
        """The published size, or nothing."""
        return self.rows.get(rule, ("",))[0]


INFERENCE = PaperTable(
    "Natural language inference, LSTM 300 on GloVe vectors", "accuracy %",
    ("MNLI matched", "MNLI mismatched", "Quora", "SNLI", "DNLI", "SciTail"),
    {
        "dense": ("721K", 71.82, 71.89, 84.44, 84.18, 85.16, 74.36),
        "quaternion": ("180K", 71.57, 72.19, 84.73, 84.21, 86.45, 75.58),
        "2": ("361K", 71.82, 72.08, 84.39, 84.38, 85.77, 77.47),
        "5": ("146K", 71.80, 71.77, 83.87, 84.58, 86.47, 74.64),
        "10": ("81K", 71.59, 71.59, 84.25, 84.40, 86.21, 77.84),
    },
)  # fmt: skip
TRANSLATION = PaperTable(
    "Machine translation, transformer of 6 + 6 layers, width 512", "BLEU",
    ("En-Vi", "En-Id", "De-En", "Ro-En", "En-Et", "En-Mk", "En-Ro"),
    {
        "dense": ("44M", 28.43, 47.40, 36.68, 34.60, 14.17, 13.96, 22.79),
        "quaternion": ("11M", 28.00, 42.22, 32.83, 30.53, 13.10, 13.67, 18.50),
        "2": ("22M", 29.25, 46.32, 35.52, 33.40, 14.98, 13.60, 21.73),
        "4": ("11M", 29.13, 44.13, 35.53, 32.74, 14.11, 13.01, 21.19),
        "8": ("5.5M", 29.34, 40.81, 34.16, 31.88, 13.08, 12.95, 21.66),
        "16": ("2.9M", 29.04, 33.48, 33.89, 31.53, 12.15, 11.97, 19.63),
    },
)  # fmt: skip
STYLE = PaperTable(
    "Text style transfer, modern English to Shakespeare's, transformer of 6 + 6 layers, width 512", "BLEU",
    ("Shakespeare",),
    {
        "dense": ("44M", 11.65), "2": ("22M", 12.20), "4": ("11M", 12.42), "8": ("5.5M", 11.66),
        "16": ("2.9M", 10.76),
    },
)  # fmt: skip
AGREEMENT = PaperTable(
    "Subject-verb agreement, transformer of 2 layers, width 128", "accuracy %", ("agreement",),
    {
        "dense": ("400K", 94.80), "quaternion": ("100K", 94.70), "2": ("200K", 95.14), "4": ("101K", 95.05),
        "8": ("56K", 95.62),
    },
)  # fmt: skip
