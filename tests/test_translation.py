import random
import tarfile
from dataclasses import replace

import pytest
import torch

from nplex.lab import experiment
from nplex.lab.recipes.machine_translation import translation
from nplex.lab.recipes.style_transfer import style
from nplex.lab.text import longest
from nplex.lab.train import Schedule

WORDS = {"rot": "red", "blau": "blue", "hund": "dog", "katze": "cat", "haus": "house", "und": "and"}


def write_sides(folder, parts, sides=("de", "en"), ending="", seed=0):
    rng = random.Random(seed)
    for part, count in parts.items():
        lines = [[rng.choice([*WORDS]) for _ in range(rng.randint(2, 5))] for _ in range(count)]
        texts = [" ".join(line) for line in lines], [" ".join(WORDS[word] for word in line) for line in lines]
        for side, text in zip(sides, texts, strict=True):
            (folder / f"{part}.{side}{ending}").write_text("\n".join(text) + "\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("text")
    write_sides(place, {"train": 400, "dev": 20, "test": 30})
    return place


def tiny(make=translation, rule="2", **changes):
    schedule = Schedule(
        epochs=20, batch_tokens=256, learning_rate=5e-3, label_smoothing=0.1, keep="average", average=2
    )
    return replace(
        make(rule), width=32, feed_forward=64, heads=2, layers=1, vocabulary=300, dropout=0.0, schedule=schedule,
        **changes,
    )  # fmt: skip


def test_a_run_learns_words(folder, tmp_path):
    recipe = tiny(rule="2:3")
    data = recipe.load(folder)
    result = experiment.run(recipe, data, 0, tmp_path / "run")
    assert result["kind"] == "bleu"
    assert result["scores"]["bleu"] > 50 > recipe.baseline(data)[1]["bleu"]
    assert "nrefs:1" in result["notes"]["sacreBLEU"]
    assert len(result["answers"]) == result["examples"] == 30
    assert set(" ".join(result["answers"]).split()) <= set(WORDS.values())
    assert result["history"][0]["nats"] > result["history"][-1]["nats"]
    kept = sorted(path.name for path in (tmp_path / "run").glob("*.safetensors"))
    assert kept == ["model.safetensors", "rules.safetensors"]


def test_style_reads_the_files_of_the_paper(tmp_path):
    write_sides(tmp_path, {"train": 40, "valid": 5, "test": 5}, ("modern", "original"), ".nltktok")
    data = style("4", set="shakespeare").load(tmp_path)
    assert [len(part.pairs) for part in (data.train, data.dev, data.test)] == [40, 5, 5]
    assert [path.name for path in data.files][:2] == ["train.modern.nltktok", "train.original.nltktok"]


def test_en_id_reads_archives_without_unpacking_them(tmp_path):
    def archive(name, **members):
        with tarfile.open(tmp_path / name, "w:gz") as file:
            for member, text in members.items():
                path = tmp_path / "member"
                path.write_bytes(text.encode())
                file.add(path, member.replace("__", "-") + (".txt" if "PANL" in name else name[-len(name) :][:0]))

    for part, size in (("ECO", 150), ("INT", 150), ("SCI", 100), ("SPO", 100)):
        english = {f"PANL__BPPT__{part}__EN__{size}Kw": "one house\r\na long line of text\r\n"}
        archive(
            f"PANL-BPPT-{part}-EN-ID-{size}Kw.tgz", **english,
            **{f"PANL__BPPT__{part}__ID__{size}Kw": "satu rumah\r\nx\r\nloose\r\n"},
        )  # fmt: skip
    for name in ("IWSLT17.TED.dev2010.en-id", "IWSLT17.TED.tst2017plus.en-id.tok"):
        archive(f"{name}.tgz", **{f"{name}.en": "a house\n\n", f"{name}.id": "rumah\n\n"})
    data = translation("4", set="en-id").load(tmp_path)
    assert data.train.pairs == [("one house", "satu rumah")] * 4  # the second is no pair by its length
    assert data.dev.pairs == data.test.pairs == [("a house", "rumah")]


def test_what_does_not_match_is_told(folder, tmp_path):
    write_sides(tmp_path, {"train": 4, "dev": 2, "test": 2})
    (tmp_path / "dev.en").write_text("one line\n")
    with pytest.raises(ValueError, match=r"dev.de has 2 lines and .*dev.en has 1: expected as many"):
        tiny().load(tmp_path)
    (tmp_path / "dev.en").write_text("one line\n\n")
    with pytest.raises(ValueError, match=r"dev.en, line 2: empty; remove it from both files"):
        tiny().load(tmp_path)
    (tmp_path / "test.en").unlink()
    with pytest.raises(
        FileNotFoundError,
        match=r"has no test.en or test.en.gz; a data folder",
    ):
        tiny().load(tmp_path)
    with pytest.raises(
        FileNotFoundError,
        match="translation has no built-in data: nplex fetch multi30k gets some",
    ):
        translation("4").load(None)
    with pytest.raises(FileNotFoundError, match="--set shakespeare needs its folder"):
        style("4", set="shakespeare").load(None)


def test_the_built_in_verses_are_there():
    _, files, parts = style("4").read(None)
    assert [len(part) for part in parts] == [27_646, 2_513, 936]
    assert len(files) == 6
    assert parts[0][0] == (
        "Thus the heavens and the earth were finished, and all the host of them.",
        "The heavens, the earth, and all their vast array were finished.",
    )


def test_long_pairs_are_not_learned_from_and_long_sources_are_cut(folder):
    data = tiny(longest=6).load(folder)
    assert 0 < len(data.train.pairs) < 400
    assert max(longest(data.train.sides)) <= 6
    assert len(data.test.pairs) == 30
    assert max(len(source) for source in data.test.sides[0]) <= 7


def test_batches_hold_as_many_tokens_as_the_schedule_says(folder):
    task = tiny().task(tiny().load(folder))
    lengths = longest(task.data.train.sides)
    found = task.batches(torch.Generator().manual_seed(0))
    assert sorted(index for batch in found for index in batch) == list(range(400))
    assert max(len(batch) * max(lengths[i] for i in batch) for batch in found) <= 256
