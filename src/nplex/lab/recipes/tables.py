"""Which runs repeat a table of the paper, on which data, and what differs."""

from dataclasses import dataclass, replace

from nplex.lab.recipes import paper
from nplex.lab.recipes.paper import PaperTable
from nplex.lab.recipes.recipe import Recipe
from nplex.lab.recipes.tasks import recipe_of


@dataclass(frozen=True)
class Part:
    """One data set of a table: the rules and seeds that are run on it.

    Attributes:
        name: as on the command line.
        table: of the paper.
        column: of that table; "" where the paper has none for this set.
        task: as on the command line.
        set: as on the command line.
        folder: below --data.
        rules: dense first.
        seeds: of each rule.
        minutes: of one run of the small size on one thread, about; 0 where none was made yet.
        data: what differs from the paper's.
        smaller: what else differs at the small size; "" where that is the paper's.
        epochs: other passes than the recipe's own; 0 for its own.
    """

    name: str
    table: PaperTable
    column: str
    task: str
    set: str
    folder: str
    rules: tuple[str, ...]
    seeds: tuple[int, ...]
    minutes: float
    data: str
    smaller: str = ""
    epochs: int = 0

    def recipe(self, rule: str, size: str) -> Recipe:
        """The recipe of one row."""
        found = recipe_of(self.task, rule, size=size, set=self.set)
        return replace(found, schedule=replace(found.schedule, epochs=self.epochs)) if self.epochs else found

    def name_of(self, size: str) -> str:
        """Of its files and its run folder at a size."""
        return self.name if size == "small" else f"{self.name}-{size}"

    def differs(self, size: str) -> str:
        """What differs from the paper, in data and size."""
        return f"{self.data}; {self.smaller}." if size == "small" and self.smaller else f"{self.data}."

    def published(self, rule: str) -> float | None:
        """The paper's score of a row, if it has one."""
        return self.table.score_of(rule, self.column)


WORDS = "words learned from nothing instead of GloVe vectors of 840 billion words"
NARROWER = "states 160 wide instead of 300"
LAYERS = "3 + 3 layers of width {} instead of 6 + 6 of 512, 4,000 subwords instead of 8,000"
FIVE, WRITTEN = ("dense", "quaternion", "2", "5", "10"), ("dense", "4", "8")
SEEDS = (0, 1, 2)

PARTS = (
    Part(
        "agreement-linzen", paper.AGREEMENT, "agreement", "agreement", "", "agreement",
        ("dense", "quaternion", "2", "4", "8"), SEEDS, 3.0,
        "another cut of the same release, richer in sentences with attractors than the paper's split, which makes it "
        "harder: 62,791 for training and 12,771 for test, where the paper has 9 % and 90 % of 1.58 million",
        epochs=3,
    ),
    Part(
        "inference-snli", paper.INFERENCE, "SNLI", "inference", "snli", "inference", FIVE, SEEDS, 1.0,
        "trained on 8,330 counterfactually revised pairs instead of SNLI's 549,367, in which the hypothesis alone "
        f"tells nothing; dev and test are SNLI's own; {WORDS}", NARROWER,
    ),
    Part(
        "inference-mnli", paper.INFERENCE, "MNLI matched", "inference", "mnli", "inference", FIVE, SEEDS, 4.0,
        f"20,000 of MultiNLI's 392,702 pairs for training, 2,500 for test, five genres; {WORDS}", NARROWER,
    ),
    Part(
        "inference-sick", paper.INFERENCE, "", "inference", "sick", "inference", FIVE, SEEDS, 0.6,
        f"SICK is not in the paper's table; 4,500 pairs for training; {WORDS}", NARROWER,
    ),
    Part(
        "translation-multi30k", paper.TRANSLATION, "De-En", "translation", "multi30k", "translation/multi30k",
        WRITTEN, (0, 1), 65.0, "captions of Multi30k, 29,000 pairs, instead of IWSLT'14's 160,000 of talks",
        LAYERS.format(256),
    ),
    Part(
        "translation-en-id", paper.TRANSLATION, "En-Id", "translation", "en-id", "translation/en-id", WRITTEN,
        (0,), 0.0, "24,021 pairs of PANL-BPPT's news for training and TED's for test; the paper has 109,335 of TED "
        "more", LAYERS.format(256),
    ),
    Part(
        "style-shakespeare", paper.STYLE, "Shakespeare", "style", "shakespeare", "style", WRITTEN, SEEDS, 22.0,
        "the paper's own files", LAYERS.format(128),
    ),
)  # fmt: skip


def parts_of(name: str) -> tuple[Part, ...]:
    """The parts of a table by its name, as `inference`, or one by its own, as `inference-snli`.

    Raises:
        ValueError: there is neither; says what there is.
    """
    found = tuple(part for part in PARTS if name in (part.task, part.name))
    if not found:
        tables = list(dict.fromkeys(part.task for part in PARTS))
        raise ValueError(
            f"unknown table {name!r}; choose from {', '.join(tables)}, "
            f"or of their parts {', '.join(part.name for part in PARTS)}"
        )
    return found
