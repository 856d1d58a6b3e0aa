"""Which runs repeat a table of the paper, on which data, and what differs."""

import hashlib
from dataclasses import dataclass, replace
from typing import NamedTuple

from nplex.lab.recipes import paper
from nplex.lab.recipes.paper import PaperTable
from nplex.lab.recipes.recipe import Recipe
from nplex.lab.recipes.tasks import recipe_of


class Provenance(NamedTuple):
    """The data that was read: how many examples each part has, and the SHA-256 of each file."""

    sizes: dict[str, int]
    files: dict[str, str]

    def __str__(self) -> str:
        counts = " and ".join(f"{self.sizes[part]:,} for {part}" for part in ("train", "test"))
        return f"{counts} ({', '.join(f'{name} {digest[:8]}' for name, digest in self.files.items())})"


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
        data: what differs from the paper's, where the files are those that results/ was made of.
        digest: of those files; "" where there are none yet.
        always: what else differs at any size.
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
    digest: str = ""
    always: str = ""
    smaller: str = ""
    epochs: int = 0

    def recipe(self, rule: str, size: str) -> Recipe:
        """The recipe of one row."""
        found = recipe_of(self.task, rule, size=size, set=self.set)
        return replace(found, schedule=replace(found.schedule, epochs=self.epochs)) if self.epochs else found

    def name_of(self, size: str) -> str:
        """Of its files and its run folder at a size."""
        return self.name if size == "small" else f"{self.name}-{size}"

    def differs(self, size: str, read: Provenance) -> str:
        """What differs from the paper, in data and size, where some files were read."""
        digest = hashlib.sha256("".join(read.files.values()).encode()).hexdigest()
        known = bool(self.digest) and digest.startswith(self.digest)
        data = self.data if known else "not the files that nplex's own results were made of"
        others = [text for text in (self.always, self.smaller * (size == "small")) if text]
        return f"{'; '.join([f'{read}: {data}', *others])}."

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
        "harder; the paper has 9 % of 1.58 million for training and 90 % for test", "22a77dbb52bf", epochs=3,
    ),
    Part(
        "inference-snli", paper.INFERENCE, "SNLI", "inference", "snli", "inference", FIVE, SEEDS, 1.0,
        "trained on counterfactually revised pairs instead of SNLI's 549,367, in which the hypothesis alone tells "
        "nothing; dev and test are SNLI's own", "8d8840e16ec1", WORDS, NARROWER,
    ),
    Part(
        "inference-mnli", paper.INFERENCE, "MNLI matched", "inference", "mnli", "inference", FIVE, SEEDS, 4.0,
        "a part of MultiNLI's 392,702 pairs for training, five genres", "8b2f5d4faf51", WORDS, NARROWER,
    ),
    Part(
        "inference-sick", paper.INFERENCE, "", "inference", "sick", "inference", FIVE, SEEDS, 0.6,
        "SICK, which is not in the paper's table", "4cb6c51c4b18", WORDS, NARROWER,
    ),
    Part(
        "translation-multi30k", paper.TRANSLATION, "De-En", "translation", "multi30k", "translation/multi30k",
        WRITTEN, (0, 1), 65.0, "captions of Multi30k instead of IWSLT'14's 160,000 pairs of talks",
        "6673001823d8", smaller=LAYERS.format(256),
    ),
    Part(
        "translation-en-id", paper.TRANSLATION, "En-Id", "translation", "en-id", "translation/en-id", WRITTEN,
        (0,), 0.0, "PANL-BPPT's news for training and TED's for test; the paper has 109,335 pairs of TED more",
        smaller=LAYERS.format(256),
    ),
    Part(
        "style-shakespeare", paper.STYLE, "Shakespeare", "style", "shakespeare", "style", WRITTEN, SEEDS, 22.0,
        "the paper's own files", "23dcc72e042f", smaller=LAYERS.format(128),
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
