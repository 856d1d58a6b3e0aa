"""Tiny finished runs of every task, made once, and own tasks in a module of the user's own."""

import random

from typer.testing import CliRunner

from nplex.cli import app, spread

TINY = ("--set", "width=16", "--set", "layers=1", "--set", "heads=2", "--set", "feed_forward=16")
ARGUMENTS = {
    "agreement": (*TINY, "--rule", "4"),
    "inference": ("--set", "width=16", "--set", "embedding=16", "--rule", "dense"),
    "style": (*TINY, "--set", "vocabulary=300", "--set", "beams=1", "--set", "longest=4", "--rule", "dense"),
    "language": (*TINY, "--set", "length=16", "--rule", "own.json"),
    "word": (*TINY, "--set", "length=16", "--set", "unit=word", "--rule", "dense"),
}
OWN = """
from dataclasses import dataclass

import torch

from nplex.lab.recipes.subject_verb_agreement import Agreement
from nplex.lab.tuning import Measured


def score(rule):
    return 1.0 if rule == "dense" else 0.5 + torch.rand(()).item() / 10


def measured(rule):
    return Measured(2.0, parameters=10, seconds=0.5, low=1.5, high=2.5)


def broken(rule):
    raise RuntimeError("oh no")


number = 4


@dataclass(frozen=True)
class Mine(Agreement):
    more: bool = False


class Half(Agreement.__mro__[2]):
    name = "half"
"""


def call(*arguments, stdin=None):
    return CliRunner().invoke(app, spread([str(each) for each in arguments]), prog_name="nplex", input=stdin)


def ok(result):
    assert result.exit_code == 0, result.output
    return result


def write_data(place):
    """A folder of data for each task, an own algebra, settings as TOML, and own code."""
    rng = random.Random(0)
    for folder in ("agreement", "inference", "style", "language"):
        (place / folder).mkdir()
    for part, count in (("train", 64), ("dev", 8), ("test", 8)):
        nouns = [rng.choice(["key", "keys", "dog", "dogs"]) for _ in range(count)]
        rows = [f"{'VBP' if noun.endswith('s') else 'VBZ'}\tthe {noun} near it\tmade\n" for noun in nouns]
        (place / "agreement" / f"{part}.tsv").write_text("".join(rows))
        labels = [rng.choice(["entailment", "neutral", "contradiction"]) for _ in range(count)]
        (place / "inference" / f"{part}.tsv").write_text("".join(f"{each}\ta dog\tan animal\n" for each in labels))
        words = [" ".join(rng.choice(["thou", "art", "a", "knave"]) for _ in range(4)) for _ in range(count)]
        for side in ("source", "target"):
            (place / "style" / f"{part}.{side}").write_text("\n".join(words) + "\n")
        (place / "language" / f"{part}.txt").write_text("the cat saw the dog\n" * count)
    (place / "own.json").write_text("[[[1, 0], [0, 1]], [[0, 1], [1, 0]]]")
    (place / "own_code_of_tests.py").write_text(OWN)
    return place


def trained(place, task):
    """A finished run; `word` is language by words."""
    name = "language" if task == "word" else task
    arguments = [str(place / each) if each == "own.json" else each for each in ARGUMENTS[task]]
    folder = place / "runs" / task
    ok(call("run", name, "--data", place / name, "--epochs", 1, "--out", folder, *arguments))
    return folder
