"""Run by test_models.py in a fresh process: loads what it saved into newly built models, and compares every bit."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from model_cases import MODELS, logits

import nplex


def same(model, expected, inputs):
    model.eval()
    state = model.state_dict()
    assert list(state) == list(expected["state"])
    for name, tensor in expected["state"].items():
        assert torch.equal(state[name], tensor), name
    with torch.no_grad():
        found = logits(model, inputs)
    assert torch.equal(found, expected["logits"]), (found - expected["logits"]).abs().max()


def main():
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    for folder in sorted(Path(sys.argv[1]).iterdir()):
        case = MODELS[folder.name.partition(",")[0]]
        expected, inputs = torch.load(folder / "expected"), case.inputs()
        same(nplex.load(folder / "model.nplex", case.make()), expected, inputs)
        print("load", folder.name, flush=True)
        if case.auto:
            model = getattr(transformers, case.auto).from_pretrained(folder / "pretrained")
            same(model, expected, inputs)
            print("from_pretrained", folder.name, flush=True)


if __name__ == "__main__":
    main()
