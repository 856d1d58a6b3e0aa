"""Whole models: converted, trained, saved, folded. What is exported is tested by test_export.py."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_cases import MODELS, VARIANTS, converted, dense, in_double, logits
from torch.nn import functional as F

import nplex
from nplex.convert.twins import is_layer
from nplex.nn import missing_rules

pytest.importorskip("transformers", reason="needs nplex[hf]")
PROGRAM = Path(__file__).parent / "programs" / "models_loaded.py"
CASES = [(name, variant) for name in MODELS for variant in ("own rules", "shared, rank 7")] + [("bert", "nearest")]
EVERY = pytest.mark.parametrize(("name", "variant"), CASES, ids=map(", ".join, CASES))


def ours(model):
    return [name for name, module in model.named_modules() if type(module).__module__.startswith("nplex.")]


def numbers(module):
    return sum(p.numel() for p in module.parameters())


def trained(name, model, steps, **options):
    """The losses of some steps of AdamW on one batch."""
    inputs = MODELS[name].inputs()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    targets, losses = None, []
    for _ in range(steps):
        with torch.autocast("cpu", **options) if options else torch.enable_grad():
            found = logits(model, inputs).flatten(0, -2)
            targets = torch.arange(len(found)) * 7 % found.shape[-1] if targets is None else targets
            loss = F.cross_entropy(found, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@EVERY
def test_the_preview_says_what_changes(name, variant):
    plain, options = dense(name), VARIANTS[variant]()
    before = {key: value.clone() for key, value in plain.state_dict().items()}
    weights = options.pop("weights", None)
    said = nplex.preview(plain, where=MODELS[name].where, **options)
    assert {key: torch.equal(value, before[key]) for key, value in plain.state_dict().items()} == dict.fromkeys(
        before, True
    )
    assert ours(plain) == []
    model, report = converted(name, variant)
    assert weights or str(replace(report, done=False)) == str(said)
    assert said.total_before == numbers(plain)
    assert report.total_after == said.total_after == numbers(model) == nplex.count(model).total
    assert nplex.count(model).dense == said.total_before
    assert said.total_after < 0.45 * said.total_before
    kept = dict(plain.named_modules())
    for row in said.rows:
        now = model.get_submodule(row.name)
        assert is_layer(now) == row.changes
        assert numbers(now) == row.now_parameters
        assert type(kept[row.name]) is type(now) or row.changes
        assert row.reason or row.changes
    assert sum(row.changes for row in said.rows) >= 2


@EVERY
def test_training_moves_everything_and_the_loss_falls(name, variant):
    model, _ = converted(name, variant)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    losses = trained(name, model.train(), 1)
    assert [key for key, p in model.named_parameters() if torch.equal(p, before[key])] == []
    losses += trained(name, model, 12)
    assert torch.tensor(losses).isfinite().all()
    assert losses[-1] < 0.8 * losses[0]


@EVERY
def test_folded_models_are_torchs_and_compute_the_same(name, variant):
    model, _ = converted(name, variant)
    trained(name, model.train(), 1)  # so that no number has its first value
    model.double().eval()
    inputs, plain = in_double(MODELS[name].inputs()), dense(name).double().eval()
    before = logits(model, inputs).detach()
    report = nplex.fold_(model)
    assert report.after == numbers(model) == numbers(plain)
    assert ours(model) == []
    assert [(key, type(module)) for key, module in model.named_modules()] == [
        (key, type(module)) for key, module in plain.named_modules()
    ]
    torch.testing.assert_close(logits(model, inputs), before, rtol=1e-9, atol=1e-9)
    plain.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(logits(plain, inputs), before, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(logits(dense(name).double().eval(), inputs), before, atol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_the_weights_nearest_to_a_folded_model_are_those_that_it_had(name):
    model, _ = converted(name)
    model.double().eval()
    inputs = in_double(MODELS[name].inputs())
    before = logits(model, inputs).detach()
    nplex.fold_(model)
    report = nplex.convert_(model, 4, where=MODELS[name].where, weights="nearest")
    errors = [row.error for row in report.rows if row.changes]
    assert len(errors) >= 2
    tolerance = 1e-5 if name == "tagger" else 1e-9  # its row of padding is filled in step by step
    assert max(errors) < tolerance
    torch.testing.assert_close(logits(model, inputs), before, rtol=1e-6, atol=10 * tolerance)


@pytest.mark.parametrize("name", MODELS)
def test_the_error_of_the_nearest_weights_is_that_of_the_folded_ones(name):
    plain, (model, report) = dense(name), converted(name, "nearest")
    nplex.fold_(model)
    old, new = plain.state_dict(), model.state_dict()
    for row in report.rows:
        if row.changes:
            keys = [key for key in old if key.startswith(row.name + ".") and "bias" not in key.rpartition(".")[2]]
            wrong = sum((new[key] - old[key]).square().sum() for key in keys)
            error = (wrong / sum(old[key].square().sum() for key in keys)).sqrt().item()
            assert row.error == pytest.approx(error, rel=1e-4)
            assert 0.1 < row.error < 0.95
    biases = [key for key in old if "bias" in key.rpartition(".")[2]]
    assert {key: torch.equal(old[key], new[key]) for key in biases} == dict.fromkeys(biases, True)


@pytest.mark.parametrize("name", MODELS)
def test_autocast_to_bfloat16(name):
    model, _ = converted(name)
    inputs = MODELS[name].inputs()
    exact = logits(model.eval(), inputs)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = logits(model, inputs).float()
    assert 1e-6 < (found - exact).norm() / exact.norm() < 0.05
    losses = trained(name, model.train(), 8, dtype=torch.bfloat16)
    assert losses[-1] < 0.9 * losses[0]
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


def test_a_fresh_process_loads_every_model(tmp_path):
    """By nplex.load, and models of transformers by their Auto class too; the program compares bit for bit."""
    for name, variant in CASES:
        model, _ = converted(name, variant)
        trained(name, model.train(), 1)
        folder = tmp_path / f"{name}, {variant}"
        nplex.save(model.eval(), folder / "model.nplex")
        if MODELS[name].auto:
            model.save_pretrained(folder / "pretrained")
        with torch.no_grad():
            torch.save(
                {"state": model.state_dict(), "logits": logits(model, MODELS[name].inputs())}, folder / "expected"
            )
        assert missing_rules(model) == []
    done = subprocess.run(
        [sys.executable, PROGRAM, tmp_path], capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    expected = [f"load {name}, {variant}" for name, variant in CASES]
    expected += [f"from_pretrained {name}, {variant}" for name, variant in CASES if MODELS[name].auto]
    assert sorted(done.stdout.splitlines()) == sorted(expected)
    assert "REPORT" not in done.stderr
    assert "quantization type" not in done.stderr
