"""Plain checkpoints, of torch.save and accelerate: what they must know, and what is said where they do not fit."""

import io
import json
import warnings

import pytest
import torch
from torch import nn

import nplex

KINDS = {
    "Linear": (lambda: nn.Linear(16, 16), torch.randn(2, 16)), "Conv2d": (lambda: nn.Conv2d(16, 16, 3), None),
    "LSTM": (lambda: nn.LSTM(16, 16), None), "MultiheadAttention": (lambda: nn.MultiheadAttention(16, 2), None),
    "Embedding": (lambda: nn.Embedding(32, 16), None), "GRUCell": (lambda: nn.GRUCell(16, 16), None),
}  # fmt: skip


def make(kind="Linear"):
    torch.manual_seed(0)
    return nn.Sequential(KINDS[kind][0](), nn.LayerNorm(16))


@pytest.mark.parametrize("rule", [2, "2:3", "complex", "low-rank:0.5"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_of_torch_is_loaded_by_its_record(kind, rule):
    if rule == "low-rank:0.5" and kind != "Linear":
        pytest.skip("low rank is for linear layers")
    model, fresh = make(kind), make(kind)
    nplex.convert_(model, rule, everything=True)
    torch.save({"model": model.state_dict(), "nplex": nplex.record(model)}, file := io.BytesIO())
    file.seek(0)
    read = torch.load(file, weights_only=True)
    nplex.convert_like_(fresh, json.loads(json.dumps(read["nplex"])))
    fresh.load_state_dict(read["model"])
    assert all(map(torch.equal, model.state_dict().values(), fresh.state_dict().values()))
    nplex.convert_like_(fresh, read["nplex"])  # alike already


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", [2, "2:3", "complex"])
def test_a_state_of_the_other_kind_ends_with_what_to_do(kind, rule):
    dense, converted = make(kind), make(kind)
    nplex.convert_(converted, rule, everything=True)
    for model, state, told in (
        (dense, converted.state_dict(), "convert it first, by nplex.convert_like_"),
        (converted, dense.state_dict(), 'load it first, then nplex.convert_(model, rule, weights="nearest")'),
    ):
        with pytest.raises(RuntimeError, match="in state_dict") as caught:
            model.load_state_dict(state)
        last = str(caught.value).splitlines()[-1]
        assert last.startswith("nplex: this state is of a")
        assert told in last
        with pytest.warns(UserWarning, match="nplex: this state is of a"):
            assert model.load_state_dict(state, strict=False).missing_keys


def test_nothing_is_said_of_other_differences():
    model = make()
    with pytest.raises(RuntimeError) as caught:
        model.load_state_dict({"0.weight": torch.ones(16, 16)})
    assert "nplex" not in str(caught.value)
    nplex.convert_(model, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.load_state_dict({"0.components": model[0].components}, strict=False)
        model.load_state_dict({}, strict=False)
        model.load_state_dict(model.state_dict())
        make().load_state_dict(make().state_dict(), assign=True)
        nn.Linear(4, 4).load_state_dict({}, strict=False)


@pytest.mark.parametrize("record", [None, {}, [], "text", {"format": 1}, {"format": 99, "rules": [], "layers": {}}])
def test_damaged_records_are_refused(record):
    model = make()
    with pytest.raises(ValueError, match="conversion"):
        nplex.convert_like_(model, record)
    assert type(model[0]) is nn.Linear


def test_a_record_of_another_model_is_refused():
    wide = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32))
    nplex.convert_(wide, 2)
    with pytest.raises(ValueError, match="out_features"):
        nplex.convert_like_(make(), nplex.record(wide))
