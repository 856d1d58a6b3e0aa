"""Training steps by the kernels on a CUDA device that is not there, beside torch's Linear: a line of JSON each.

The kernels are those for a real device: torch.library.triton_op runs them for fake tensors without starting them.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import fake_cuda
import torch

from nplex import nn
from nplex.nn import LearnedRule
from nplex.ops import fused

TOKENS, KIND = 16384, {"dtype": torch.bfloat16}


def seconds(layer):
    """Forward and backward by the operators that start, and these."""
    with fake_cuda.Watch() as watch:
        y = layer(torch.randn(TOKENS, layer.in_features, requires_grad=True, **KIND))
        y.backward(torch.empty_like(y))
    assert {str(p.grad.dtype) for p in layer.parameters()} == {"torch.bfloat16"}
    return watch.seconds, sorted({"mix", "mix_back", "table", "table_back"} & set(watch.operators))


def main():
    fake_cuda.look_ordinary()
    fused.works = lambda: True
    with fake_cuda.FakeTensorMode(), torch.device("cuda"):
        for width in (1024, 2048, 4096):
            base, _ = seconds(torch.nn.Linear(width, width, **KIND))
            for n, rank in ((4, None), (8, None), (4, 7), (4, 4), (8, 24), (8, 8)):
                for method in ("auto", "dense", "bilinear")[: 3 if rank else 2]:
                    layer = nn.Linear(width, width, rule=LearnedRule(n, rank, **KIND), method=method, **KIND)
                    took, started = seconds(layer)
                    about = {"width": width, "n": n, "rank": rank, "method": method}
                    print(json.dumps(about | {"share": took / base, "kernels": started}), flush=True)


if __name__ == "__main__":
    main()
