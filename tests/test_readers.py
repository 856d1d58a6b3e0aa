"""Readers name what is wrong by file and line, and take any bytes without falling."""

import gzip
import io
import random
import tarfile
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nplex.lab.text import Columns, Subwords, batches, read_lines, read_parallel, read_rows

COLUMNS = Columns((1, 2), {"yes": "entailment", "no": "contradiction"}, source=3)
NAMED = Columns(("a", "b"), {"yes": "entailment"}, "gold", header=True)
ANY = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def archive(path, **members):
    with tarfile.open(path, "w:gz") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(f"folder/{name}.txt")
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def test_lines_of_a_member_of_an_archive(tmp_path):
    path = archive(tmp_path / "a.tgz", en=b"one\r\ntwo", de="\ufeffeins\n".encode())
    assert read_lines(path, "en.txt") == ["one", "two"]
    assert read_lines(path, "de.txt") == ["eins"]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.tgz"]
    with pytest.raises(FileNotFoundError, match=r"a.tgz has no file called fr.txt"):
        read_lines(path, "fr.txt")


@pytest.mark.parametrize("part", [0.05, 0.5, 0.9])
def test_a_truncated_archive_is_named(tmp_path, part):
    lines = "\n".join(random.Random(0).randbytes(30).hex() for _ in range(1000))
    path = archive(tmp_path / "a.tgz", en=lines.encode())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(ValueError, match=r"a.tgz.* is damaged, expected"):
        read_lines(path, "en.txt")


def test_a_line_of_100_megabytes_is_refused_without_reading_it(tmp_path):
    path = tmp_path / "long.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b"short\n")
        for _ in range(100):
            file.write(b"x" * 1_000_000)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"long.gz, line 2: longer than 1,048,576 bytes"):
        read_lines(path)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        ("yes\ta", COLUMNS, r"pairs.tsv, line 1: expected 3 or 4 columns, got 2"),
        ("yes\ta\tb\nperhaps\ta\tb", COLUMNS, r"pairs.tsv, line 2: label must be yes or no, got 'perhaps'"),
        ("yes\ta\tb\nno\ta\t ", COLUMNS, r"pairs.tsv, line 2: a text is empty; remove the line"),
        ("yes\ta\tb\n\n", COLUMNS, r"pairs.tsv, line 2: expected 3 or 4 columns, got 1"),
        ("", COLUMNS, r"pairs.tsv is empty, expected one example"),
        ("a\tb\tgold\n", NAMED, r"pairs.tsv is empty, expected one example"),
        ("a\tc\tgold\nx\ty\tyes", NAMED, r"pairs.tsv, line 1: expected a header with the column b, got \['a', 'c'"),
    ],
)
def test_a_malformed_file_of_pairs_is_named(tmp_path, content, columns, message):
    path = tmp_path / "pairs.tsv"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_rows(path, columns)


def test_pairs_are_read_by_place_and_by_name(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("yes\tone\ttwo\tnews\nno\tthree\tfour\n")
    assert [(p.label, *p.texts, p.source) for p in read_rows(path, COLUMNS)] == [
        ("entailment", "one", "two", "news"), ("contradiction", "three", "four", "all"),
    ]  # fmt: skip
    path.write_text("gold\tz\tb\ta\nyes\t-\ttwo\tone\n")
    (pair,) = read_rows(path, NAMED)
    assert (*pair.texts, pair.source) == ("one", "two", "all")


def test_aligned_files_may_have_empty_lines_where_asked(tmp_path):
    (tmp_path / "a").write_text("one\n\nthree\n")
    (tmp_path / "b").write_text("eins\nzwei\ndrei\n")
    assert read_parallel(tmp_path / "a", tmp_path / "b", skip_empty=True) == [("one", "eins"), ("three", "drei")]
    with pytest.raises(ValueError, match=r"a, line 2: empty"):
        read_parallel(tmp_path / "a", tmp_path / "b")


@ANY
@given(data=st.binary(max_size=300), packed=st.booleans(), cut=st.integers(0, 30))
def test_any_bytes_are_read_or_refused_by_name(tmp_path_factory, data, packed, cut):
    folder = tmp_path_factory.mktemp("any")
    path, other = folder / ("a.gz" if packed else "a"), folder / "b"
    whole = gzip.compress(data) if packed else data
    path.write_bytes(whole[: len(whole) - cut])
    other.write_text("one\n" * data.count(b"\n"))
    for read in (lambda: read_parallel(path, other), lambda: read_rows(path, COLUMNS), lambda: read_lines(path)):
        try:
            read()
        except ValueError as error:
            if str(folder) not in str(error):
                raise


@ANY
@given(
    text=st.text(st.characters(codec="utf-8", exclude_characters="\ufeff"), max_size=200),
    place=st.integers(0, 400),
    flip=st.integers(1, 255),
)
def test_a_flipped_byte_of_an_archive_is_read_or_named(tmp_path_factory, text, place, flip):
    data = text.encode()
    path = archive(tmp_path_factory.mktemp("flip") / "a.tgz", en=data)
    expected = read_lines(path, "en.txt")
    whole = bytearray(path.read_bytes())
    whole[place % len(whole)] ^= flip
    path.write_bytes(whole)
    try:
        found = read_lines(path, "en.txt")
    except (ValueError, FileNotFoundError) as error:
        if "a.tgz" not in str(error):
            raise
    else:
        assert found == expected  # a flipped bit of the gzip header's time and name changes nothing


@pytest.fixture(scope="module")
def subwords():
    return Subwords.train(["the lower the newer", "the newest of the lowest"] * 3, 300)


@ANY
@given(text=st.text(max_size=40))
def test_subwords_give_back_any_text(subwords, text):
    (numbers,) = subwords.encode([text])
    assert subwords.decode(numbers) == text.strip()
    assert all(4 <= number < len(subwords) for number in numbers)


def test_subwords_know_no_marks_in_text(subwords):
    for text in ("<end> of <pad>", "the lowest"):
        assert subwords.decode(subwords.encode([text])[0]) == text
    assert len(subwords.encode(["the"])[0]) == 1
    with pytest.raises(ValueError, match="a vocabulary needs 260 places or more for all bytes, got 100"):
        Subwords.train(["a"], 100)


@given(lengths=st.lists(st.integers(1, 50), max_size=200), tokens=st.integers(1, 300))
def test_token_batches_hold_each_index_once_and_no_more_than_they_may(lengths, tokens):
    found = batches(lengths, tokens, padded=True)
    assert sorted(index for batch in found for index in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= tokens for batch in found)
