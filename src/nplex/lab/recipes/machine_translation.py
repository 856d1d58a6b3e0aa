"""Translation: an encoder-decoder transformer on shared subwords.

Paper: the table of translation (BLEU; De-En: Transformer 44M 36.68, n = 4 35.53, n = 8 34.16), on IWSLT. Here
Multi30k German-English, 29,000 captions, and a part of the paper's En-Id task. Sizes: `paper` has 6 + 6 layers of
width 512, `small` 3 + 3 of width 256.
Expected here and how long it takes: results/README.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from nplex.lab.recipes.recipe import PARTS, Reading, no_data
from nplex.lab.recipes.seq2seq import Seq2Seq, read_sides, sizes
from nplex.lab.text import Pairs, find_file, read_lines, read_parallel

MULTI30K = {"dev": "val", "test": "test_2016_flickr"}
PANL = ("ECO", "INT", "SCI", "SPO")


@dataclass(frozen=True)
class Translation(Seq2Seq):
    """Reads the languages' own files: `train.de` and `train.en`, and the same for dev and test."""

    name: ClassVar[str] = "translation"
    sets: ClassVar[tuple[str, ...]] = ("multi30k", "en-id")

    def read(self, folder: Path | None, parts: Sequence[str] = PARTS) -> Reading:
        """The folder, its files, and the pairs of each part."""
        if folder is None:
            raise no_data(self.name, fetched="multi30k")
        if self.set == "en-id":
            return _read_en_id(folder, parts)
        return read_sides(folder, parts, self.source, self.target, MULTI30K if self.set else {})


def translation(rule: str = "4", *, size: str = "small", set: str = "") -> Translation:
    """German to English, or English to Indonesian with the set en-id.

    Raises:
        ValueError: the text names no rule, or one with n above the width; or an unknown size or set.
    """
    source, target = ("en", "id") if set == "en-id" else ("de", "en")
    return Translation(rule=rule, set=set, source=source, target=target, **sizes(size))


def _read_en_id(folder: Path, parts: Sequence[str]) -> Reading:
    """Four domains of PANL-BPPT for training, two years of TED for dev and test, in their archives."""
    names = [f"PANL-BPPT-{part}-EN-ID-{100 if part in ('SCI', 'SPO') else 150}Kw.tgz" for part in PANL]
    names += ["IWSLT17.TED.dev2010.en-id.tgz", "IWSLT17.TED.tst2017plus.en-id.tok.tgz"]
    files = [find_file(folder, name) for name in names]
    train = [pair for file in files[:4] for pair in _loose(file)]
    dev, test = (read_parallel(file, file, members=(".en", ".id"), skip_empty=True) for file in files[4:])
    every = {"train": train, "dev": dev, "test": test}
    return folder, tuple(files), [every[part] for part in parts]


def _loose(file: Path) -> Pairs:
    """Pairs of an archive whose two files differ in length: cut to the shorter, without what is plainly no pair."""
    english, indonesian = (read_lines(file, f"{part}.txt") for part in _members(file))
    pairs = [(a.strip(), b.strip()) for a, b in zip(english, indonesian, strict=False)]
    return [(a, b) for a, b in pairs if a and b and 0.4 < len(a) / len(b) < 2.5]


def _members(file: Path) -> tuple[str, str]:
    """`PANL-BPPT-ECO-EN-ID-150Kw.tgz` holds `PANL-BPPT-ECO-EN-150Kw.txt` and `PANL-BPPT-ECO-ID-150Kw.txt`."""
    stem = file.name.removesuffix(".tgz")
    return stem.replace("-EN-ID-", "-EN-"), stem.replace("-EN-ID-", "-ID-")
