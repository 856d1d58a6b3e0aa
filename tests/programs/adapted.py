"""Adapters where other programs run the model: torch.compile, DDP, accelerate, Trainer, peft. One case a call."""

import os
import sys
import tempfile
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from torch import nn

import nplex
from nplex import adapters
from nplex.adapters.adding import adapted


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down, self.head = nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(x + self.down(self.up(x).relu()))


def trained(model):
    for layer in adapted(model).values():
        for delta in layer.adapters.values():
            nn.init.normal_(delta.left)
    return model


def compiled():
    """Compiled code sees each change: add_, use_, merge_, unmerge_, remove_, and add_ to a frozen model."""
    model, x = Body(), torch.randn(4, 16)
    run = torch.compile(model, fullgraph=True, backend="aot_eager")

    def check(y):
        torch.testing.assert_close(run(x), y)
        torch.testing.assert_close(model(x), y)

    base = model(x)
    check(base)
    for _ in range(2):
        adapters.add_(model)
        y = trained(model)(x)
        check(y)
        adapters.use_(model, None)
        check(base)
        adapters.use_(run, "default")
        check(y)
        adapters.merge_(model)
        check(y)
        adapters.unmerge_(model)
        check(y)
        adapters.remove_(model)
        check(base)


def transformed():
    """torch.func, export, trace, symbolic_trace, and replicas of DataParallel."""
    model, x = Body(), torch.randn(4, 16)
    adapters.add_(model)
    y = trained(model).eval()(x)
    torch.testing.assert_close(torch.vmap(model)(x), y)
    torch.testing.assert_close(torch.func.functional_call(model, dict(model.named_parameters()), (x,)), y)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), y)
    torch.testing.assert_close(torch.jit.trace(model, x)(x), y)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), y)


def steps(model, batches, wrapped=None):
    wrapped = model if wrapped is None else wrapped
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for x, y in batches:
        optimizer.zero_grad()
        nn.functional.mse_loss(wrapped(x), y).backward()
        optimizer.step()


def made():
    torch.manual_seed(0)
    model = Body()
    adapters.add_(model, name="other")
    adapters.add_(model, low_rank=2, dropout=0.0)
    model.head.requires_grad_(True)
    generator = torch.Generator().manual_seed(1)
    return model, [
        (torch.randn(8, 16, generator=generator), torch.randn(8, 3, generator=generator)) for _ in range(3)
    ]


def sharded(model):
    """FSDP2, layer by layer."""
    for layer in (model.up, model.down):
        torch.distributed.fsdp.fully_shard(layer)
    return torch.distributed.fsdp.fully_shard(model)


def worker(rank, folder, expected):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    for wrap in (nn.parallel.DistributedDataParallel, sharded):
        model, batches = made()
        steps(model, [(x[rank::2], y[rank::2]) for x, y in batches], wrap(model))
        for name, value in model.state_dict().items():
            value = value.full_tensor() if hasattr(value, "full_tensor") else value
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5, msg=name)
    dist.destroy_process_group()


def distributed():
    """Two processes give what one gives, with a second adapter that rests."""
    model, batches = made()
    steps(model, batches)
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(worker, (folder, model.state_dict()), nprocs=2)


def accelerated():
    """Prepared, in bfloat16, saved and loaded."""
    import accelerate

    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    model, batches = made()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model, optimizer = accelerator.prepare(model, optimizer)
    for x, y in batches:
        accelerator.backward(nn.functional.mse_loss(model(x).float(), y))
        optimizer.step()
        optimizer.zero_grad()
    with tempfile.TemporaryDirectory() as folder:
        accelerator.save_state(folder)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        trained(accelerator.unwrap_model(model))
        accelerator.load_state(folder)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        adapters.save(accelerator.unwrap_model(model), folder)
        other, _ = made()
        adapters.remove_(other)
        adapters.load(other, folder)
        assert torch.equal(other.up.adapters["default"].left, before["up.adapters.default.left"])
        assert torch.equal(other.head.weight, before["head.weight"])


def trainer():
    """transformers: BERT and GPT-2 (Conv1D), dense and converted, checkpointing, resuming, save_pretrained."""
    import transformers
    from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2ForSequenceClassification

    transformers.utils.logging.set_verbosity_error()
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    bert = BertConfig(**sizes, vocab_size=60)
    gpt = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=60, pad_token_id=0)
    for kind, config in ((BertForSequenceClassification, bert), (GPT2ForSequenceClassification, gpt)):
        for converted in (False, True):
            model = kind(config)
            if converted:
                nplex.convert_(model, 2, where=nplex.only("*dense", "*c_fc"))
            report = adapters.add_(model, shared=not converted)
            assert all(row.reason for row in report.rows if not row.changes)
            head = model.classifier if hasattr(model, "classifier") else model.score
            head.requires_grad_(True)
            before = {name: value.clone() for name, value in model.state_dict().items()}
            tokens = torch.randint(1, 60, (16, 7))
            data = [{"input_ids": row, "labels": int(row[0]) % 2} for row in tokens]
            with tempfile.TemporaryDirectory() as folder:
                options = {
                    "per_device_train_batch_size": 4,
                    "use_cpu": True,
                    "report_to": "none",
                    "disable_tqdm": True,
                }
                options |= {"gradient_checkpointing": True, "save_steps": 4, "learning_rate": 1e-2}
                arguments = transformers.TrainingArguments(folder, num_train_epochs=1, **options)
                run = transformers.Trainer(model, arguments, train_dataset=data)
                run.train()
                after = model.state_dict()
                moved = {name for name in before if not torch.equal(before[name], after[name])}
                numbers = {name for name, p in model.named_parameters() if p.requires_grad}
                assert moved == numbers, moved ^ numbers
                arguments = transformers.TrainingArguments(folder, num_train_epochs=2, **options)
                transformers.Trainer(model, arguments, train_dataset=data).train(resume_from_checkpoint=True)
                adapters.save(model, f"{folder}/adapter")
                y = model.eval()(tokens).logits
                model.save_pretrained(f"{folder}/both")
                alone = kind.from_pretrained(f"{folder}/both").eval()  # the base: the rest is listed as unexpected
                adapters.remove_(model)
                torch.testing.assert_close(alone(tokens).logits, model(tokens).logits)
                model.save_pretrained(f"{folder}/base")
                again = kind.from_pretrained(f"{folder}/base")
                adapters.load(again, f"{folder}/adapter")
                torch.testing.assert_close(again.eval()(tokens).logits, y)
                if not converted:
                    adapters.merge_(again, keep=False)
                    again.save_pretrained(f"{folder}/merged")
                    merged = kind.from_pretrained(f"{folder}/merged").eval()
                    torch.testing.assert_close(merged(tokens).logits, y, atol=1e-5, rtol=1e-4)


def families():
    """Models of transformers: every layer that calls its weight gets a delta, which is used, merged and taken out."""
    import transformers
    from transformers import AutoModelForCausalLM, AutoModelForImageClassification, AutoModelForSeq2SeqLM

    transformers.utils.logging.set_verbosity_error()
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    words = small | {"vocab_size": 60, "num_key_value_heads": 2}
    tokens, image = torch.randint(3, 60, (2, 5)), torch.randn(1, 3, 16, 16)
    t5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4, "vocab_size": 60}
    for config, kind, inputs in (
        (transformers.LlamaConfig(**words, tie_word_embeddings=True), AutoModelForCausalLM, {"input_ids": tokens}),
        (transformers.MixtralConfig(**words, num_local_experts=2), AutoModelForCausalLM, {"input_ids": tokens}),
        (transformers.T5Config(**t5), AutoModelForSeq2SeqLM, {"input_ids": tokens, "decoder_input_ids": tokens}),
        (transformers.ViTConfig(**small, image_size=16), AutoModelForImageClassification, {"pixel_values": image}),
    ):
        model = kind.from_config(config).eval().requires_grad_(False)
        base = model(**inputs).logits
        adapters.add_(model)
        assert torch.equal(model(**inputs).logits, base)
        y = trained(model)(**inputs).logits
        assert nplex.check(model, inputs), nplex.check(model, inputs)
        adapters.merge_(model)
        torch.testing.assert_close(model(**inputs).logits, y, atol=1e-4, rtol=1e-4)
        adapters.unmerge_(model)
        assert torch.equal(model(**inputs).logits, y)


def peft():
    """LoRA of peft on a model that has our adapters: both are added; ours refuse a model that peft has."""
    try:
        import peft as other
    except ImportError:
        print("skipped: peft is not installed")
        return
    model, x = Body(), torch.randn(4, 16)
    adapters.add_(model)
    y = trained(model)(x)
    both = other.get_peft_model(model, other.LoraConfig(r=2, target_modules=["up", "down"]))
    torch.testing.assert_close(both(x), y)
    with pytest.raises(ValueError, match=r"has adapters \(PeftModel\)"):
        adapters.add_(both, name="late")
    plain = both.merge_and_unload()
    torch.testing.assert_close(plain(x), y)
    nplex.adapters.merge_(plain)


if __name__ == "__main__":
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    globals()[sys.argv[1]]()
