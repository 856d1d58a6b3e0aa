"""nplex.heal: a converted model learns from its original."""

import copy
import math

import pytest
import torch
from torch import nn

import nplex
from nplex import nn as nx
from nplex.pretrained import Healing
from nplex.pretrained.blocks import find_blocks

SHORT = Healing(group_steps=12, steps=8, checkpoint_every=5)
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 40,
}


def stack(blocks=4, width=16):
    return nn.Sequential(*[nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(blocks)])


def converted(teacher, rule=2, **options):
    model = copy.deepcopy(teacher)
    nplex.convert_(model, rule, weights="nearest", **options)
    return model


def numbers(count=20, shape=(8, 16)):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def words(count=20, mask=True, decoder=False):
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([7, 5, 3, 7])
    made = []
    for _ in range(count):
        batch = {"input_ids": torch.randint(40, (4, 7), generator=generator)}
        if mask:
            batch["attention_mask"] = (torch.arange(7) < lengths[:, None]).long()
        if decoder:
            batch["decoder_input_ids"] = torch.randint(40, (4, 6), generator=generator)
        made.append(batch)
    return made


def transformer(kind, config, **options):
    transformers = pytest.importorskip("transformers", reason="needs nplex[hf]")
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, config)(**options))
    with torch.no_grad():
        for parameter in model.parameters():  # trained weights differ by more than first ones
            parameter += 0.2 * torch.randn_like(parameter)
    return model


class Speech(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.LSTM(8, 16, batch_first=True), nn.LSTM(16, 16, batch_first=True)
        self.last = nn.Linear(16, 4)

    def forward(self, x):
        return self.last(self.second(self.first(x)[0])[1][0][-1])


class Pictures(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(2, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.act(self.body(self.act(self.stem(x))))
        return self.head(x.mean((2, 3)))


class Repeated(nn.Module):
    """One block that runs three times, as ALBERT's."""

    def __init__(self):
        super().__init__()
        self.blocks = stack(1)

    def forward(self, x):
        return self.blocks(self.blocks(self.blocks(x)))


class Flags(nn.Module):
    """Blocks that pass more than a hidden state on, by name too, and something between two of them."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Flagged() for _ in range(3))

    def forward(self, x):
        x, seen = self.blocks[0](x, seen=None)
        x, seen = self.blocks[1](x, seen=seen)
        return self.blocks[2](2 * x, seen=seen)[0]


class Flagged(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x, seen):
        y = self.down(self.up(x).tanh() + (0 if seen is None else seen))
        return x + y, self.up(x)


def bert():
    return transformer("BertModel", "BertConfig", **SIZES)


def gpt2():
    sizes = {"vocab_size": 40, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 20}
    return transformer("GPT2LMHeadModel", "GPT2Config", **sizes, bos_token_id=0, eos_token_id=39)


def llama():
    ends = {"bos_token_id": 0, "eos_token_id": 39, "pad_token_id": 0}
    return transformer("LlamaForCausalLM", "LlamaConfig", **SIZES, **ends, num_key_value_heads=1)


def t5():
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "vocab_size": 40}
    return transformer("T5ForConditionalGeneration", "T5Config", **sizes, decoder_start_token_id=0, pad_token_id=0)


MODELS = {
    "sequential": (stack, numbers, None),
    "one block three times": (Repeated, numbers, None),
    "several tensors": (Flags, numbers, None),
    "bert": (bert, words, None),
    "bert without mask": (bert, lambda: words(mask=False), None),
    "gpt2": (gpt2, words, None),
    "llama": (llama, words, None),
    "t5": (t5, lambda: words(decoder=True), None),
    "lstm": (Speech, lambda: [(x,) for x in numbers(shape=(4, 5, 8))], ["first", "second"]),
    "convolutions": (Pictures, lambda: numbers(shape=(4, 2, 8, 8)), ["stem", "body"]),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_falls_and_the_rest_stays(name):
    make, batches, blocks = MODELS[name]
    torch.manual_seed(0)
    teacher = make().train()
    model = converted(teacher).train()
    old, before = copy.deepcopy(model), copy.deepcopy(teacher.state_dict())
    state, passed = torch.get_rng_state(), batches()
    report = nplex.heal(model, teacher, passed, Healing(group_steps=15, steps=12), blocks=blocks)
    groups, whole = report.rows
    assert groups.after < groups.before
    assert whole.after < whole.before
    assert (groups.steps, whole.steps, report.held_out) == (15, 12, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    modules = zip((*model.modules(), *teacher.modules()), (*old.modules(), *teacher.modules()), strict=True)
    assert all(now.training and not now._forward_hooks and not now._forward_pre_hooks for now, _ in modules)
    assert all(p.requires_grad and p.grad is None for p in (*model.parameters(), *teacher.parameters()))
    if hasattr(model, "config"):
        assert getattr(model.config, "use_cache", True) == getattr(old.config, "use_cache", True)
    moved = {n for (n, p), q in zip(model.named_parameters(), old.parameters(), strict=True) if not torch.equal(p, q)}
    theirs = dict(teacher.named_parameters())
    assert all(name not in theirs or theirs[name].ndim < 2 for name in moved)
    assert {n for n in dict(model.named_parameters()) if n not in theirs} - moved <= {*report.idle, "head.components"}
    assert "groups" in str(report)


def naive(model, teacher, batches, settings):
    """What heal does to a Sequential of blocks, as a plain loop."""
    trained = [p for n, p in model.named_parameters() if n not in dict(teacher.named_parameters()) or p.ndim < 2]
    count = len(batches) - 2

    def error(own, other):
        return (own - other).square().sum() / other.square().sum()

    done = 0
    for steps, rate in ((settings.group_steps, settings.group_rate), (settings.steps, settings.rate)):
        groups = nplex.optim.param_groups(model, lr=1.0)
        optimizer = torch.optim.AdamW([g | {"factor": g["lr"]} for g in groups], lr=0.0, weight_decay=0.0)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = group["factor"] * rate * 0.5 * (1 + math.cos(math.pi * step / steps))
            epoch, at = divmod(done, count)
            x = batches[torch.randperm(count, generator=torch.Generator().manual_seed(epoch))[at]]
            with torch.no_grad():
                states = [x]
                for block in teacher:
                    states.append(block(states[-1]))
            optimizer.zero_grad()
            if rate == settings.group_rate:
                for first in range(0, len(model), 2):
                    own = model[first](states[first])
                    errors = [error(own, states[first + 1]), error(model[first + 1](own), states[first + 2])]
                    torch.stack(errors).mean().backward()
                    nn.utils.clip_grad_norm_(model[first : first + 2].parameters(), settings.clip)
            else:
                own, errors = x, []
                for block, other in zip(model, states[1:], strict=True):
                    own = block(own)
                    errors.append(error(own, other))
                (torch.stack(errors).mean() + errors[-1]).backward()
                nn.utils.clip_grad_norm_(trained, settings.clip)
            optimizer.step()
            done += 1


def test_a_plain_loop_reaches_the_same_numbers():
    teacher = stack()
    model = converted(teacher)
    twin = copy.deepcopy(model)
    settings = Healing(group_steps=25, steps=12)
    nplex.heal(model, teacher, numbers(), settings)
    naive(twin, teacher, numbers(), settings)
    for (name, own), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    "settings", [SHORT, Healing(group_steps=12, steps=8, fade=0.5), Healing(group=3, everything=True, cache=0)]
)
def test_the_same_call_gives_the_same_bits(settings):
    teacher = stack()
    first, second = converted(teacher), converted(teacher)
    settings = Healing(**vars(settings) | {"group_steps": 12, "steps": 8})
    torch.manual_seed(3)
    one = nplex.heal(first, teacher, numbers(), settings)
    torch.manual_seed(4)
    two = nplex.heal(second, teacher, numbers(), settings)
    assert [(r.before, r.after) for r in one.rows] == [(r.before, r.after) for r in two.rows]
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))
    other = converted(teacher)
    nplex.heal(other, teacher, numbers(), Healing(**vars(settings) | {"seed": 1}))
    assert not all(torch.equal(p, q) for p, q in zip(first.parameters(), other.parameters(), strict=True))


def test_what_is_kept_changes_no_bit():
    teacher = bert()
    kept, computed = converted(teacher), converted(teacher)
    nplex.heal(kept, teacher, words(12), SHORT)
    nplex.heal(computed, teacher, words(12), Healing(**vars(SHORT) | {"cache": 0}))
    assert all(torch.equal(p, q) for p, q in zip(kept.parameters(), computed.parameters(), strict=True))


@pytest.mark.parametrize("stop", [7, 13, 17])
def test_resumed_to_the_same_bits(stop, tmp_path, monkeypatch):
    teacher = bert()
    whole, resumed = converted(teacher), converted(teacher)
    expected = nplex.heal(whole, teacher, words(), SHORT)
    from nplex.pretrained import healing_loop

    update, count = healing_loop.Run._update, [0]

    def stopping(self, phase):
        count[0] += 1
        if count[0] == stop:
            raise KeyboardInterrupt
        update(self, phase)

    monkeypatch.setattr(healing_loop.Run, "_update", stopping)
    with pytest.raises(KeyboardInterrupt):
        nplex.heal(resumed, teacher, words(), SHORT, folder=tmp_path)
    monkeypatch.setattr(healing_loop.Run, "_update", update)
    again = converted(teacher)
    report = nplex.heal(again, teacher, words(), SHORT, folder=tmp_path)
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), again.parameters(), strict=True))
    assert [(r.before, r.after) for r in report.rows] == [(r.before, r.after) for r in expected.rows]
    assert report.blocks == expected.blocks
    third = converted(teacher)
    assert nplex.heal(third, teacher, words(), SHORT, folder=tmp_path) == report
    assert [path.name for path in tmp_path.iterdir()] == ["healing.safetensors"]


OTHERS = {
    "settings": lambda t, m, b: (m, t, b, Healing(**vars(SHORT) | {"rate": 1e-2})),
    "trained": lambda t, m, b: (converted(t, 4), t, b, SHORT),
    "teacher": lambda t, m, b: (m, shaken(t), b, SHORT),
    "batches": lambda t, m, b: (m, t, b[:-1], SHORT),
    "batches of other": lambda t, m, b: (m, t, [*b[:1], *b[:0:-1]], SHORT),
    "other numbers": lambda t, m, b: (shaken(m), t, b, SHORT),
}


def shaken(model):
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.1
    return other


@pytest.mark.parametrize("what", OTHERS)
def test_a_folder_of_another_healing_is_refused(what, tmp_path):
    teacher = bert()
    nplex.heal(converted(teacher), teacher, words(), SHORT, folder=tmp_path)
    model, other, batches, settings = OTHERS[what](teacher, converted(teacher), words())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=f"belongs to another healing, its {what.removesuffix(' of other')}"):
        nplex.heal(model, other, batches, settings, folder=tmp_path)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_damaged_checkpoint_is_refused(tmp_path):
    (tmp_path / "healing.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="damaged"):
        nplex.heal(converted(stack()), stack(), numbers(), SHORT, folder=tmp_path)


def test_masked_positions_do_not_count():
    """Other words where the mask is 0 give the same healing; the model does not see them either."""
    teacher, batches = bert(), words()
    other = [{**b, "input_ids": torch.where(b["attention_mask"] > 0, b["input_ids"], 39)} for b in batches]
    first, second = converted(teacher), converted(teacher)
    nplex.heal(first, teacher, batches, SHORT)
    nplex.heal(second, teacher, other, SHORT)
    for own, theirs in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-3, atol=1e-5)


def test_outputs_of_the_users_own():
    seen = []

    def outputs(own, other, batch):
        seen.append((type(own), batch["input_ids"].shape))
        return (
            0 * own.last_hidden_state.sum()
            + (other.last_hidden_state[:, 0] - own.last_hidden_state[:, 0]).square().mean()
        )

    teacher = bert()
    report = nplex.heal(converted(teacher), teacher, words(), SHORT, outputs=outputs)
    assert seen
    assert report.outputs[1] < report.outputs[0]


def test_fading_begins_as_the_teacher_and_ends_converted():
    teacher = bert()
    model = converted(teacher)
    report = nplex.heal(model, teacher, words(), Healing(group_steps=0, steps=24, fade=0.5))
    assert [row.phase for row in report.rows] == ["whole model"]
    assert report.rows[0].after < report.rows[0].before


@pytest.mark.parametrize("types", [(torch.double, torch.float), (torch.float, torch.bfloat16)])
@pytest.mark.parametrize(("make", "batches"), [(bert, words), (stack, numbers)])
def test_numbers_of_teacher_and_model_may_be_of_different_types(types, make, batches):
    theirs, own = types
    teacher = make()
    model = converted(teacher).to(own)
    report = nplex.heal(model, teacher.to(theirs), batches(), SHORT)
    assert report.rows[-1].after < report.rows[-1].before
    assert {parameter.dtype for parameter in model.parameters()} == {own}


def test_with_accelerate():
    accelerate = pytest.importorskip("accelerate", reason="needs nplex[hf]")
    teacher = bert()
    plain, model = converted(teacher), converted(teacher)
    nplex.heal(plain, teacher, words(), SHORT)
    nplex.heal(model, teacher, words(), SHORT, accelerator=accelerate.Accelerator(cpu=True))
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), model.parameters(), strict=True))


def test_the_teacher_may_be_offloaded():
    accelerate = pytest.importorskip("accelerate", reason="needs nplex[hf]")
    teacher = bert()
    plain, model = converted(teacher), converted(teacher)
    nplex.heal(plain, teacher, words(), SHORT)
    away = accelerate.cpu_offload(copy.deepcopy(teacher), execution_device="cpu")
    nplex.heal(model, away, words(), SHORT)
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), model.parameters(), strict=True))


def test_blocks_are_the_outer_lists():
    model = converted(t5())
    changed = [name for name, _ in model.named_parameters() if "components" in name]
    found = find_blocks(model, None, changed)
    assert found == ["encoder.block.0", "encoder.block.1", "decoder.block.0", "decoder.block.1"]
    found = find_blocks(model, None, [name for name in changed if name.startswith("decoder")])
    assert found == ["decoder.block.0", "decoder.block.1"]


class TwoSizes(nn.Module):
    """A block that never runs, or one whose output is written on."""

    def __init__(self, what):
        super().__init__()
        self.what, self.first, self.second = what, nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        return self.second(self.first(x).relu_()) if self.what == "inplace" else self.first(x)


def infinite():
    teacher = stack()
    with torch.no_grad():
        teacher[1][0].weight[0, 0] = math.nan
    return converted(stack()), teacher, numbers()


def spoiled(model):
    with torch.no_grad():
        next(model.parameters())[0] = math.nan
    return model


def bad_batch():
    batches = numbers()
    batches[3][0, 0] = math.nan
    return batches


BAD = {
    "nothing converted": (lambda: (stack(), stack(), numbers()), {}, "nothing to heal"),
    "not a model": (lambda: (converted(stack()), None, numbers()), {}, "teacher must be a torch.nn.Module"),
    "no batches": (lambda: (converted(stack()), stack(), []), {}, "no batches"),
    "a batch alone": (lambda: (converted(stack()), stack(), numbers()[0]), {}, "put it in a list"),
    "an empty iterator": (lambda: (converted(stack()), stack(), iter(())), {}, "no batches"),
    "itself": (lambda: (lambda m: (m, m, numbers()))(converted(stack())), {}, "nothing to heal"),
    "another width": (lambda: (converted(stack()), stack(width=12), numbers()), {}, "before its conversion"),
    "teacher of another depth": (lambda: (converted(bert()), shallow(), words()), {}, "before its conversion"),
    "nan in the teacher": (infinite, {}, "block 1 of the teacher gives nan or inf for batch 0"),
    "nan in the model": (lambda: (spoiled(converted(stack())), stack(), numbers()), {}, "is not finite"),
    "nan in a batch": (lambda: (converted(stack()), stack(), bad_batch()), {}, "for batch 3"),
    "unknown blocks": (lambda: (converted(stack()), stack(), numbers()), {"blocks": ["7"]}, "'7' is not a module"),
    "no blocks": (lambda: (converted(stack()), stack(), numbers()), {"blocks": []}, "blocks is empty"),
    "blocks not found": (lambda: (converted(Speech()), Speech(), numbers(shape=(4, 5, 8))), {}, "name them"),
    "never runs": (
        lambda: (converted(TwoSizes("")), TwoSizes(""), numbers()), {"blocks": ["first", "second"]},
        "second never runs",
    ),
    "in place": (
        lambda: (converted(TwoSizes("inplace")), TwoSizes("inplace"), numbers()), {"blocks": ["first", "second"]},
        "what block first takes or gives is changed in place",
    ),
    "frozen": (lambda: (converted(stack()).requires_grad_(False), stack(), numbers()), {}, "requires no gradient"),
    "wrong outputs": (
        lambda: (converted(stack()), stack(), numbers()), {"outputs": lambda own, other, batch: own.sum() * math.nan},
        "loss is",
    ),
    "outputs that are no loss": (
        lambda: (converted(stack()), stack(), numbers()), {"outputs": lambda own, other, batch: own - other},
        "outputs= must give a loss",
    ),
    "outputs of 5": (lambda: (converted(stack()), stack(), numbers()), {"outputs": 5}, "outputs must be"),
    "blocks as a text": (lambda: (converted(stack()), stack(), numbers()), {"blocks": "0"}, "blocks must be a list"),
    "blocks as a number": (lambda: (converted(stack()), stack(), numbers()), {"blocks": 5}, "blocks must be a list"),
    "batches of texts": (lambda: (converted(stack()), stack(), ["text"]), {}, "batch 0 is a str"),
    "a batch of None": (lambda: (converted(stack()), stack(), [*numbers(), None]), {}, "is a NoneType"),
    "no rows": (lambda: (converted(stack()), stack(), [*numbers(), numbers()[0][:0]]), {}, "20 is empty"),
    "an accelerator of 5": (
        lambda: (converted(stack()), stack(), numbers()), {"accelerator": 5}, "accelerator must be accelerate",
    ),
    "batches of another width": (
        lambda: (converted(stack()), stack(), [torch.randn(4, 5)]), {}, "does not take batch 0: RuntimeError",
    ),
    "batches with labels": (
        lambda: (converted(stack()), stack(), [{"input": numbers()[0], "labels": 1}]), {},
        "does not take batch 0: TypeError",
    ),
    "a shorter teacher": (lambda: (converted(stack()), stack()[:-1], numbers()), {}, "before its conversion"),
    "a teacher without the block": (
        lambda: (converted(Held()), stack(), numbers()), {"blocks": ["body.0"]}, "before its conversion",
    ),
}  # fmt: skip


def shallow():
    return transformer("BertModel", "BertConfig", **SIZES | {"num_hidden_layers": 2})


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_and_nothing_half_done(name, unchecked):
    torch.manual_seed(0)
    make, options, message = BAD[name]
    model, teacher, batches = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises((ValueError, TypeError), match=message):
        nplex.heal(model, teacher, batches, SHORT, **options)
    same = [torch.equal(value, before[key]) or value.isnan().any() for key, value in model.state_dict().items()]
    assert all(same)
    assert all(not module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("error", [KeyError, TypeError, OSError, KeyboardInterrupt])
def test_after_any_error_the_model_is_as_before(error):
    teacher = stack()
    model, calls = converted(teacher), []
    before = copy.deepcopy(model.state_dict())

    def outputs(own, other, batch):
        calls.append(batch)
        if own.requires_grad and len(calls) > 8:
            raise error
        return (own - other).square().mean()

    with pytest.raises(error):
        nplex.heal(model, teacher, numbers(), SHORT, outputs=outputs)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_trained_parameters_of_the_teacher_are_refused():
    teacher = stack()
    model = converted(teacher)
    model[0][0].bias = teacher[0][0].bias
    with pytest.raises(ValueError, match=r"0.0.bias is the teacher's too"):
        nplex.heal(model, teacher, numbers(), SHORT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group": 0}, "group must be"), ({"steps": -1}, "steps must be"), ({"rate": 0}, "rate must be"),
        ({"clip": math.nan}, "clip must be"), ({"fade": 2}, "fade is"), ({"group_steps": 0, "steps": 0}, "both 0"),
        ({"rate": "a"}, "rate must be"), ({"clip": None}, "clip must be"), ({"fade": "a"}, "fade must be"),
    ],
)  # fmt: skip
def test_settings_are_checked(options, message, unchecked):
    with pytest.raises(ValueError, match=message):
        Healing(**options)


class Held(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = stack()

    def forward(self, x):
        return self.body(x)


def test_a_shared_rule_learns_from_all_groups():
    teacher = Held()
    model = converted(teacher, shared=True)
    before = model.rule.table.detach().clone()
    nplex.heal(model, teacher, numbers(), SHORT)
    assert isinstance(model.body[3][0], nx.Linear)
    assert not torch.equal(model.rule.table, before)
