"""The loop: precision, signals, patience, rates of rules, the log."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

from nplex.cli import app
from nplex.files import read_tensors
from nplex.lab.text import moved
from nplex.lab.train import Interrupted, Loss, Schedule, fit, groups, keep
from nplex.lab.train.interrupt import deferred_interrupt
from nplex.lab.train.loop import _Loop
from nplex.lab.train.processes import join
from nplex.nn import LearnedRule, Linear

PROGRAM = Path(__file__).parent / "programs" / "trained.py"


class Task:
    """Rows of random numbers and what a matrix makes of them; with a list of dev scores instead of the error."""

    main, higher = "error", False

    def __init__(self, scores=()):
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(48, 6, generator=generator)
        self.y = self.x @ torch.randn(6, 4, generator=generator)
        self.told, self.seen, self.hook = list(scores), [], lambda count: None

    def batches(self, generator):
        return [batch.tolist() for batch in torch.randperm(48, generator=generator).split(8)]

    def loss(self, model, indices, device):
        self.seen.append(tuple(indices))
        self.hook(len(self.seen))
        found = model(self.x[indices])
        return Loss((found - self.y[indices]).square().mean(1).sum(), len(indices), len(indices))

    def scores(self, model, device):
        with torch.no_grad():
            error = (model(self.x) - self.y).square().mean().item()
        return {"error": self.told.pop(0) if self.told else error}


def model():
    torch.manual_seed(0)
    return nn.Sequential(Linear(6, 8, rule=2), nn.Tanh(), Linear(8, 4, rule=LearnedRule(2, rank=3)))


def trained(folder, task=None, **schedule):
    made = model()
    values = {"epochs": 4, "batch_size": 8, "learning_rate": 0.03} | schedule
    return made, fit(made, task or Task(), Schedule(**values), seed=0, folder=folder, config={})


def test_bf16_computes_in_16_bits_and_keeps_weights_in_32(tmp_path):
    made, types = model(), set()
    made[0].register_forward_hook(lambda layer, inputs, output: types.add(output.dtype))
    schedule = Schedule(epochs=4, batch_size=8, learning_rate=0.03, precision="bf16")
    state = fit(made, Task(), schedule, seed=0, folder=tmp_path, config={})
    assert types == {torch.bfloat16}
    assert {p.dtype for p in made.parameters()} == {torch.float32}
    assert state.history[-1]["error"] < 0.8 * state.history[0]["error"]


def test_fp16_where_it_cannot_be_is_told(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("a GPU can")
    with pytest.raises(ValueError, match="precision fp16 needs a GPU, got cpu; take bf16 or no"):
        trained(tmp_path, precision="fp16")


def test_patience_ends_a_run_that_gets_no_better(tmp_path):
    _, state = trained(tmp_path, Task([3.0, 2.0, 2.5, 2.1, 1.0]), epochs=9, patience=2, keep="best")
    assert [entry["error"] for entry in state.history] == [3.0, 2.0, 2.5, 2.1]
    assert (state.best, state.best_epoch) == (2.0, 2)


def test_rules_have_their_own_rate_and_decay():
    made = model()
    found = groups(made, Schedule(weight_decay=0.1, rule_rate=0.25, rule_decay=0.5))
    rules = {p for layer in (made[0], made[2]) for p in layer.rule.parameters()}
    by_rate = {group["factor"]: group for group in found if set(group["params"]) & rules}
    assert list(by_rate) == [0.25]
    assert set(by_rate[0.25]["params"]) == rules
    assert by_rate[0.25]["weight_decay"] == 0.5
    decayed = {p for group in found if group["weight_decay"] == 0.1 for p in group["params"]}
    assert decayed == {made[0].components, made[2].components}


def test_rules_stand_still_at_rate_0(tmp_path):
    before = [p.clone() for layer in (model()[0], model()[2]) for p in layer.rule.parameters()]
    made, _ = trained(tmp_path, rule_rate=0.0)
    after = [p for layer in (made[0], made[2]) for p in layer.rule.parameters()]
    assert all(a.equal(b) for a, b in zip(before, after, strict=True))
    assert not made[0].components.equal(model()[0].components)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_after_a_step_and_it_goes_on_to_the_same_bits(tmp_path, number):
    whole, _ = trained(tmp_path / "whole")
    task = Task()
    task.hook = lambda count: signal.raise_signal(number) if count == 9 else None
    with pytest.raises(Interrupted):
        trained(tmp_path / "broken", task)
    assert len(task.seen) == 9
    resumed, state = trained(tmp_path / "broken")
    assert state.step == 24
    for one, two in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert one.equal(two)


def test_a_second_signal_stops_at_once():
    with deferred_interrupt() as interrupted:
        signal.raise_signal(signal.SIGTERM)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("every", [2, 3, 5, 6])
def test_a_run_that_is_lost_at_the_end_of_a_pass_logs_it_once(tmp_path, monkeypatch, every):
    """After the line is written and before the checkpoint is, whatever the steps between checkpoints."""

    def lost(*arguments, **more):
        raise RuntimeError("lost")

    with monkeypatch.context() as patched:
        patched.setattr(keep, "store", lost)
        with pytest.raises(RuntimeError, match="lost"):
            trained(tmp_path, checkpoint_every=every)
    trained(tmp_path, checkpoint_every=every)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if "error" in line] == [1, 2, 3, 4]


def test_a_step_waits_for_no_device_but_where_the_loss_is_shown(tmp_path, monkeypatch):
    """Reading a number from a tensor waits until a GPU has computed it."""
    read, steps = [], []

    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._local_scalar_dense.default:
                read.append(len(steps) + 1)
            return func(*args, **(kwargs or {}))

    step = _Loop.step

    def watched(self, batch, count):
        with Reads():
            step(self, batch, count)
        steps.append(batch)

    monkeypatch.setattr(_Loop, "step", watched)
    trained(tmp_path, epochs=17, accumulate=2)
    assert len(steps) == 102
    assert read == [50, 50, 100, 100]


@pytest.mark.parametrize("other", ["FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"])
def test_sharding_by_accelerate_is_refused_before_anything_is_done(tmp_path, monkeypatch, other):
    monkeypatch.setenv(f"ACCELERATE_USE_{other}", "true")
    with pytest.raises(
        ValueError, match=f"whole model in each process .* ACCELERATE_USE_{other} asks for another way"
    ):
        trained(tmp_path)
    done = CliRunner().invoke(app, ["run", "agreement", "--out", str(tmp_path / "run")])
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("unchecked")
def test_batches_go_to_a_gpu_from_pinned_memory_and_nothing_waits():
    class Batch:
        pinned = False

        def pin_memory(self):
            self.pinned = True
            return self

        def to(self, device, non_blocking=False):
            return device.type, self.pinned, non_blocking

    assert moved(Batch(), torch.device("cuda")) == ("cuda", True, True)
    assert moved(Batch(), torch.device("cpu")) == ("cpu", False, False)


def test_restarts_on_several_machines_need_a_store_of_their_own(monkeypatch):
    given = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_MAX_RESTARTS": "3", "GROUP_WORLD_SIZE": "2"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="needs --rdzv-backend c10d, and TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        join()
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")  # as torch says it with the switch
    join()


@pytest.mark.slow
def test_workers_that_are_killed_at_random_moments_end_in_the_same_bits():
    command = [sys.executable, Path(__file__).parents[1] / "benchmarks" / "restarts.py", "--runs", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["same"], row["stuck"]) for row in rows] == [(True, False)] * 2, done.stderr[-3000:]


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_step(tmp_path):
    folder = tmp_path / "two"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, PROGRAM, folder, "last"], env=os.environ | {"TERM_AT": "20"}, timeout=90, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stderr.count("Interrupted") >= 1
    assert (folder / "checkpoint.safetensors").exists()
    again = subprocess.run([*torchrun, PROGRAM, folder, "last"], timeout=90, capture_output=True, check=False)
    assert again.returncode == 0
    alone = tmp_path / "alone"
    subprocess.run([sys.executable, PROGRAM, alone, "last"], check=True, capture_output=True)
    (one, _), (two, _) = (read_tensors(place / "final.safetensors") for place in (alone, folder))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=1e-5)
