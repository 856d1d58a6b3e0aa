"""Run by test_export.py where torchao is installed: folded models are quantized by it."""

import sys
from pathlib import Path

import torch
from torchao.quantization import Int8WeightOnlyConfig, quantize_

sys.path.insert(0, str(Path(__file__).parents[1]))
from model_cases import MODELS, converted, logits

import nplex

for name in sys.argv[1:]:
    inputs, (model, _) = MODELS[name].inputs(), converted(name)
    with torch.no_grad():
        expected = logits(model.eval(), inputs)
        nplex.fold_(model)
        linear = [key for key, module in model.named_modules() if type(module) is torch.nn.Linear]
        quantize_(model, Int8WeightOnlyConfig())
        found = logits(model, inputs)
    quantized = [key for key in linear if type(model.get_submodule(key).weight) is not torch.nn.Parameter]
    assert quantized == linear
    assert len(linear) > 4
    error = float((found - expected).norm() / expected.norm())
    assert 1e-4 < error < 0.05, error
    print("ok", name)
