"""Run by test_export.py in a fresh process: bytes of ONNX files of a wide encoder, dense and converted."""

import os
import tempfile

import torch
from torch import nn

import nplex
from nplex.nn import LearnedRule


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(512, 4, 1024, 0.0, batch_first=True)
        self.net = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x):
        return self.net(x)


for convert in (
    lambda model: None,
    lambda model: nplex.convert_(model, 4),
    lambda model: nplex.convert_(model, LearnedRule(4, 7), shared=True),
):
    model = Wide().eval()
    convert(model)
    with tempfile.TemporaryDirectory() as folder:
        program = torch.onnx.export(model, (torch.randn(2, 5, 512),), dynamo=True, verbose=False)
        program.save(f"{folder}/model.onnx")
        print(os.path.getsize(f"{folder}/model.onnx"))
