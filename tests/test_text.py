import gzip
import itertools
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nplex.lab.text import PAD, QUERY, SPECIAL, UNKNOWN, Columns, Row, Vocabulary, batches, find_file, pad, read_rows

LABELS = ("VBZ", "VBP")
COLUMNS = Columns(texts=(1,), labels={label: label for label in LABELS}, source=2)
GOOD = "VBZ\tthe key\tplain\nVBP\tthe keys to the door\tattractor\n"
EXAMPLES = [
    Row("VBZ", ("the key",), "plain"),
    Row("VBP", ("the keys to the door",), "attractor"),
]


def write(folder, content, name="train.tsv"):
    path = folder / name
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["train.tsv", "train.tsv.gz"])
def test_reads_plain_and_compressed_lines(tmp_path, name):
    assert read_rows(write(tmp_path, GOOD, name), COLUMNS) == EXAMPLES


def test_a_line_without_a_source_has_the_source_all(tmp_path):
    read = read_rows(write(tmp_path, "VBP\tkeys\nVBZ\tkey\tplain\n"), COLUMNS)
    assert [example.source for example in read] == ["all", "plain"]


@pytest.mark.parametrize("content", [GOOD.rstrip("\n"), GOOD.replace("\n", "\r\n")], ids=["no last newline", "CRLF"])
def test_line_ends_of_other_systems(tmp_path, content):
    assert read_rows(write(tmp_path, content), COLUMNS) == EXAMPLES


@pytest.mark.parametrize("mark", ["\u2028", "\x85", "\x0b", "\x0c", "\x1d"], ids=ascii)
def test_only_newlines_end_a_line(tmp_path, mark):
    """str.splitlines knows ten other marks, which do occur inside real text; no editor counts lines by them."""
    read = read_rows(write(tmp_path, f"VBZ\tthe{mark} key\tplain\nVBP\tkeys\n"), COLUMNS)
    assert [example.label for example in read] == ["VBZ", "VBP"]


@pytest.mark.parametrize(
    ("third", "message"),
    [
        ("VBZ", "expected 2 or 3 columns, got 1"),
        ("", "expected 2 or 3 columns, got 1"),
        ("VBZ\ta\tb\tc", "expected 2 or 3 columns, got 4"),
        ("NN\tthe key\tplain", "label must be VBZ or VBP, got 'NN'"),
        ("VBZ\t  \tplain", "a text is empty; remove the line"),
        (b"VBZ\tcaf\xe9\tplain", "expected UTF-8, got byte 0xe9"),
    ],
)
@pytest.mark.parametrize("name", ["dev.tsv", "dev.tsv.gz"])
def test_a_wrong_line_is_named(tmp_path, name, third, message):
    third = third.encode() if isinstance(third, str) else third
    path = write(tmp_path, GOOD.encode() + third + b"\n" + GOOD.encode(), name)
    with pytest.raises(ValueError, match=f"{name}, line 3: {message}"):
        read_rows(path, COLUMNS)


@pytest.mark.parametrize("name", ["dev.tsv", "dev.tsv.gz"])
def test_an_empty_file_is_named(tmp_path, name):
    with pytest.raises(ValueError, match=rf"{name} is empty, expected one example a line"):
        read_rows(write(tmp_path, "", name), COLUMNS)


def test_a_damaged_gzip_file_is_named(tmp_path):
    data = bytearray(gzip.compress(GOOD.encode() * 50))
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "train.tsv.gz").write_bytes(data)
    with pytest.raises(ValueError, match=r"train\.tsv\.gz is damaged, expected gzip"):
        read_rows(tmp_path / "train.tsv.gz", COLUMNS)


def test_a_gzip_file_cut_off_anywhere_is_named(tmp_path):
    data = gzip.compress(GOOD.encode() * 3)
    for length in range(1, len(data)):
        (tmp_path / "train.tsv.gz").write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"train\.tsv\.gz is damaged, expected gzip"):
            read_rows(tmp_path / "train.tsv.gz", COLUMNS)


def test_plain_text_called_gz_is_named(tmp_path):
    (tmp_path / "train.tsv.gz").write_text(GOOD)
    with pytest.raises(ValueError, match=r"train\.tsv\.gz is damaged, expected gzip"):
        read_rows(tmp_path / "train.tsv.gz", COLUMNS)


LINES = st.lists(
    st.tuples(st.sampled_from([*LABELS, "NN", ""]), st.sampled_from(["the key", "", "é\t", "\x00"])).map("\t".join)
).map(lambda lines: "\n".join(lines).encode())


@given(
    plain=st.binary(max_size=200) | LINES,
    packed=st.booleans(),
    cut=st.integers(0, 30),
    flip=st.integers(0, 150),
    ending=st.sampled_from([".tsv", ".tsv.gz"]),
)
@settings(max_examples=400)
def test_any_file_is_read_or_refused_by_name(plain, packed, cut, flip, ending):
    """Never anything but a list of examples or a ValueError that names the file."""
    data = bytearray(gzip.compress(plain, mtime=0) if packed else plain)
    del data[len(data) - cut // 3 :]
    if flip < len(data):
        data[flip] ^= 1 << flip % 8
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"fuzzed{ending}"
        path.write_bytes(data)
        try:
            read = read_rows(path, COLUMNS)
        except ValueError as error:
            assert f"fuzzed{ending}" in str(error)  # noqa: PT017 - most files raise, some need not
        else:
            assert read
            assert all(example.label in LABELS and example.texts for example in read)


@pytest.mark.parametrize("ending", [".tsv", ".tsv.gz"])
def test_find_file(tmp_path, ending):
    path = write(tmp_path, GOOD, f"dev{ending}")
    assert find_file(tmp_path, "dev.tsv") == path


def test_find_file_says_what_a_folder_holds(tmp_path):
    write(tmp_path, GOOD, "train.tsv")
    (tmp_path / "dev.tsv").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"has no dev\.tsv or dev\.tsv\.gz; a data folder holds train, dev and"
    ):
        find_file(tmp_path, "dev.tsv")


def test_vocabulary_is_ordered_by_count_and_then_by_alphabet():
    lines = [("b", "a", "c", "c"), ("c", "b", "a", "once")]
    assert Vocabulary.of(lines, most=10).words == (*SPECIAL, "c", "a", "b")


def test_vocabulary_keeps_the_most_common_words():
    assert Vocabulary.of([("a", "a", "a", "b", "b", "c", "c")], most=2).words == (*SPECIAL, "a", "b")


def test_vocabulary_has_places_for_padding_unknown_and_query():
    vocabulary = Vocabulary.of([["a", "a"]], most=10)
    assert len(vocabulary) == 4
    assert [vocabulary.words[i] for i in (PAD, UNKNOWN, QUERY)] == ["<pad>", "<unknown>", "<query>"]


def test_encode_gives_numbers_and_unknown():
    vocabulary = Vocabulary.of([["a", "a", "b", "b"]], most=10)
    encoded = vocabulary.encode([["b", "new", "a"], ["a"]])
    assert [line.tolist() for line in encoded] == [[4, UNKNOWN, 3], [3]]


def test_encode_gives_whole_numbers_for_no_words_too():
    (line,) = Vocabulary(SPECIAL).encode([()])
    assert (line.dtype, line.shape) == (torch.int64, (0,))


def test_pad_fills_up_on_the_right():
    padded = pad([torch.tensor([5, 6, 7]), torch.tensor([8]), torch.tensor([9, 9])])
    assert padded.tolist() == [[5, 6, 7], [8, PAD, PAD], [9, 9, PAD]]


LENGTHS = st.lists(st.integers(1, 30), max_size=400)
SEEDS = st.none() | st.integers(0, 2**31)


def generator(seed):
    return None if seed is None else torch.Generator().manual_seed(seed)


@given(lengths=LENGTHS, size=st.integers(1, 9), seed=SEEDS)
def test_batches_hold_every_index_once(lengths, size, seed):
    made = batches(lengths, size, generator(seed))
    assert sorted(index for batch in made for index in batch) == list(range(len(lengths)))


@given(lengths=LENGTHS, size=st.integers(1, 9), seed=SEEDS)
def test_batches_are_full_but_for_the_last_of_each_stretch(lengths, size, seed):
    sizes = [len(batch) for batch in batches(lengths, size, generator(seed))]
    assert all(0 < held <= size for held in sizes)
    assert len(sizes) == -(-len(lengths) // size)


@given(lengths=LENGTHS, size=st.integers(8, 64), seed=SEEDS)
def test_batches_are_of_like_length(lengths, size, seed):
    """Within a stretch (here there is but one) no two batches overlap in length."""
    made = batches(lengths, size, generator(seed))
    ranges = sorted((min(lengths[i] for i in batch), max(lengths[i] for i in batch)) for batch in made)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(ranges))


@given(lengths=LENGTHS, size=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_batches_depend_on_the_generator_alone(lengths, size, seed):
    torch.rand(1)
    assert batches(lengths, size, generator(seed)) == batches(lengths, size, generator(seed))


def test_batches_differ_between_seeds_and_epochs():
    lengths = [3, 4, 5, 6] * 30
    same = torch.Generator().manual_seed(0)
    orders = [batches(lengths, 4, generator(1)), batches(lengths, 4, same), batches(lengths, 4, same)]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_batches_without_a_generator_go_from_short_to_long():
    assert batches([5, 1, 3, 2, 4], 2) == [[1, 3], [2, 4], [0]]
