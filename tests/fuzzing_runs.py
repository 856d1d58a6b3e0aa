"""Damages run folders in many ways and looks what `nplex run --resume` and `nplex report` make of them.

`python tests/fuzzing_runs.py --folders 450` prints what happened. A damaged folder is refused in one line, or gives
what it gave before the damage. Raw tracebacks, hangs, changed meanings and touched files of others are faults.
"""

import argparse
import copy
import json
import random
import re
import shutil
import struct
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from damages import VALUES, Hung, become_a_folder, changed, flip, overwrite, remove, replace_whole, truncate, watched
from typer.testing import CliRunner

from nplex.cli import app
from nplex.files import read_json, read_tensors
from nplex.lab import experiment
from nplex.lab.checked import CHECKSUM, write_sealed
from nplex.lab.checkpoint import read_sealed_tensors, write_sealed_tensors
from nplex.lab.recipes import tasks
from nplex.lab.recipes.language_modelling import Language, language
from nplex.lab.train import Interrupted

SECONDS = 60  # a folder that takes longer hangs
MINE = b"not of nplex"
BUILD, MODELS = Language.build, {}


@dataclass(frozen=True)
class Original:
    """A folder before any damage, the verb that reads it, and what it gives."""

    name: str
    folder: Path
    verb: str
    recipe: object
    gives: object = None


def originals(place):
    """Finished and stopped runs of a tiny recipe, and a finished comparison."""
    for part in ("train", "dev", "test"):
        (place / f"{part}.txt").write_text("the cat saw the dog\n" * 12)
    recipe = language("2")
    schedule = replace(recipe.schedule, epochs=3, batch_size=8, checkpoint_every=1)
    recipe = replace(recipe, width=8, feed_forward=8, heads=1, layers=1, length=16, schedule=schedule)
    data, made = recipe.load(place), []

    def stop(label, state, steps):
        if state.epoch == 2 and state.batch == 1:
            raise Interrupted

    for keep in ("last", "best", "average"):
        kept = replace(recipe, schedule=replace(schedule, keep=keep, average=2))
        folder = place / f"stopped-{keep}"
        with pytest.raises(Interrupted):
            experiment.run(kept, data, 0, folder, stop)
        made.append(Original(f"stopped, {keep}", folder, "run", kept))
    experiment.run(recipe, data, 0, place / "finished")
    experiment.compare(recipe, ["dense", "2"], [0], data, place / "compared")
    made += [
        Original("finished", place / "finished", "run", recipe),
        Original("finished", place / "finished", "report", recipe),
        Original("compared", place / "compared", "report", recipe),
    ]
    return [replace(each, gives=used(each, each.folder, place)[1]) for each in made]


def built(recipe, data):
    """The first values of a recipe's model, made once: they are the same each time."""
    if recipe.rule not in MODELS:
        MODELS[recipe.rule] = BUILD(recipe, data)
    torch.manual_seed(0)  # what is drawn next is the same too
    return copy.deepcopy(MODELS[recipe.rule])


def used(original, folder, data):
    """What a verb says of a copy of a folder, and what it gives: scores, history and weights, or a page's data."""
    copied = folder.with_name(f"{folder.name}-used")
    shutil.rmtree(copied, ignore_errors=True)
    shutil.copytree(folder, copied)
    page = copied.with_suffix(".html")
    if original.verb == "run":
        arguments = ["run", "language", "--rule", "2", "--data", str(data), "--out", str(copied), "--resume"]
    else:
        arguments = ["report", str(copied), "--out", str(page), "--no-identify"]
    with pytest.MonkeyPatch.context() as patch, watched(SECONDS):
        patch.setattr(tasks, "recipe_of", lambda task, rule, size, set: original.recipe)
        done = CliRunner().invoke(app, arguments)
    gives = None
    if done.exit_code == 0 and original.verb == "run":
        result = read_json(copied / "result.json")
        gives = [result[key] for key in ("recipe", "seed", "scores", "answers", "history", "layer_parameters")]
        if original.name != "finished":  # then the weights are not read
            gives.append({n: t.tolist() for n, t in read_tensors(copied / "model.safetensors")[0].items()})
    elif done.exit_code == 0:
        text = re.search(r'<script id="data" type="application/json">(.*?)</script>', page.read_text("utf-8"))[1]
        gives = json.loads(text)
    return done, json.loads(json.dumps(gives))


def change_values(rng, path):
    """Another value in the JSON of a file: with the checksum that was, or with the right one."""
    if path.suffix == ".json":
        value, right = read_json(path), rng.random() < 0.5
        seals = value.pop(CHECKSUM, None) if right else None
        value = changed(rng, value)
        write_sealed(path, value) if seals is not None else path.write_text(json.dumps(value))
    elif path.suffix == ".jsonl":
        lines = path.read_text().splitlines()
        at = rng.randrange(len(lines))
        lines[at] = json.dumps(changed(rng, json.loads(lines[at])))
        path.write_text("\n".join(lines) + "\n")
    elif rng.random() < 0.7:
        tensors, header = read_sealed_tensors(path)
        write_sealed_tensors(path, tensors, changed(rng, header) if header else {"x": rng.choice(VALUES)})
    else:
        change_tensors(rng, path)


def change_tensors(rng, path):
    """Tensors of other names, shapes or types, with the right checksum; or an entry of the file's own header."""
    if rng.random() < 0.5:
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        text = json.dumps(changed(rng, json.loads(data[8 : 8 + length]))).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
        return
    tensors, header = read_sealed_tensors(path)
    name = rng.choice(sorted(tensors))
    tensor = tensors.pop(name).clone()
    ways = (
        {}, {name: tensor.flatten()[:1]}, {name: tensor.double()}, {name: tensor[None]}, {name: tensor.int()},
        {f"{name}x": tensor}, {name.replace(".", ".9", 1): tensor},
    )  # fmt: skip
    write_sealed_tensors(path, tensors | rng.choice(ways), header)


def add_of_others(rng, path):
    """Files and folders that nplex did not write."""
    place = rng.choice([path.parent / "thesis.tex", path.parent / "mine" / "result.json", path.parent / "a.part"])
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(MINE)


DAMAGES = (
    truncate, truncate, flip, flip, overwrite, replace_whole, remove, become_a_folder, add_of_others,
    *[change_values] * 6,
)  # fmt: skip


def lost_only(found, wanted):
    """Whether a page has all that it had, but for curves and rules whose file is gone or cut off."""
    if found["lines"] != wanted["lines"] or len(found["curves"]) != len(wanted["curves"]):
        return False
    for one, other in zip(found["curves"], wanted["curves"], strict=True):
        count = len(one["steps"])
        cut = other | {"steps": other["steps"][:count], "losses": other["losses"][:count]}
        if one != cut:
            return False
    return all(rule in wanted["rules"] for rule in found["rules"])


def verdict(original, folder, data, path, edited):
    """What became of a damaged folder, in a word or two."""
    strangers = [each for each in folder.rglob("*") if each.is_file() and each.read_bytes() == MINE]
    try:
        done, gives = used(original, folder, data)
    except Hung:
        return "hang"
    copied = folder.with_name(f"{folder.name}-used")
    if any((copied / each.relative_to(folder)).read_bytes() != MINE for each in strangers):
        return "touched a file of others"
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        return f"raw traceback: {type(done.exception).__name__}: {done.exception}"
    if done.exit_code == 0:
        same = gives == original.gives or (original.verb == "report" and lost_only(gives, original.gives))
        return "the same" if same else "accepted as edited" if edited else "changed meaning"
    lines = done.stderr.splitlines()
    told = [line for line in lines if line.startswith("nplex: ")]
    if done.exit_code != 2 or len(told) != 1 or str(copied.name) not in told[0]:
        return f"refused badly: {done.exit_code}, {done.stderr[-500:]}"
    return "refused"


GOOD = ("the same", "refused", "accepted as edited")


def fuzz(folders, seed, place):
    """Damages so many folders; gives how often which verdict was found, and the faults as text."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Language, "build", built)
        return _fuzz(folders, random.Random(seed), place)


def _fuzz(folders, rng, place):
    found, faults = Counter(), []
    every = originals(place)
    for number in range(folders):
        original = rng.choice(every)
        folder = Path(shutil.copytree(original.folder, place / "damaged" / str(number)))
        files = sorted(path for path in folder.rglob("*") if path.is_file() and "tfevents" not in path.name)
        path = rng.choice([each for each in files if each.suffix in (".json", ".jsonl", ".safetensors")])
        damage = rng.choice(DAMAGES)
        damage(rng, path)
        edited = damage is change_values  # its checksum may be right: somebody meant it
        said = verdict(original, folder, place, path, edited)
        found[said.split(":")[0]] += 1
        if said not in GOOD:
            faults.append(f"{number}: {original.name}, {original.verb}, {path.name}, {damage.__name__}: {said}")
        for each in place.glob(f"damaged/{number}*"):
            shutil.rmtree(each) if each.is_dir() else each.unlink()
    return found, faults


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folders", type=int, default=450)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        counts, wrong = fuzz(given.folders, given.seed, Path(made))
    print(dict(counts))
    print("\n".join(wrong))
    raise SystemExit(bool(wrong))
