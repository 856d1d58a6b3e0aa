import json
import os
import signal
import struct
from dataclasses import asdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from nplex.files import read_json, read_tensors, write_json, write_tensors
from nplex.lab.checkpoint import read_training, write_training
from nplex.lab.run_folder import CHECKPOINT
from nplex.lab.train import Interrupted, Loss, Schedule, fit
from nplex.nn import LearnedRule, Linear, share

resource = pytest.importorskip("resource", reason="limits of file sizes are a thing of Unix")

TENSORS = {
    "float32": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
    "bfloat16": torch.arange(6, dtype=torch.bfloat16),
    "int64": torch.tensor([[1, -2], [3, 2**62]]),
    "bool": torch.tensor([True, False]),
    "scalar": torch.tensor(2.5),
    "empty": torch.empty(0, 4),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "parameter": nn.Parameter(torch.ones(2)),
}


def same(a, b):
    """The same names, types and bits."""
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def full_disk():
    """Files may have 10,000 bytes at most, as on a disk that fills up while we write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))

    yield fill
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(value=st.dictionaries(st.text(), JSON))
@settings(max_examples=40)
def test_json_round_trip(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "value.json"
    write_json(path, value)
    assert read_json(path) == value


def test_json_is_written_for_people(tmp_path):
    write_json(tmp_path / "value.json", {"name": "Äß", "list": [1]})
    assert (tmp_path / "value.json").read_text("utf-8") == '{\n "name": "Äß",\n "list": [\n  1\n ]\n}\n'


def test_tensors_round_trip(tmp_path):
    write_tensors(tmp_path / "t.safetensors", TENSORS, {"seed": 3, "nested": {"name": "Ä"}})
    tensors, header = read_tensors(tmp_path / "t.safetensors")
    assert same(tensors, TENSORS)
    assert header == {"seed": 3, "nested": {"name": "Ä"}}


def test_no_tensors_and_no_header_are_files_too(tmp_path):
    write_tensors(tmp_path / "t.safetensors", {})
    assert read_tensors(tmp_path / "t.safetensors") == ({}, {})


@pytest.mark.parametrize("name", ["value.json", "t.safetensors"])
def test_folders_are_made_and_nothing_else_is_left(tmp_path, name):
    path = tmp_path / "a" / "b" / name
    write_json(path, {}) if path.suffix == ".json" else write_tensors(path, TENSORS)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "broken", [{"key": "\ud800"}, {"key": object()}, {"key": {1, 2}}], ids=["text", "object", "set"]
)
def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path, broken):
    path = tmp_path / "value.json"
    write_json(path, {"old": True})
    with pytest.raises((TypeError, UnicodeEncodeError)):
        write_json(path, {"long": "x" * 100_000, **broken})
    assert read_json(path) == {"old": True}


def test_json_cut_off_by_a_full_disk_leaves_the_old_file(tmp_path, full_disk):
    path = tmp_path / "value.json"
    write_json(path, {"old": True})
    full_disk()
    with pytest.raises(OSError, match="File too large"):
        write_json(path, {"long": "x" * 100_000})
    assert read_json(path) == {"old": True}


def test_tensors_cut_off_by_a_full_disk_leave_the_old_file(tmp_path, full_disk):
    """An OSError, which the command line tells in one line; safetensors' own error is none."""
    path = tmp_path / "t.safetensors"
    write_tensors(path, TENSORS)
    full_disk()
    with pytest.raises(OSError, match=r"t\.safetensors"):
        write_tensors(path, {"large": torch.ones(100_000)})
    assert same(read_tensors(path)[0], TENSORS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged, expected JSON"),
        (b'{"a": 1', "is damaged, expected JSON"),
        (b"\xff\xfe", "is damaged, expected JSON"),
        (b"[1, 2]", "is damaged, expected a JSON object, got a list"),
        (b"null", "is damaged, expected a JSON object, got a NoneType"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is damaged, expected JSON"),
        (b'{"a": ' + b"[" * 100_000, "is damaged, expected JSON"),
    ],
    ids=["empty", "truncated", "UTF-16", "list", "null", "endless number", "endless nesting"],
)
def test_damaged_json_is_named(tmp_path, content, message):
    (tmp_path / "value.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"value\.json {message}"):
        read_json(tmp_path / "value.json")


@given(content=st.binary(max_size=100))
def test_any_file_is_json_or_refused_by_name(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("json") / "value.json"
    path.write_bytes(content)
    try:
        assert isinstance(read_json(path), dict)
    except ValueError as error:
        assert "value.json" in str(error)  # noqa: PT017 - most raise, some need not


@pytest.mark.parametrize("read", [read_json, read_tensors])
def test_a_missing_file_is_missing_and_not_damaged(tmp_path, read):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nowhere")


def raw(header, data=b""):
    """A safetensors file from its parts: the length of the header, the header, the numbers."""
    return struct.pack("<Q", len(header)) + header + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04\x95not a tensor",
        raw(b"{}"),
        raw(b'{"__metadata__": {"format": "pt"}}'),
        raw(b'{"__metadata__": {"nplex": "{"}}'),
        raw(b'{"__metadata__": {"nplex": "3"}}'),
        struct.pack("<Q", 2**60) + b"{}",
    ],
    ids=["empty", "pickle", "no metadata", "foreign metadata", "broken header", "number as header", "endless header"],
)
def test_files_that_are_not_ours_are_named(tmp_path, content):
    (tmp_path / "t.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"t\.safetensors (is damaged or|was not written by nplex)"):
        read_tensors(tmp_path / "t.safetensors")


def test_a_file_of_another_program_is_named(tmp_path):
    save_file({"weight": torch.ones(2)}, tmp_path / "t.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"t\.safetensors (is damaged or|was not written by nplex)"):
        read_tensors(tmp_path / "t.safetensors")


def test_a_truncated_file_is_named(tmp_path):
    path = tmp_path / "t.safetensors"
    write_tensors(path, TENSORS, {"seed": 3})
    data = path.read_bytes()
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"t\.safetensors (is damaged or|was not written by nplex)"):
            read_tensors(path)


@given(place=st.integers(0, 400), bit=st.integers(0, 7))
def test_a_flipped_bit_in_the_head_is_read_or_named(tmp_path_factory, place, bit):
    path = tmp_path_factory.mktemp("flipped") / "t.safetensors"
    write_tensors(path, {"weight": torch.ones(2), "bias": torch.ones(1)}, {"seed": 3})
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 1 << bit
    path.write_bytes(data)
    try:
        tensors, header = read_tensors(path)
    except ValueError as error:
        assert "t.safetensors" in str(error)  # noqa: PT017 - most raise, some need not
    else:
        assert len(tensors) == 2
        assert isinstance(header, dict)


def model(width=6):
    """Owned and shared rules, a dropout, a buffer."""
    base = nn.Module()
    rule = share(base, LearnedRule(2))
    base.layers = nn.Sequential(
        Linear(4, width, rule=2), nn.BatchNorm1d(width), nn.Dropout(0.5), Linear(width, width, rule=rule),
        Linear(width, 2, rule=rule),
    )  # fmt: skip
    return base


def optimizer_of(made):
    return torch.optim.AdamW(made.parameters(), lr=0.01, weight_decay=0.1, fused=True)


def train(made, optimizer, steps):
    """Steps on random numbers from torch's own generator; gives their losses."""
    losses = []
    for _ in range(steps):
        loss = made.layers(torch.randn(8, 4)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.fixture
def trained(tmp_path):
    """A checkpoint in mid-training, and what comes after it."""
    torch.manual_seed(1)
    made = model()
    optimizer = optimizer_of(made)
    train(made, optimizer, 3)
    path = tmp_path / "checkpoint.safetensors"
    write_training(path, made, optimizer, {"step": 3})
    return path, train(made, optimizer, 3), made.state_dict(), optimizer.state_dict()


def test_training_goes_on_to_the_same_bits(trained):
    path, losses, weights, _ = trained
    torch.manual_seed(2)
    made = model()
    optimizer = optimizer_of(made)
    assert read_training(path, made, optimizer) == {"step": 3}
    assert train(made, optimizer, 3) == losses
    assert same(made.state_dict(), weights)


def test_training_restores_the_optimizer(trained):
    path, _, _, later = trained
    made = model()
    optimizer = optimizer_of(made)
    read_training(path, made, optimizer)
    state = optimizer.state_dict()["state"]
    assert state.keys() == later["state"].keys()
    assert all(values.keys() == {"step", "exp_avg", "exp_avg_sq"} for values in state.values())
    assert all(values["step"] == 3 for values in state.values())
    train(made, optimizer, 3)
    assert all(same(values, later["state"][index]) for index, values in optimizer.state_dict()["state"].items())


def test_training_restores_torch_s_random_numbers(tmp_path):
    made = model()
    optimizer = optimizer_of(made)
    torch.manual_seed(7)
    torch.rand(11)
    write_training(tmp_path / "c.safetensors", made, optimizer, {})
    expected = torch.rand(5)
    torch.manual_seed(8)
    read_training(tmp_path / "c.safetensors", made, optimizer)
    assert torch.equal(torch.rand(5), expected)


def test_training_before_the_first_step(tmp_path):
    made = model()
    write_training(tmp_path / "c.safetensors", made, optimizer_of(made), {"step": 0})
    other = model()
    assert read_training(tmp_path / "c.safetensors", other, optimizer_of(other)) == {"step": 0}
    assert same(other.state_dict(), made.state_dict())


def test_training_of_a_model_with_tied_weights(tmp_path):
    """safetensors refuses tensors that share memory; a language model's embedding and head do."""

    def tied():
        made = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
        made[1].weight = made[0].weight
        return made, torch.optim.AdamW(made.parameters())

    made, optimizer = tied()
    write_training(tmp_path / "c.safetensors", made, optimizer, {})
    other, optimizer = tied()
    read_training(tmp_path / "c.safetensors", other, optimizer)
    assert torch.equal(other[0].weight, made[0].weight)
    assert other[0].weight is other[1].weight


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: model(width=8), "of shape .* in it, and .* in the model"),
        (lambda: nn.Linear(4, 2), "is missing in it"),
        (lambda: nn.Sequential(model(), nn.Linear(1, 1)), "is missing in it"),
    ],
    ids=["width", "kind", "nesting"],
)
def test_a_checkpoint_of_another_model_is_refused(trained, other, message):
    made = other()
    with pytest.raises(ValueError, match=rf"checkpoint\.safetensors belongs to another model: .*{message}.*--force"):
        read_training(trained[0], made, optimizer_of(made))


@pytest.mark.parametrize("lost", ["random.cpu", "model.rule.table", "optimizer.0.step"])
def test_a_checkpoint_without_a_part_is_refused(trained, lost):
    path = trained[0]
    tensors, state = read_tensors(path)
    del tensors[lost]
    write_tensors(path, tensors, state)
    made = model()
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors (is damaged|belongs to another model)"):
        read_training(path, made, optimizer_of(made))


def test_weights_alone_are_no_checkpoint(tmp_path):
    made = model()
    write_tensors(tmp_path / "model.safetensors", made.state_dict())
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        read_training(tmp_path / "model.safetensors", made, optimizer_of(made))


def test_checkpoints_hold_no_pickle(trained):
    """A length, a JSON header that says where each tensor lies, and numbers up to the last byte."""
    data = trained[0].read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    assert 8 + length + max(ends) == len(data)
    assert json.loads(header["__metadata__"]["nplex"]).keys() == {"step", "checksum", "seal"}


class Task:
    """Three batches an epoch in random order; its user may press Ctrl-C in a step, or while an epoch is scored."""

    main, higher = "weight", True

    def __init__(self, in_step=0, in_scores=0):
        self.steps, self.epochs = in_step, in_scores

    def batches(self, generator):
        return [[index] for index in torch.randperm(3, generator=generator).tolist()]

    def loss(self, made, indices, device):
        self.steps -= 1
        if self.steps == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return Loss(made.layers(torch.eye(4) + indices[0]).square().mean(), 1, 4)

    def scores(self, made, device):
        self.epochs -= 1
        if self.epochs == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return {"weight": made.layers[0].components.sum().item()}


def fitted(folder, task, seed=0, config=None):
    """A model that is trained for two epochs of three steps, and where its training stands."""
    torch.manual_seed(seed)
    made = model()
    return made, fit(made, task, Schedule(epochs=2), seed=seed, folder=folder, config=config or {})


def told(state):
    """What a state says, but for the time."""
    return {key: value for key, value in asdict(state).items() if key != "seconds"}


@pytest.mark.parametrize(
    "stop", [{"in_step": 1 + step} for step in range(6)] + [{"in_scores": 1}, {"in_scores": 2}], ids=str
)
def test_ctrl_c_anywhere_stops_and_goes_on_to_the_same_bits(tmp_path, stop):
    """While the last epoch is scored too: in a comparison the next rule would start."""
    whole, expected = fitted(tmp_path / "whole", Task())
    with pytest.raises(Interrupted, match=CHECKPOINT):
        fitted(tmp_path / "broken", Task(**stop))
    made, state = fitted(tmp_path / "broken", Task())
    assert same(made.state_dict(), whole.state_dict())
    assert told(state) == told(expected)


def test_training_depends_on_the_seed(tmp_path):
    first, second = (fitted(tmp_path / str(seed), Task(), seed)[0] for seed in (0, 1))
    assert not same(first.state_dict(), second.state_dict())


def test_a_finished_training_is_not_repeated(tmp_path):
    made, state = fitted(tmp_path, Task())
    again, read = fitted(tmp_path, Task(in_step=1))
    assert same(made.state_dict(), again.state_dict())
    assert told(read) == told(state)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    fitted(tmp_path, Task(), config={"rate": 1})
    with pytest.raises(
        ValueError, match=r"checkpoint\.safetensors belongs to a run with other settings; take another"
    ):
        fitted(tmp_path, Task(), config={"rate": 2})


def test_ctrl_c_works_as_before_when_training_is_over(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted):
        fitted(tmp_path, Task(in_step=1))
    assert signal.getsignal(signal.SIGINT) is before
