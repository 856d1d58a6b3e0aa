"""What "auto" and the dense method would take on a GPU, from the operators that they really start; JSON lines."""

import itertools
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import fake_cuda
import torch

from nplex import nn
from nplex.nn import LearnedRule
from nplex.ops.dispatch import best

WIDTHS, TOKENS = (256, 1024, 2048, 4096, 8192), (1, 16, 256, 2048, 16384)
RULES = ((4, None), (4, 7), (4, 4), (8, 24), (8, 8))
KINDS = ((torch.bfloat16, True), (torch.float32, True), (torch.bfloat16, False))


def seconds(layer, tokens, dtype, training):
    """Forward, and backward in training, by the counted operators."""
    with fake_cuda.Watch() as watch, torch.set_grad_enabled(training):
        y = layer(torch.randn(tokens, layer.in_features, dtype=dtype, requires_grad=training))
        if training:
            y.backward(torch.empty_like(y))
    return watch.seconds


def main():
    fake_cuda.look_ordinary()
    with fake_cuda.FakeTensorMode(), torch.device("cuda"):
        for width, tokens, (n, rank), (dtype, training) in itertools.product(WIDTHS, TOKENS, RULES, KINDS):
            layer = nn.Linear(width, width, rule=LearnedRule(n, rank, dtype=dtype), dtype=dtype)
            x = torch.empty(tokens, width, dtype=dtype, requires_grad=training)
            with torch.set_grad_enabled(training):
                sizes = (n, width // n, width // n, 1)
                method = best(tokens, sizes, layer.rule(), (layer.components, x), False)
            about = {
                "width": width,
                "tokens": tokens,
                "n": n,
                "rank": rank,
                "dtype": str(dtype),
                "training": training,
            }
            share = 1.0
            if method != "dense":
                taken = seconds(layer, tokens, dtype, training)
                layer.method = "dense"
                share = taken / seconds(layer, tokens, dtype, training)
            print(json.dumps(about | {"method": method, "share": share}), flush=True)


if __name__ == "__main__":
    main()
