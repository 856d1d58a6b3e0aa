"""Converted models of transformers: saved and loaded as ever, after `import nplex`."""

import copy
import json
import os
import pickle
import subprocess
import sys
from contextlib import contextmanager

import pytest
import safetensors.torch
import torch
from torch import nn

import nplex
from nplex import algebra
from nplex import nn as nx
from nplex.convert.record import record

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers", reason="needs nplex[hf]")
from transformers.utils import logging  # noqa: E402

TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 40,
}


def bert(kind="BertForSequenceClassification", **options):
    return getattr(transformers, kind)(transformers.BertConfig(**TEXT, max_position_embeddings=20, **options))


def t5():
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "vocab_size": 40}
    config = transformers.T5Config(**sizes, decoder_start_token_id=0, eos_token_id=39, pad_token_id=0)
    return transformers.T5ForConditionalGeneration(config)


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=20, bos_token_id=0, eos_token_id=39
    )
    return transformers.GPT2LMHeadModel(config)


def llama(**options):
    sizes = TEXT | {"num_key_value_heads": 1} | {"bos_token_id": 0, "eos_token_id": 39, "pad_token_id": 0}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes | options))


def vit():
    sizes = {name: TEXT[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    config = transformers.ViTConfig(**sizes, intermediate_size=24, image_size=8, patch_size=4, num_channels=4)
    return transformers.ViTForImageClassification(config)


def resnet():
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_channels=3)
    return transformers.ResNetForImageClassification(config)


IDS = {"input_ids": torch.tensor([[3, 1, 4, 1, 5]])}
MODELS = {
    "bert": (bert, IDS),
    "bert, masked": (lambda: bert("BertForMaskedLM"), IDS),
    "t5": (t5, IDS | {"decoder_input_ids": torch.tensor([[0, 2, 7]])}),
    "gpt2": (gpt2, IDS),
    "llama": (llama, IDS),
    "vit": (vit, {"pixel_values": torch.ones(1, 4, 8, 8)}),
    "resnet": (resnet, {"pixel_values": torch.ones(1, 3, 32, 32)}),
}
CONVERTED = {"bert": 7, "bert, masked": 7, "t5": 16, "gpt2": 4, "llama": 8, "vit": 7, "resnet": 2}


@pytest.fixture(autouse=True)
def _quiet():
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@contextmanager
def no_messages(caplog):
    """transformers must log no warning: no unknown quantizer, no load report."""
    logging.enable_propagation()
    caplog.clear()
    try:
        with caplog.at_level("WARNING"):
            yield
    finally:
        logging.disable_propagation()
    assert [entry.getMessage() for entry in caplog.records if entry.levelname != "INFO"] == []


def assert_same(model, other):
    """The same tensors to the last bit; transformers marks loaded ones, so names and numbers only."""
    ours, theirs = model.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=0, atol=0, msg=name)


def output(model, inputs):
    with torch.no_grad():
        return model.eval()(**inputs)[0]


def no_embedding(name, module):
    """Heads too."""
    return not isinstance(module, torch.nn.Embedding)


def converted(make=bert, rule=2, **options):
    model = make()
    nplex.convert_(model, rule, where=options.pop("where", no_embedding), **options)
    return model


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_what_is_saved_is_loaded(tmp_path, caplog, name, shared):
    make, inputs = MODELS[name]
    model = make()
    report = nplex.convert_(model, 4, where=no_embedding, shared=shared)
    changed = sum(len((row.name, *row.also)) for row in report.rows if row.changes)
    assert changed >= CONVERTED[name]
    with no_messages(caplog):
        model.save_pretrained(tmp_path)
        loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert {key: value for key, value in info.items() if value} == {}
    assert_same(model, loaded)
    assert record(loaded) == record(model)
    torch.testing.assert_close(output(loaded, inputs), output(model, inputs), rtol=1e-4, atol=1e-6)
    assert nx.missing_rules(loaded) == []
    if shared:
        assert model.base_model.rule is not None
        assert sum(isinstance(module, nx.Rule) for module in loaded.modules()) == 1
    # the base model of the same folder, and a model with a head from the base model's folder
    base = transformers.AutoModel.from_pretrained(tmp_path)
    theirs = model.base_model.state_dict()
    found = {key: tensor for key, tensor in base.state_dict().items() if key in theirs}
    assert sum(key.endswith("components") for key in found) >= (2 if name == "resnet" else CONVERTED[name] - 1)
    for key, tensor in found.items():
        torch.testing.assert_close(tensor, theirs[key], rtol=0, atol=0, msg=key)
    base.save_pretrained(tmp_path / "base")
    again, ours = type(model).from_pretrained(tmp_path / "base").base_model.state_dict(), base.state_dict()
    assert len(again.keys() & found) == len(found)
    for key in again.keys() & ours.keys():
        torch.testing.assert_close(again[key], ours[key], rtol=0, atol=0, msg=key)


def test_auto_classes_and_loaded_models_are_ordinary(tmp_path):
    converted(shared=True).save_pretrained(tmp_path)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(model) is transformers.BertForSequenceClassification
    assert not getattr(model, "is_quantized", False)
    assert not hasattr(model, "hf_quantizer")
    assert_same(model, copy.deepcopy(model))
    assert copy.deepcopy(model).bert.encoder.layer[0].output.dense.rule is not model.bert.rule
    assert_same(model, pickle.loads(pickle.dumps(model)))
    assert model.half().float().dtype == torch.float32
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.save_pretrained(tmp_path / "again")
    assert_same(model, type(model).from_pretrained(tmp_path / "again"))


RULES = {
    "learned 2:3": lambda: nx.LearnedRule(2, rank=3),
    "quaternion": lambda: algebra.quaternion,
    "own": lambda: algebra.Algebra.from_table([[[1, 0], [0, 1]], [[0, -3], [1, 0.5]]], "mine"),
}


@pytest.mark.parametrize("rule", RULES)
def test_rules(tmp_path, rule):
    model = converted(rule=RULES[rule]())
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert_same(model, loaded)
    assert record(loaded) == record(model)
    if rule == "own":
        nplex.factorize_(model)
    else:
        model.bert.pooler.dense = model.bert.pooler.dense.to_torch()
    model.save_pretrained(tmp_path)  # what changed since is written too
    loaded = type(model).from_pretrained(tmp_path)
    assert_same(model, loaded)
    assert record(loaded) == record(model)


def test_frozen_rules_stay_frozen(tmp_path):
    model = converted()
    model.bert.pooler.dense.rule.requires_grad_(False)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    frozen = [name for name, parameter in loaded.named_parameters() if not parameter.requires_grad]
    assert frozen == ["bert.pooler.dense.rule.table"]


@pytest.mark.parametrize("rule", [2, algebra.quaternion], ids=["2", "quaternion"])
@pytest.mark.parametrize("shared", [False, True])
def test_other_types(tmp_path, rule, shared):
    model = converted(t5, rule, shared=shared)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert_same(copy.deepcopy(model).bfloat16(), loaded)
    _, inputs = MODELS["t5"]
    assert output(loaded, inputs).isfinite().all()
    if rule == algebra.quaternion:
        rules = [module for module in loaded.float().modules() if isinstance(module, nx.FixedRule)]
        torch.testing.assert_close(rules[0]().table(), algebra.quaternion.table.float(), rtol=0, atol=1e-6)


def test_layers_that_transformers_keeps_in_float32(tmp_path):
    """T5 in float16: with a rule of its own a layer is wide as a whole, a shared rule cannot be."""
    model = converted(t5, 4)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=torch.float16)
    layer = loaded.encoder.block[0].layer[1].DenseReluDense
    assert (layer.wo.components.dtype, layer.wo.rule.table.dtype) == (torch.float32, torch.float32)
    assert (layer.wi.components.dtype, layer.wi.rule.table.dtype) == (torch.float16, torch.float16)
    assert output(loaded, MODELS["t5"][1]).isfinite().all()
    converted(t5, 4, shared=True).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"DenseReluDense\.wo in float32, and its rule is shared .*dtype=torch\.bfl"):
        type(model).from_pretrained(tmp_path, dtype=torch.float16)


def test_device_map_and_shards(tmp_path):
    pytest.importorskip("accelerate", reason="needs nplex[hf]")
    model = converted(llama, shared=True)
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    for device_map in (None, "cpu", "auto"):
        loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, device_map=device_map)
        assert_same(model, loaded)
        torch.testing.assert_close(output(loaded, IDS), output(model, IDS))


@pytest.mark.parametrize("shared", [False, True])
def test_layers_that_stay_on_disk(tmp_path, shared):
    pytest.importorskip("accelerate", reason="needs nplex[hf]")
    model = converted(llama, 4, shared=shared)
    model.save_pretrained(tmp_path)
    places = {f"model.{name}": "cpu" for name in ("embed_tokens", "norm", "rotary_emb")}
    places |= {"model.layers": "disk", "lm_head": "disk"} | ({"model.rule": "disk"} if shared else {})
    loaded = type(model).from_pretrained(tmp_path, device_map=places, offload_folder=tmp_path / "disk")
    assert loaded.lm_head.components.is_meta
    torch.testing.assert_close(output(loaded, IDS), output(model, IDS))


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_loaded_models_generate(tmp_path, name):
    model = converted(MODELS[name][0], 4).eval()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    told = {"max_new_tokens": 6, "do_sample": False, "num_beams": 1}
    torch.testing.assert_close(loaded.generate(**IDS, **told), model.generate(**IDS, **told))


PLAIN = """
import sys, json, torch, transformers
ids = torch.tensor(json.loads(sys.argv[1]))
for folder in sys.argv[2:]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    print(json.dumps(model(input_ids=ids)[0].flatten()[:8].tolist()))
"""


def test_a_folded_model_is_a_plain_folder(tmp_path):
    """GPT-2: its transposed linear layers are there again."""
    model = converted(gpt2, shared=True)
    before = output(model, IDS).flatten()[:8]
    model.save_pretrained(tmp_path / "converted")
    folders = [tmp_path / "a", tmp_path / "b"]
    for each, folder in zip((model, type(model).from_pretrained(tmp_path / "converted")), folders, strict=True):
        nplex.fold_(each)
        each.save_pretrained(folder)
        assert "quantization_config" not in json.loads((folder / "config.json").read_text())
        assert not (folder / "README.md").exists()
    ids = json.dumps(IDS["input_ids"].tolist())
    done = subprocess.run([sys.executable, "-c", PLAIN, ids, *folders], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "REPORT" not in done.stderr
    for line in done.stdout.splitlines()[-2:]:
        torch.testing.assert_close(torch.tensor(json.loads(line)), before, rtol=1e-4, atol=1e-6)


def test_the_model_card(tmp_path):
    model = converted(where=nplex.only("bert.encoder.*"), shared=True)
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text("utf-8")
    numbers = nplex.count(model)
    for text in (
        "import nplex", 'BertForSequenceClassification.from_pretrained("', "library_name: transformers",
        f"6 layers are hypercomplex layers of `nplex`: the model has {numbers.total:,} parameters, a dense one would "
        f"have {numbers.dense:,}",
        "| `bert.encoder.layer.*.attention.self.query` | 1 | Linear | learned, n = 2, shared at `bert.rule` |",
    ):  # fmt: skip
        assert text in card
    assert numbers.dense == sum(p.numel() for p in bert().parameters())
    (tmp_path / "README.md").write_text("mine")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    bert().save_pretrained(tmp_path / "dense")
    assert not (tmp_path / "dense" / "README.md").exists()


def test_a_model_card_says_what_is_saved_last(tmp_path):
    """Only the section that nplex wrote changes."""
    model = converted(where=nplex.only("bert.encoder.*"))
    model.save_pretrained(tmp_path)
    path = tmp_path / "README.md"
    section = path.read_text("utf-8").partition("\n<!--")[2]
    path.write_text(f"# Mine\n\n<!--{section}after\n", "utf-8")
    model = converted()
    model.save_pretrained(tmp_path)
    card = path.read_text("utf-8")
    assert f"{len(record(model)['layers'])} layers are" in card
    assert card.startswith("# Mine\n")
    assert "\nafter\n" in card
    nplex.fold_(model)
    model.save_pretrained(tmp_path)
    assert path.read_text("utf-8") == "# Mine\n\nafter\n"


def test_a_checkpoint_for_another_head(tmp_path):
    """What the model does not have is left out, as transformers does with weights."""
    model = converted(lambda: bert("BertForMaskedLM"))
    assert isinstance(model.cls.predictions.transform.dense, nx.Linear)
    model.save_pretrained(tmp_path)
    loaded = transformers.BertForSequenceClassification.from_pretrained(tmp_path)
    assert isinstance(loaded.bert.encoder.layer[0].output.dense, nx.Linear)
    assert isinstance(loaded.classifier, nn.Linear)
    encoder = converted(t5)
    encoder.save_pretrained(tmp_path / "t5")
    loaded = transformers.T5EncoderModel.from_pretrained(tmp_path / "t5")
    theirs = encoder.state_dict()
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=0, msg=name)


def test_weights_that_no_file_holds_get_first_values(tmp_path):
    model = converted()
    model.save_pretrained(tmp_path)
    from safetensors.torch import load_file, save_file

    tensors = load_file(tmp_path / "model.safetensors")
    lost = "bert.encoder.layer.0.output.dense.components"
    del tensors[lost], tensors["bert.pooler.dense.rule.table"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {lost, "bert.pooler.dense.rule.table"}
    dense = loaded.bert.encoder.layer[0].output.dense
    assert 0.5 < dense.weight.std() / model.bert.encoder.layer[0].output.dense.weight.std() < 2
    torch.testing.assert_close(loaded.bert.pooler.dense.rule.table.norm(), torch.tensor(2**1.5))


DAMAGES = {
    "newer": (lambda q: q.update(format=2), "has format 2, this nplex reads 1; pip install --upgrade nplex"),
    "key": (lambda q: q.update(code="x"), "the conversion by nplex is damaged, it has .*code"),
    "base": (lambda q: q.update(base=3), "the conversion by nplex is damaged"),
    "conversion": (lambda q: q.update(conversion=4), "a conversion is an object with a format number"),
    "n": (lambda q: q["conversion"]["rules"][0].update(n=10**9), "n must be a whole number from 1 to 256"),
    "other layers": (
        lambda q: q["conversion"].update(layers={"x": q["conversion"]["layers"]["bert.pooler.dense"]}),
        "config.json does not fit this Bert.*: it has none of the 1 converted layers, x and so on",
    ),
    "size": (
        lambda q: q["conversion"]["layers"]["bert.pooler.dense"]["sizes"].update(in_features=15),
        "bert.pooler.dense was recorded with in_features = 15, the model has 16",
    ),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_damaged_and_hostile_configs(tmp_path, what):
    change, message = DAMAGES[what]
    model = converted()
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    change(config["quantization_config"])
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        type(model).from_pretrained(tmp_path)


def test_the_numbers_of_a_fixed_rule_are_checked(tmp_path):
    from safetensors.torch import load_file, save_file

    model = converted(rule=algebra.quaternion)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["bert.pooler.dense.rule.decode"].zero_()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="the saved numbers are not the rule of quaternion"):
        type(model).from_pretrained(tmp_path)


def test_dense_checkpoints_are_not_converted_while_they_load(tmp_path):
    from nplex.huggingface import NplexConfig

    bert().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"nplex converts models that are loaded: nplex\.convert_\(model, rule\)"):
        transformers.BertModel.from_pretrained(tmp_path, quantization_config=NplexConfig({}))


def test_a_part_whose_rule_is_elsewhere_cannot_be_saved(tmp_path):
    model = converted(t5, shared=True)
    with pytest.raises(ValueError, match="is shared and registered outside this model; take the whole model"):
        model.encoder.save_pretrained(tmp_path)


def test_nplex_files_hold_models_of_transformers_too(tmp_path):
    model = converted(shared=True)
    nplex.save(model, tmp_path / "model.safetensors")
    assert_same(model, nplex.load(tmp_path / "model.safetensors", bert()))


ORDERS = {
    "nplex first": "import nplex, transformers",
    "models first": "import transformers; transformers.BertModel; import nplex",
}
FRESH = """
model = transformers.AutoModel.from_pretrained(sys.argv[1])
model.save_pretrained(sys.argv[1] + "/again")
print(model.pooler.dense.components.sum().item(), nplex.count(model).layers, "nplex.huggingface" in sys.modules)
print(any("on_import" in type(finder).__module__ for finder in sys.meta_path))
"""


@pytest.mark.parametrize("order", ORDERS)
def test_both_orders_of_import(tmp_path, order):
    model = converted(where=nplex.only("bert.*"))
    model.save_pretrained(tmp_path)
    code = f"import sys, warnings; warnings.simplefilter('error'); {ORDERS[order]}" + FRESH
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    numbers, waits = done.stdout.splitlines()[-2:]
    total, layers, registered = numbers.split()
    assert float(total) == pytest.approx(model.bert.pooler.dense.components.sum().item(), rel=1e-5)
    assert (int(layers), registered, waits) == (nplex.count(model).layers, "True", "False")
    assert "quantization type" not in done.stderr
    again = transformers.AutoModel.from_pretrained(tmp_path / "again")
    assert isinstance(again.pooler.dense, nx.Linear)


@pytest.mark.slow
def test_the_trainer_trains_saves_and_resumes(tmp_path):
    pytest.importorskip("accelerate", reason="needs nplex[hf]")
    data = [{"input_ids": [3, 1, 4, i % 30], "labels": i % 2} for i in range(16)]

    def train(folder, steps, resume=None, model=None):
        torch.manual_seed(0)
        told = transformers.TrainingArguments(
            folder, max_steps=steps, save_steps=2, per_device_train_batch_size=4, use_cpu=True, report_to="none",
            disable_tqdm=True, logging_strategy="no", lr_scheduler_type="constant", data_seed=1, seed=1,
        )  # fmt: skip
        model = model or converted(
            lambda: bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), shared=True
        )
        before = model.bert.rule.table.clone()
        trainer = transformers.Trainer(model, told, train_dataset=data)
        trainer.train(resume_from_checkpoint=resume)
        assert not torch.equal(before, model.bert.rule.table)
        return trainer.model

    straight = train(tmp_path / "a", 4)
    folder = tmp_path / "a" / "checkpoint-2"
    assert (folder / "README.md").exists()
    saved = type(straight).from_pretrained(folder)
    assert isinstance(saved.bert.pooler.dense, nx.Linear)
    resumed = train(tmp_path / "b", 4, str(folder))
    for (name, ours), theirs in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6, msg=name)
    train(tmp_path / "c", 2, model=saved)  # a loaded model trains too


def test_configs_are_those_of_a_converted_model(tmp_path):
    """The config of a saved or loaded model loads again, and makes converted models."""
    model = converted(llama)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    for config in (model.config, loaded.config, copy.deepcopy(loaded.config)):
        assert_same(model, type(model).from_pretrained(tmp_path, config=config))
        assert_same(model, type(model).from_pretrained(None, config=config, state_dict=model.state_dict()))
        fresh = transformers.AutoModelForCausalLM.from_config(config)
        assert record(fresh) == record(model)
        assert output(fresh, IDS).isfinite().all()


def test_a_config_that_is_not_the_files_is_refused(tmp_path):
    """Random weights never come silently."""
    model, dense = converted(llama), llama()
    model.save_pretrained(tmp_path / "converted")
    dense.save_pretrained(tmp_path / "dense")
    bare = llama().config
    with pytest.raises(ValueError, match=r"components and so on\), of which this config says nothing; leave config="):
        type(model).from_pretrained(tmp_path / "converted", config=bare)
    with pytest.raises(ValueError, match="of which this config says nothing"):
        type(model).from_pretrained(None, config=bare, state_dict=model.state_dict())
    with pytest.raises(ValueError, match=r"weight of a dense layer, which this config says is converted"):
        type(model).from_pretrained(tmp_path / "dense", config=model.config)


@pytest.mark.parametrize("make", [llama, t5])
def test_saved_untied_loaded_tied(tmp_path, make):
    """The head stays as it was saved, as a dense one of other numbers does; all can be saved again."""
    model = make(tie_word_embeddings=False) if make is llama else make()
    if make is t5:  # as flan-T5: its config says tied, its file holds a head
        model.lm_head.weight = nn.Parameter(torch.randn(40, 16))
    nplex.convert_(model, 2, where=lambda name, module: isinstance(module, nn.Linear))
    assert isinstance(model.lm_head, nx.Linear)
    model.save_pretrained(tmp_path)
    for folder in (tmp_path, tmp_path / "again"):
        loaded = type(model).from_pretrained(folder, tie_word_embeddings=True)
        assert_same(model, loaded)
        loaded.save_pretrained(tmp_path / "again")


HEADS = {
    "BertForSequenceClassification": "BertForTokenClassification",
    "BertForTokenClassification": "BertForSequenceClassification",
    "BertForMaskedLM": "BertForTokenClassification",
    "RobertaForSequenceClassification": "RobertaForTokenClassification",
    "RobertaForTokenClassification": "RobertaForSequenceClassification",
}


def classifier(kind, **options):
    config = transformers.RobertaConfig if "Roberta" in kind else transformers.BertConfig
    return getattr(transformers, kind)(config(**TEXT, max_position_embeddings=20, **options))


@pytest.mark.parametrize(("labels", "shared"), [(3, False), (4, True)])
@pytest.mark.parametrize("kind", HEADS)
def test_another_head_is_fresh(tmp_path, kind, labels, shared):
    """Another number of labels and another class, with and without conversion: the body as saved, a fresh head."""
    found = {}
    for dense in (True, False):
        model = classifier(kind, num_labels=3)
        if not dense:
            nplex.convert_(model, 2, shared=shared)
        folder = tmp_path / str(dense)
        model.save_pretrained(folder)
        for cls in (kind, HEADS[kind]):
            load = getattr(transformers, cls).from_pretrained
            loaded = load(folder, num_labels=labels, ignore_mismatched_sizes=True)
            found.setdefault(cls, []).append(output(loaded, IDS).shape)
            ours, theirs = model.base_model.state_dict(), loaded.base_model.state_dict()
            for name in theirs.keys() & ours:
                torch.testing.assert_close(theirs[name], ours[name], rtol=0, atol=0, msg=name)
            assert all(parameter.isfinite().all() for parameter in loaded.parameters())
            loaded.save_pretrained(tmp_path / "again")
            assert_same(loaded, type(loaded).from_pretrained(tmp_path / "again"))
    assert [first == second for first, second in found.values()] == [True, True]


def test_a_head_of_other_size_whose_blocks_have_the_same_is_fresh(tmp_path):
    """Three and four labels are blocks of two at n = 2: the shapes alone do not tell."""
    model = converted(lambda: bert(num_labels=3))
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"out_features = 3, the model has 4: .* ignore_mismatched_sizes=True"):
        type(model).from_pretrained(tmp_path, num_labels=4)
    loaded = type(model).from_pretrained(tmp_path, num_labels=4, ignore_mismatched_sizes=True)
    assert (loaded.classifier.components != model.classifier.components).all()


@pytest.mark.parametrize("end", ["lm_head", "model.embed_tokens"])
def test_resizing_embeddings_is_refused_before_anything_changes(end):
    model = llama(tie_word_embeddings=False)
    nplex.convert_(model, 2, where=nplex.only(end))
    before = copy.deepcopy(model)
    for options in ({"new_num_tokens": 44}, {"pad_to_multiple_of": 64}, {"new_num_tokens": 8}):
        with pytest.raises(ValueError, match=f"{end} is converted and cannot be resized: .*all_but"):
            model.resize_token_embeddings(**options)
        assert_same(before, model)
        assert model.config.vocab_size == 40
    model.resize_token_embeddings(40)
    model.resize_token_embeddings()
    assert_same(before, model)


def test_dense_ends_of_a_converted_model_are_resized():
    model = llama(tie_word_embeddings=False)
    nplex.convert_(model, 2, where=nplex.all_but("lm_head"))
    model.resize_token_embeddings(44)
    assert (model.lm_head.out_features, model.model.embed_tokens.num_embeddings, model.config.vocab_size) == (44,) * 3


@pytest.mark.parametrize("kept", [0, 1])
@pytest.mark.parametrize("kind", ["BertForSequenceClassification", "BertModel"])
def test_a_config_that_forgets_layers_gives_no_random_ones(tmp_path, kind, kept):
    converted(where=nplex.only("bert.encoder.*")).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    described = json.loads(path.read_text())
    layers = described["quantization_config"]["conversion"]["layers"]
    described["quantization_config"]["conversion"]["layers"] = dict(list(layers.items())[:kept])
    path.write_text(json.dumps(described))
    with pytest.raises(ValueError, match=r"the file holds hypercomplex layers .* of which this config says nothing"):
        getattr(transformers, kind).from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool])
@pytest.mark.parametrize("rule", [2, algebra.complex_], ids=["learned", "fixed"])
def test_rules_of_whole_numbers_are_refused(tmp_path, rule, dtype):
    model = converted(rule=rule)
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    name = next(name for name in tensors if ".rule." in name)
    safetensors.torch.save_file(tensors | {name: tensors[name].to(dtype)}, path, {"format": "pt"})
    with pytest.raises(ValueError, match="expected floating-point numbers"):
        type(model).from_pretrained(tmp_path)
