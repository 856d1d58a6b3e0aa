import pytest
import torch
from torch import nn

import nplex
from nplex.nn import LearnedRule, Linear, LowRankLinear, TransformerEncoderLayer, share


def everything(name, module):
    return True


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(40, 16)
        self.net = nn.LSTM(16, 18, 2)
        self.conv = nn.Conv1d(18, 16, 3, groups=2)
        self.body = nn.TransformerEncoderLayer(16, 4, 30)
        self.two = nn.Bilinear(16, 16, 9)


def test_all_kinds_of_layers_and_their_dense_size():
    model = Model()
    dense = nplex.count(model)
    assert (dense.layers, dense.rules, dense.dense) == (0, 0, dense.total)
    report = nplex.convert_(model, 2, where=everything)
    found = nplex.count(model)
    norms = 4 * 16
    assert found.total == report.total_after == sum(p.numel() for p in model.parameters())
    assert found.layers == found.total - norms
    assert found.dense == dense.total
    assert found.rules == 8 * 8  # attention has a rule for its output too
    assert found.bytes == 4 * found.total


def test_a_folded_model_has_the_dense_size():
    model = Model()
    nplex.convert_(model, 3, where=everything)
    before = nplex.count(model)
    nplex.fold_(model)
    assert nplex.count(model).total == before.dense
    assert nplex.count(model).layers == 0


def test_layers_without_a_twin_of_their_own_and_stacks():
    model = nn.Sequential(LowRankLinear(16, 24, rule=2, low_rank=3), TransformerEncoderLayer(16, 4, 20, rule=2))
    found = nplex.count(model)
    torchs = nn.Sequential(nn.Linear(16, 24), nn.TransformerEncoderLayer(16, 4, 20))
    assert found.dense == nplex.count(torchs).total
    assert found.layers == found.total - 4 * 16


def test_a_shared_rule_is_counted_once_and_no_memory_is_taken():
    with torch.device("meta"):
        model = nn.Module()
        rule = share(model, LearnedRule(4))
        model.layers = nn.ModuleList(Linear(20000, 20000, rule=rule) for _ in range(3))
    found = nplex.count(model)
    assert found.rules == 64
    assert found.dense == 3 * (20000**2 + 20000)


def test_a_layer_without_sizes_is_named():
    model = nn.Sequential(nn.Linear(16, 32), nn.LazyLinear(8))
    with pytest.raises(ValueError, match=r"1\.weight is not initialised yet and has no size: run one batch first"):
        nplex.count(model)
    model(torch.zeros(1, 16))
    assert nplex.count(model).total == 16 * 32 + 32 + 32 * 8 + 8
