"""Run by test_export.py in a fresh process: the tests' checks of shape annotations cannot be traced.

Arguments such as `export:bert` name a step and a model. The dense model goes first: where torch cannot do the step to
it, its reason is printed, and the others are left out. Prints a line for each model that gave equal outputs.
"""

import sys
import tempfile
from pathlib import Path

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
from model_cases import MODELS, converted, dense, logits

import nplex

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def forms(name):
    """The model as it was, converted in two ways, and folded again."""
    yield "dense", dense(name)
    yield "own rules", converted(name)[0]
    yield "shared, rank 7", converted(name, "shared, rank 7")[0]
    model, _ = converted(name)
    nplex.fold_(model)
    yield "folded", model


def longer(inputs):
    """A larger batch."""
    return {name: torch.cat([x, x.flip(0)[:2]]) for name, x in inputs.items()}


def export(model, inputs):
    """torch.export, for every batch size, written to a file and read again."""
    sizes = {name: {0: torch.export.Dim("batch")} for name in inputs}
    program = torch.export.export(model, (), inputs, dynamic_shapes=sizes)
    assert set(dict(program.named_parameters())) <= set(dict(model.named_parameters(remove_duplicate=False)))
    with tempfile.TemporaryDirectory() as folder:
        torch.export.save(program, f"{folder}/model.pt2")
        program = torch.export.load(f"{folder}/model.pt2").module()
    with torch.no_grad():
        torch.testing.assert_close(logits(program, longer(inputs)), logits(model, longer(inputs)), **CLOSE)


def compile(model, inputs):
    """torch.compile in one graph: outputs and gradients."""
    torch.compiler.reset()
    torch.manual_seed(0)

    def gradients(run):
        found = logits(run, inputs)
        loss = F.cross_entropy(found.flatten(0, -2), torch.zeros(found[..., 0].numel(), dtype=torch.long))
        return found, torch.autograd.grad(loss, [*model.parameters()])

    expected, ours = gradients(model)
    found, theirs = gradients(torch.compile(model, fullgraph=True, backend="aot_eager"))
    torch.testing.assert_close(found, expected, **CLOSE)
    torch.testing.assert_close(theirs, ours, **CLOSE)


def onnx(model, inputs):
    """ONNX, run by onnxruntime, for every batch size."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    sizes = {name: {0: "batch"} for name in inputs}
    program = torch.onnx.export(model, (), kwargs=inputs, dynamo=True, dynamic_shapes=sizes, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        program.save(f"{folder}/model.onnx")
        session = onnxruntime.InferenceSession(f"{folder}/model.onnx", providers=["CPUExecutionProvider"])
    taken = {node.name for node in session.get_inputs()}
    given = {name: x.numpy() for name, x in longer(inputs).items() if name in taken}
    with torch.no_grad():
        expected = logits(model, longer(inputs))
    torch.testing.assert_close(torch.from_numpy(session.run(None, given)[0]), expected, **CLOSE)


def main():
    torch.set_num_threads(1)
    for job in sys.argv[1:]:
        step, _, name = job.partition(":")
        for form, model in forms(name):
            try:
                globals()[step](model.eval(), MODELS[name].inputs())
            except Exception as error:
                if form != "dense":
                    raise
                print(step, name, "torch cannot:", " ".join(str(error).split()))
                break
            print(step, name, form, flush=True)


if __name__ == "__main__":
    main()
