"""Damages models on disk in many ways and looks what nplex.load, preview, count, convert and fold make of them.

`python tests/fuzzing.py --files 12000` prints what happened. A damaged model is refused in one line, or means what it
meant: the same layers with the same numbers, or with those that the damage wrote. Raw tracebacks, hangs, changed
meanings and touched files of others are faults.
"""

import argparse
import json
import random
import re
import shutil
import struct
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from damages import Hung, become_a_folder, changed, flip, overwrite, remove, replace_whole, truncate, watched
from rich.progress import track
from safetensors.torch import load, load_file, save_file
from torch import nn
from typer.main import get_command
from typer.testing import CliRunner

import nplex
from nplex import algebra
from nplex.cli import app
from nplex.convert.record import record
from nplex.files import read_model

COMMAND = get_command(app)
SECONDS = 20  # a model that takes longer hangs
MINE = b"not of nplex"
OWN = algebra.Algebra.from_table([[[1, 0], [0, 1]], [[0, -3], [1, 0.5]]], "mine", ["1", "u"])
STEPS = (
    "reading ",
    "converting",
    "writing ",
    "left out, ",
    "not copied: ",
)  # what may stand on stderr beside a refusal
FOLDERS = ("bert", "bert-4", "llama", "llama-2")
GOOD = ("refused", "the same", "other numbers", "as edited", "left out, and said so")


@dataclass(frozen=True)
class Original:
    """A model on disk before any damage, what makes its dense model, and what each verb gives for it."""

    path: Path
    make: Callable[[], nn.Module] | None
    gives: dict[str, object]


class Net(nn.Module):
    """Layers that a file alone opens, tied weights, a tied module, a buffer."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(30, 16, padding_idx=0)
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16, bias=False)
        self.again, self.norm = self.up, nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 30, bias=False)
        self.head.weight = self.embed.weight


def other_kinds():
    """Layers of kinds that a file alone does not open."""
    return nn.ModuleDict({
        "conv": nn.Conv1d(16, 16, 3),
        "attention": nn.MultiheadAttention(16, 2),
        "rnn": nn.GRU(16, 8),
    })


def originals(place, folders):
    """Files dense and converted, with rules of all kinds; folders of transformers of these names."""
    torch.manual_seed(0)
    made = []

    def file(name, make, *conversions):
        model = make()
        for rule, options in conversions:
            nplex.convert_(model, rule, **options)
        if name == "kinds":
            model["low"] = nplex.nn.LowRankLinear(16, 16, rule=2, low_rank=2)
        nplex.save(model, place / f"{name}.safetensors")
        made.append(Original(place / f"{name}.safetensors", make, {}))

    file("dense", Net)
    file("learned", Net, (4, {}))
    file("shared", Net, (nplex.nn.LearnedRule(4, rank=7), {"shared": True}))
    file("algebras", Net, (OWN, {"where": nplex.only("down")}), (algebra.quaternion, {}))
    file("kinds", other_kinds, (2, {"where": lambda name, module: name != "low"}))
    if folders:
        made += [Original(place / name, None, {}) for name in folders]
        write_folders(place, folders)
    return made


def write_folders(place, names):
    """Models of transformers, dense and converted, whole and in shards."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    sizes = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "max_position_embeddings": 16}
    for name in names:
        if name.startswith("bert"):
            model, size = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes)), "1MB"
        else:
            config = transformers.LlamaConfig(**sizes, tie_word_embeddings=True)
            model, size = transformers.LlamaForCausalLM(config), "6KB"
        if "-" in name:
            rule = algebra.complex_ if name == "llama-2" else 4
            nplex.convert_(model, rule, where=nplex.all_but("classifier", "lm_head"), shared=name == "bert-4")
        model.save_pretrained(place / name, max_shard_size=size)


def gives(original, verb, place):
    """What a verb gives for a model that is not damaged."""
    if verb not in original.gives:
        outcome, original.gives[verb] = used(original, verb, original.path, place / "first")
        assert outcome == "accepted", (original.path, verb, outcome)
    return original.gives[verb]


def verbs_of(original):
    if original.path.stem == "kinds":
        return ["load", "load", "show"]
    converted = original.path.stem not in ("dense", "bert", "llama")
    whole = converted and original.path.name != "llama-2"  # rules are read of one file
    loads = ["load"] * 2 * (original.make is not None)
    return [*loads, "preview", "count", "convert", *["fold"] * converted, *["show"] * whole]


def used(original, verb, path, out):
    """Whether a verb accepts a model, in words, and what it gives."""
    with warnings.catch_warnings(), watched(SECONDS):
        warnings.simplefilter("error", RuntimeWarning)
        return loaded(original, path) if verb == "load" else called(verb, path, out)


def loaded(original, path):
    model = original.make()
    before = dict(model.named_modules())
    try:
        nplex.load(path, model)
    except (ValueError, OSError) as error:
        if str(path) not in str(error):
            return f"refused badly: {error}", None
        return ("refused" if dict(model.named_modules()) == before else "refused badly: the model is another"), None
    except Exception as error:
        return f"raw traceback: {type(error).__name__}: {error}", None
    tied = sorted(name for name, _ in model.named_parameters(remove_duplicate=False))
    own = sorted(name for name, _ in model.named_parameters())
    return "accepted", {"numbers": model.state_dict(), "plain": [record(model), tied, own]}


def invoke(arguments):
    """A verb in this process; all verbs are made once, not at each call."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.testing._get_command", lambda app: COMMAND)
        return CliRunner().invoke(app, [str(argument) for argument in arguments])


def called(verb, path, out, *more):
    arguments = {
        "preview": ["preview", path, "--rule", "2", "--everything", "--json"], "count": ["count", path, "--json"],
        "convert": ["convert", path, out, "--rule", "2", "--everything", *more], "fold": ["fold", path, out, *more],
        "show": ["rule", "show", path],
    }  # fmt: skip
    done = invoke(arguments[verb])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        return f"raw traceback: {type(done.exception).__name__}: {done.exception}", None
    lines = [line for line in done.stderr.splitlines() if not line.startswith(STEPS)]
    if done.exit_code:
        one = (
            len(lines) == 1
            and lines[0].startswith("nplex: ")
            and (out if more else path).name in lines[0]
            and done.exit_code == 2
        )
        left = [each.name for each in out.parent.glob(f"{out.name}*")] if not more else []
        return (
            "refused" if one and not left else f"refused badly: {done.exit_code}, {left}, {done.stderr[-600:]}",
            None,
        )
    gives: dict[str, object] = {"said": "left out, " in done.stderr}
    if verb == "show":
        return "accepted", {"plain": done.stdout}
    if verb in ("preview", "count"):
        return "accepted", gives | {"plain": json.loads(done.stdout)}
    read = load_file(out / "model.safetensors") if out.is_dir() else read_model(out)[0]
    numbers = {name: tensor.clone() for name, tensor in read.items()}
    shutil.rmtree(out) if out.is_dir() else out.unlink()
    return "accepted", gives | {"numbers": numbers}


def split(path):
    """A safetensors file's own header as JSON, and the bytes of its tensors."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(path, header, data):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def change_values(rng, path):
    """Another value in a JSON file; or in what nplex, or safetensors, wrote into a header."""
    if path.suffix == ".json":
        path.write_text(json.dumps(changed(rng, json.loads(path.read_text()))))
        return
    header, data = split(path)
    inner = header.get("__metadata__", {}).get("nplex")
    if inner is not None and rng.random() < 0.7:
        header["__metadata__"]["nplex"] = json.dumps(changed(rng, json.loads(inner)))
    else:
        header = changed(rng, header)
    join(path, header, data)


def change_tensors(rng, path):
    """Tensors missing, over, of other names, shapes, types or numbers."""
    if path.suffix == ".json":
        return change_values(rng, path)
    header, _ = split(path)
    tensors = load_file(path)
    name, other = rng.choice(sorted(tensors)), rng.choice(sorted(tensors))
    tensor = tensors.pop(name).clone()
    ways = (
        {}, {name: tensor.flatten()[:1]}, {name: tensor.double()}, {name: tensor[None]}, {name: tensor.int()},
        {name: tensor.bool()}, {name: tensor.to(torch.complex64)}, {name: tensor.flatten()}, {name: tensor * 2},
        {name: tensor.mT.contiguous() if tensor.ndim > 1 else tensor.flatten()[:0]}, {name: tensor * float("nan")},
        {f"{name}x": tensor}, {name.replace(".", ".9", 1): tensor}, {name: tensor, f"{name}.9": tensor.clone()},
        {name: tensor, re.sub(r"\d", "7", name) + "7": tensor.clone()}, {other: tensor},
        {name: tensor.to(torch.float8_e4m3fn)}, {name: tensor.bfloat16()},
    )  # fmt: skip
    save_file(tensors | rng.choice(ways), path, header.get("__metadata__"))
    return None


def overlap(rng, path):
    """Two tensors at one place, or the place of one cut or moved."""
    if path.suffix == ".json":
        return flip(rng, path)
    header, data = split(path)
    one, two = (rng.choice([name for name in header if name != "__metadata__"]) for _ in range(2))
    begin, end = header[one]["data_offsets"]
    shift = rng.choice([-4, 4, 2**40, -(2**40)])
    places = (header[two]["data_offsets"], [begin + shift, end + shift], [end, begin], [begin, end + shift])
    header[one]["data_offsets"] = rng.choice(places)
    join(path, header, data)
    return None


def copy_shard(rng, path):
    """A shard under the name of another, or under a new one."""
    other = rng.choice(sorted(path.parent.glob("*.safetensors")) or [path])
    to = rng.choice([other, path.with_name("model.safetensors"), path.with_name("more.safetensors")])
    to.write_bytes(path.read_bytes())


DAMAGES = (
    truncate, truncate, flip, flip, flip, overwrite, replace_whole, remove, become_a_folder, overlap, copy_shard,
    *[change_values] * 6, *[change_tensors] * 3,
)  # fmt: skip
EDITS = (change_values, change_tensors)  # whoever does that may mean it


def same(found, wanted):
    """Whether two states hold the same names and bits."""
    return found.keys() == wanted.keys() and all(
        tensor.dtype == wanted[name].dtype
        and tensor.shape == wanted[name].shape
        and bits(tensor) == bits(wanted[name])
        for name, tensor in found.items()
    )


def bits(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8).tolist()


def owners(numbers):
    """The layers that hold numbers, dense or converted."""
    return {re.sub(r"^(model|bert)\.|\.?(weight|components|rule|rule\.\w+)$", "", name) for name in numbers}


def equal(one, other):
    return one.dtype == other.dtype and torch.equal(one.nan_to_num(), other.nan_to_num())


def passed_on(ours, theirs, written):
    """Whether each tensor is as it was, or as the edited file has it: a file alone knows linear layers only."""
    return all(
        (name in ours and name in theirs and equal(ours[name], theirs[name]))
        or (name in ours and name in written and equal(ours[name], written[name]))
        or (name not in ours and name not in written)
        for name in ours.keys() | theirs.keys()
    )


def meaning(found, wanted, other_numbers, edited, written):
    """What became of an accepted model, in a word or two."""
    if "numbers" in wanted and not same(found["numbers"], wanted["numbers"]):
        ours, theirs = found["numbers"], wanted["numbers"]
        alike = ours.keys() == theirs.keys() and all(
            tensor.shape == theirs[name].shape for name, tensor in ours.items()
        )
        if alike and other_numbers and found.get("plain") == wanted.get("plain"):
            return "other numbers"
        if not edited:
            return "changed meaning"
        cast = any(tensor.dtype != theirs[name].dtype for name, tensor in ours.items() if name in theirs)
        whole = owners(ours) == owners(theirs)
        kept = all(torch.equal(ours[name], theirs[name]) for name in ours.keys() & theirs.keys())
        if (whole and (kept or cast or other_numbers)) or passed_on(ours, theirs, written):
            return "as edited"
        return "left out, and said so" if found.get("said") and kept else "changed meaning"
    if isinstance(found.get("plain"), str) and other_numbers:  # the text of rule show is its numbers
        return "other numbers"
    if found.get("plain") != wanted.get("plain"):
        if not edited:
            return "changed meaning"
        keys = ("total", "total_before")
        other = "said" in found and any(found["plain"].get(key) != wanted["plain"].get(key) for key in keys)
        if other and not other_numbers:  # of a file alone, bare tensors may have any shape and type
            return "left out, and said so" if found["said"] else "changed meaning"
        return "as edited"
    return "the same"


def hits_numbers(path, before):
    """Whether the damage of a safetensors file is, also, behind its header."""
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", before[:8])
    return len(data) == len(before) and data[8 + length :] != before[8 + length :]


def one(rng, original, place):
    """The verdict on a model with one damage, and what it was."""
    copied = place / f"damaged{original.path.suffix}"
    folder = original.path.is_dir()
    shutil.copytree(original.path, copied) if folder else shutil.copy(original.path, copied)
    files = [each for each in sorted(copied.glob("*")) if each.suffix in (".json", ".safetensors")]
    path = rng.choice(files) if folder else copied
    if folder and rng.random() < 0.3:
        path = copied / "config.json"
    damage, verb, before = rng.choice(DAMAGES), rng.choice(verbs_of(original)), path.read_bytes()
    damage(rng, path)
    what = f"{original.path.name}, {verb}, {path.name}, {damage.__name__}"
    try:
        said, found = used(original, verb, copied, place / f"out{original.path.suffix}")
    except Hung:
        said = "hang"
    if said == "accepted":
        numbers = hits_numbers(path, before) or damage is change_tensors
        written = load_file(copied) if damage is change_tensors and not folder else {}
        edited = damage in EDITS or path.name == "config.json"
        said = meaning(found, gives(original, verb, place), numbers, edited, written)
        if said == "changed meaning" and written.keys() - load(before).keys():
            said = "as edited"  # a layer that holds a tensor more is not a plain one
    return said, what


def forced(rng, original, place):
    """The verdict on a written model that something happened to, and is written again with --force."""
    out = place / f"out{original.path.suffix}"
    assert called("convert", original.path, out)[0] == "accepted"
    invoke(["convert", original.path, out, "--rule", "2", "--everything"])
    strange = out / rng.choice(["thesis.tex", "config.jso", "a.part"]) if out.is_dir() else out
    path = rng.choice(sorted(out.glob("*.json"))) if out.is_dir() else out
    if out.is_dir() and rng.random() < 0.7:
        path = out / "nplex.json"
    damage = rng.choice([flip, truncate, replace_whole, change_values])
    damage(rng, path)
    if out.is_dir():
        strange.write_bytes(MINE)
    with watched(SECONDS):
        said, _ = called("convert", original.path, out, "--force")
    if out.is_dir() and not (strange.exists() and strange.read_bytes() == MINE):
        said = "touched a file of others"
    return (
        "the same" if said == "accepted" else said,
        f"{original.path.name}, --force, {path.name}, {damage.__name__}",
    )


def fuzz(count, seed, place, *, folders=FOLDERS, show=False):
    """Damages so many models; gives how often which verdict was found, and the faults as text."""
    found, faults = Counter(), []
    every = originals(place, folders)
    for number in track(range(count), "fuzzing", disable=not show):
        rng, scratch = random.Random(f"{seed}-{number}"), place / "scratch"
        scratch.mkdir()
        original = rng.choice(every)
        again = rng.random() < 0.04 and "convert" in verbs_of(original)
        said, what = (forced if again else one)(rng, original, scratch)
        found[said.split(":")[0]] += 1
        if said not in GOOD:
            faults.append(f"{seed}-{number}: {what}: {said}")
        shutil.rmtree(scratch)
    return found, faults


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        counts, wrong = fuzz(given.files, given.seed, Path(made), show=True)
    print("\n".join(wrong))
    print(f"{given.files} damaged models: " + ", ".join(f"{name} {count}" for name, count in counts.most_common()))
    raise SystemExit(bool(wrong))
