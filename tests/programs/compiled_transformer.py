"""Run by test_transformer.py in a fresh process, without the annotations' checks: torch.compile cannot trace them."""

import itertools
import sys

import torch
from torch import nn

from nplex.nn import (
    LearnedRule,
    MultiheadAttention,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
    share,
)

E, H, FF, LENGTH = 12, 2, 17, 6


class Weights(nn.Module):
    """Attention whose weights are used too, with padding."""

    def __init__(self):
        super().__init__()
        self.attention = MultiheadAttention(E, H, add_bias_kv=True, batch_first=True, rule=LearnedRule(4, 7))

    def forward(self, x):
        hidden = x[..., 0] > 1
        y, weights = self.attention(x, x, x, key_padding_mask=hidden)
        return y * weights.sum(-1, keepdim=True)


class Causal(nn.Module):
    """A stack with one shared rule and the causal mask, without a hint."""

    def __init__(self):
        super().__init__()
        rule = share(self, LearnedRule(5))
        layer = TransformerEncoderLayer(E, H, FF, 0.0, batch_first=True, rule=rule)
        self.encoder = TransformerEncoder(layer, 2, nn.LayerNorm(E))

    def forward(self, x):
        return self.encoder(x, nn.Transformer.generate_square_subsequent_mask(LENGTH))


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = TransformerDecoderLayer(E, H, FF, 0.0, batch_first=True, norm_first=True, rule=3)

    def forward(self, x):
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)
        return self.layer(x, x.flip(1), tgt_mask=mask, tgt_is_causal=True)


def models():
    options = {"dropout": 0.0, "batch_first": True}
    yield "encoder layer, full", TransformerEncoderLayer(E, H, FF, rule=5, **options)
    yield "encoder layer, rank 7", TransformerEncoderLayer(E, H, FF, rule=LearnedRule(4, 7), **options)
    yield "weights", Weights()
    yield "stack, shared, causal", Causal()
    yield "decoder layer", Decoder()
    yield "encoder layer, eval", TransformerEncoderLayer(E, H, FF, rule=4, **options).eval()


def same(model, x, run):
    eager, found = model(x), run(x)
    torch.testing.assert_close(found, eager)
    ours, theirs = (torch.autograd.grad(y.square().sum(), [x, *model.parameters()]) for y in (found, eager))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for name, model in itertools.islice(models(), int(sys.argv[3]) if len(sys.argv) > 3 else None):
        x = torch.randn(3, LENGTH, E, requires_grad=True)
        if sys.argv[1] == "compile":
            same(model, x, torch.compile(model, fullgraph=True, backend=sys.argv[2]))
        else:
            batch = torch.export.Dim("batch")
            program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},)).module()
            more = torch.randn(7, LENGTH, E)
            torch.testing.assert_close(program(more), model(more), rtol=1e-4, atol=1e-5)
        print("ok", name, flush=True)


if __name__ == "__main__":
    main()
