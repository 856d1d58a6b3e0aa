"""The script that makes the style set, on hand-written OSIS; no network."""

import gzip
import importlib.util
from pathlib import Path

import pytest

from nplex.lab.data import builtin
from nplex.lab.text import read_parallel

SCRIPT = Path(__file__).parent.parent / "scripts" / "make_bible.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_bible", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ('In the <w lemma="strong:H7225">beginning</w>, <w>God</w><note>a <reference>1</reference></note><w>made</w>',
         "In the beginning, God made"),
        ("God<note>a note</note>, and", "God, and"),
        ('<title type="psalm">A <w>Psalm</w> of David.</title> <lg/> <l level="1"/>Many<l/>rise', "Many rise"),
        (r"the \nd LORD had", "the LORD had"),
        ("<speaker>Lover</speaker> I am dark &amp; ¶ lovely", "I am dark & lovely"),
    ],
)  # fmt: skip
def test_a_verse_loses_notes_titles_and_tags(script, text, cleaned):
    assert script.clean(text) == cleaned


def test_headings_and_empty_verses_are_left_out(script):
    lines = (
        "$$$[ Module Heading ]\nx\n$$$I Kings 0:0\nx\n$$$I Kings 1:0\nx\n$$$I Kings 1:1\nThe\nking\n$$$I Kings 1:2\n"
    )
    assert script.verses(lines.split("\n")) == {("I Kings", 1, 1): "The king"}


def test_chapters_go_whole_to_a_part_and_only_shared_verses_are_kept(script):
    kjv = {("A", chapter, verse): f"old {chapter}" for chapter in range(1, 41) for verse in (1, 2)}
    web = {reference: "new" for reference in kjv if reference != ("A", 2, 2)}
    made = script.build(kjv, web)
    assert {part: len(pairs) for part, pairs in made.items()} == {"train": 71, "valid": 4, "test": 4}
    assert {old for old, _ in made["test"]} == {"old 20", "old 40"}


def test_written_files_are_the_same_bytes(script, tmp_path):
    for name in ("a", "b"):
        script.write(tmp_path / name, ["é"])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert gzip.decompress((tmp_path / "a").read_bytes()) == "é\n".encode()


def test_another_package_is_refused(script, tmp_path):
    (tmp_path / "x.deb").write_bytes(b"x")
    with pytest.raises(SystemExit, match="is not sword-text-web: expected SHA-256"):
        script.read_package(tmp_path / "x.deb", "web", tmp_path)


@pytest.mark.parametrize(("part", "verses"), [("train", 27_646), ("valid", 2_513), ("test", 936)])
def test_the_files_in_the_package_match_line_by_line(part, verses):
    folder = builtin("bible")
    pairs = read_parallel(folder / f"{part}.kjv.gz", folder / f"{part}.web.gz")
    assert len(pairs) == verses
    assert not any(mark in line for pair in pairs for line in pair for mark in ("<", ">", "¶", "\\", "  "))
