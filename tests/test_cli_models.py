"""preview, convert, fold and count of models on disk."""

import json
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_cli import call, ok, refused
from torch import nn

import nplex


def weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64), nn.LayerNorm(64))
    model.add_module("emb", nn.Embedding(200, 64))
    return model


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "weights.safetensors"
    nplex.save(weights(), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("models") / "bert"
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
    )
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(config).save_pretrained(path)
    (path / "tokenizer.json").write_text("{}")
    return path


def test_preview_of_a_file_reads_names_and_shapes(file):
    result = ok(call("preview", file, "--rule", 4))
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "Linear(64, 96, rule=4)" in ok(call("preview", file, "--rule", 4, "--full")).stdout
    assert "an embedding" in result.stdout
    found = json.loads(ok(call("preview", file, "--rule", "0=4", "2=2", "--json")).stdout)
    assert [row["now"] for row in found["rows"]][:2] == ["Linear(64, 96, rule=4)", "Linear(96, 64, rule=2)"]
    assert found["total_after"] < found["total_before"]


@pytest.mark.parametrize("how", ["nearest", "fresh"])
def test_a_file_converts_loads_into_its_model_and_folds_back(file, tmp_path, how):
    out, back = tmp_path / "small.safetensors", tmp_path / "dense.safetensors"
    ok(call("convert", file, out, "--rule", "4:7", "--weights", how))
    model = nplex.load(out, weights())
    assert isinstance(model[0], nplex.nn.Linear)
    close = torch.equal(model[0].bias, weights()[0].bias)
    assert close == (how == "nearest")
    counted = json.loads(ok(call("count", out, "--json")).stdout)
    assert counted["total"] == nplex.count(model).total
    assert counted["dense"] == sum(p.numel() for p in weights().parameters())
    ok(call("fold", out, back))
    dense = weights()
    dense.load_state_dict(load_file(back))
    x = torch.randn(3, 64)
    torch.testing.assert_close(dense[:4](x), model[:4](x), rtol=1e-3, atol=1e-4)


def test_a_folder_converts_and_folds(folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    out, back = tmp_path / "bert-4", tmp_path / "bert-dense"
    assert "12 of 17 layers change" in ok(call("preview", folder, "--rule", 4, "--all-but", "*.pooler.*")).stdout
    ok(call("convert", folder, out, "--rule", 4, "--shared"))
    assert (out / "tokenizer.json").exists()
    assert "import nplex" in (out / "README.md").read_text()
    model = transformers.AutoModelForSequenceClassification.from_pretrained(out)
    assert isinstance(model.bert.pooler.dense, nplex.nn.Linear)
    assert json.loads(ok(call("count", out, "--json")).stdout)["total"] == nplex.count(model).total
    ok(call("fold", out, back))
    dense = transformers.AutoModelForSequenceClassification.from_pretrained(back)
    assert type(dense.bert.pooler.dense) is nn.Linear
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(dense.eval()(ids).logits, model.eval()(ids).logits)
    refused(call("convert", folder, out, "--rule", 4), "exists", "--force")
    ok(call("convert", folder, out, "--rule", 2, "--force"))
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".part")]


def others(folder, weights):
    """Fills a folder with what people keep beside a model; gives the names of what a written model has too."""
    kept = {
        "tokenizer.json": "{}", "modules.json": json.dumps([{"path": ""}, {"path": "2_Dense"}]),
        "1_Pooling/config.json": '{"pooling_mode_mean_tokens": true}', "deep/er/wörds of mine.txt": "a\nb",
        ".gitattributes": "x",
        "2_Dense/model.safetensors": weights, "training_args.bin": b"1234", "eval/head.pt": b"5678",
    }  # fmt: skip
    left = {
        "onnx/model.onnx": b"1", "tf_model.h5": b"2", "flax_model.msgpack": b"3", "copy/model.safetensors": weights,
        "checkpoint-5/trainer_state.json": "{}", ".git/HEAD": "ref", ".cache/huggingface/x": "1",
        "old/nplex.json": "{}",
    }  # fmt: skip
    for name, data in (kept | left).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return set(kept)


@pytest.mark.parametrize("verb", ["convert", "fold"])
def test_a_folder_keeps_what_is_not_understood(folder, tmp_path, verb):
    path, out = shutil.copytree(folder, tmp_path / "of others"), tmp_path / "out"
    if verb == "fold":
        ok(call("convert", folder, tmp_path / "small", "--rule", 4))
        path = shutil.copytree(tmp_path / "small", tmp_path / "small of others")
    kept = others(path, (path / "model.safetensors").read_bytes())
    rule = ("--rule", 4) * (verb == "convert")
    result = ok(call(verb, path, out, *rule))
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("not copied: ")]
    assert line.startswith("not copied: .cache/, .git/, checkpoint-5/, and 5 more")
    made = {"config.json", "model.safetensors", "nplex.json"} | ({"README.md"} if verb == "convert" else set())
    found = {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()}
    assert found == kept | made
    for name in kept:
        assert (out / name).read_bytes() == (path / name).read_bytes()
    ok(call(verb, path, out, *rule, "--force"))  # all of it is nplex's own
    for mine in ("deep/notes.txt", "deep/er/more/"):
        mine = out / mine
        mine.mkdir() if mine.suffix != ".txt" else mine.write_text("mine")
        refused(call(verb, path, out, *rule, "--force"), "nplex did not write", str(mine))
        mine.rmdir() if mine.is_dir() else mine.unlink()


def test_a_model_may_be_written_into_its_own_folder(folder, tmp_path):
    path = shutil.copytree(folder, tmp_path / "bert")
    (path / "link").symlink_to(path)
    (path / "loop").symlink_to(path / "loop")
    for name in ("small", "more"):
        ok(call("convert", path, path / name, "--rule", 4))
        ok(call("convert", path, path / name, "--rule", 4, "--force"))
    assert {each.name for each in (path / "more").iterdir()} == {
        "README.md", "config.json", "model.safetensors", "nplex.json", "tokenizer.json",
    }  # fmt: skip


CARDS = [
    "---\nlicense: mit\n---\n# Mine\n\nAll of it.\n", "# Mine\r\n\r\nwörds\r\n", "no end of line",
    "\xff latin", "# 中\n\n",
]  # fmt: skip


@pytest.mark.parametrize("card", CARDS)
def test_a_model_card_is_kept_and_has_one_section_more(folder, tmp_path, card):
    """Its own text is the same bytes before and after, however often the model is converted and folded."""
    data = card.encode("latin-1" if "latin" in card else "utf-8")
    path = shutil.copytree(folder, tmp_path / "bert")
    (path / "README.md").write_bytes(data)
    written = []
    for verb, name in (("convert", "a"), ("convert", "b"), ("fold", "c"), ("convert", "d"), ("fold", "e")):
        rule = ("--rule", 4, *("--only", "*.query") * (name == "a"), "--everything") * (verb == "convert")
        ok(call(verb, path, tmp_path / name, *rule))
        path = tmp_path / name
        written.append((path / "README.md").read_bytes())
        assert written[-1].startswith(data.rstrip())
        assert written[-1].count(b"with hypercomplex layers") == (verb == "convert")
        assert (b"import nplex" in written[-1]) == (verb == "convert")
    assert b"*.intermediate.dense" not in written[0]
    assert b"*.intermediate.dense" in written[1]
    assert written[1] == written[3]
    assert written[2] == written[4]
    assert written[4].rstrip() == data.rstrip()


def test_a_file_with_tied_tensors_opens_as_its_model_is(tmp_path):
    def tied():
        model = nn.Module()
        model.emb, model.up = nn.Embedding(200, 64, padding_idx=0), nn.Linear(64, 64)
        model.again, model.head = model.up, nn.Linear(64, 200, bias=False)
        model.head.weight = model.emb.weight
        return model

    path, out, back = (tmp_path / f"{name}.safetensors" for name in ("dense", "small", "back"))
    nplex.save(tied(), path)
    assert "its weight is tied to" in ok(call("preview", path, "--rule", 2, "--everything")).stdout
    ok(call("convert", path, out, "--rule", 2, "--shared"))
    model = nplex.load(out, tied())
    assert model.again is model.up
    assert json.loads(ok(call("count", out, "--json")).stdout)["total"] == nplex.count(model).total
    ok(call("fold", out, back))
    torch.testing.assert_close(nplex.load(back, tied()).up.weight, model.up.weight)


def test_a_bare_file_is_refused(tmp_path):
    path = tmp_path / "bare.safetensors"
    save_file(weights().state_dict(), path)
    for verb in (("preview", path, "--rule", 4), ("convert", path, tmp_path / "out", "--rule", 4), ("count", path)):
        refused(call(*verb), "was not written by nplex", "load_state_dict")
    refused(call("fold", path, tmp_path / "out"), "was not written by nplex")


def test_force_replaces_only_what_nplex_wrote(file, folder, tmp_path):
    out = tmp_path / "out.safetensors"
    save_file(weights().state_dict(), out)
    refused(call("convert", file, out, "--rule", 4, "--force"), "refusing to replace", "nplex did not write")
    inner = tmp_path / "models" / "bert"
    shutil.copytree(folder, inner)
    refused(call("convert", inner, inner.parent, "--rule", 4, "--force"), "holds the model itself")
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    refused(call("convert", inner, other, "--rule", 4, "--force"), "refusing to replace")
    small = tmp_path / "small"
    ok(call("convert", inner, small, "--rule", 4))
    (small / "notes.txt").write_text("mine")
    refused(call("convert", inner, small, "--rule", 4, "--force"), "nplex did not write", "notes.txt")
    assert (small / "notes.txt").read_text() == "mine"


MANIFESTS = ["[]", "4", "{}", '{"files": "x"}', '{"kind": "run", "files": []}', '{"kind": "model", "files": [1]}',
             '{"kind": "model", "files": {"a": 1}}', '{"kind": "model", "files": "config.json"}']  # fmt: skip


@pytest.mark.parametrize("text", MANIFESTS)
def test_a_folder_is_replaced_only_after_a_whole_manifest(file, folder, tmp_path, text):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "nplex.json").write_text(text)
    refused(call("convert", folder, tmp_path / "out", "--rule", 4, "--force"), "nplex did not write")
    assert (tmp_path / "out" / "nplex.json").read_text() == text


def test_a_link_as_out_leads_to_what_is_written(folder, file, tmp_path):
    for source, name in ((folder, "out"), (file, "out.safetensors")):
        out, link = tmp_path / name, tmp_path / f"link-{name}"
        ok(call("convert", source, out, "--rule", 4))
        link.symlink_to(out)
        ok(call("convert", source, link, "--rule", 2, "--force"))
        assert link.is_symlink()
        counted = json.loads(ok(call("count", out, "--json")).stdout)
        assert counted == json.loads(ok(call("count", link, "--json")).stdout)
    assert {path.name for path in tmp_path.iterdir()} == {
        "out", "link-out", "out.safetensors", "link-out.safetensors"
    }  # fmt: skip
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in (tmp_path / "out").iterdir():
        (linked / path.name).symlink_to(path)
    refused(call("fold", linked, tmp_path / "out", "--force"), "holds the model itself")


def test_a_loop_of_links_is_refused(file, tmp_path):
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / name).symlink_to(tmp_path / other)
    refused(call("convert", file, tmp_path / "a", "--rule", 4), "is a loop of links")
    refused(call("count", tmp_path / "a"), "no such file or folder")


CONFIGS = {
    "layers": ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000 is too large"),
    "many layers": ({"num_hidden_layers": 3_000}, "describes more than"),
    "more layers": ({"num_hidden_layers": 3}, "lacks bert.encoder.layer.2"),
    "fewer layers": ({"num_hidden_layers": 1}, "describes fewer layers than the files hold"),
    "labels": ({"num_labels": 10**9}, "num_labels = 1000000000 is too large"),
    "words": ({"vocab_size": 51}, "cannot be opened"),
    "width text": ({"hidden_size": "64"}, "cannot be opened"),
    "width huge": ({"hidden_size": 10**30}, "is too large"),
    "no class": ({"architectures": ["Net"]}, "names Net, which transformers does not have"),
    "a function": ({"architectures": ["pipeline"]}, "names pipeline"),
    "class text": ({"architectures": "BertModel"}, "architectures is 'BertModel', expected a list"),
    "its own code": ({"auto_map": {"AutoConfig": "code.Config"}, "model_type": "own"}, "cannot be opened"),
    "activation": ({"hidden_act": "glue"}, "KeyError"),
}


@pytest.mark.parametrize("what", CONFIGS)
@pytest.mark.parametrize("verb", ["preview", "count", "convert"])
def test_a_config_that_does_not_fit_its_files(folder, tmp_path, verb, what):
    change, message = CONFIGS[what]
    path = shutil.copytree(folder, tmp_path / "bert")
    (path / "config.json").write_text(json.dumps(json.loads((path / "config.json").read_text()) | change))
    rest = {"preview": ("--rule", 4), "count": (), "convert": (tmp_path / "out", "--rule", 4)}[verb]
    refused(call(verb, path, *rest), str(path), message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["preview", "count", "convert"])
@pytest.mark.parametrize(
    ("kind", "size"), [("Marian", "max_position_embeddings"), ("Marian", "d_model"), ("GPTJ", "rotary_dim")]
)
def test_sizes_that_no_file_confirms_are_refused_at_once(tmp_path, verb, kind, size):
    """Sines and cosines for positions, which no file holds: Marian computes them in Python, number by number."""
    transformers = pytest.importorskip("transformers")
    small = {f"{part}_{size}": 2 for part in ("encoder", "decoder") for size in ("layers", "attention_heads")}
    small |= {"d_model": 32, "max_position_embeddings": 16, "pad_token_id": 0}
    if kind == "GPTJ":
        small = {"n_embd": 32, "n_layer": 1, "n_head": 2, "rotary_dim": 8, "n_positions": 16}
    config = getattr(transformers, f"{kind}Config")(vocab_size=50, **small)
    getattr(transformers, f"{kind}Model")(config).save_pretrained(tmp_path / "model")
    rest = {"preview": ("--rule", 4), "count": (), "convert": (tmp_path / "out", "--rule", 4)}[verb]
    ok(call(verb, tmp_path / "model", *rest))
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {size: 10**9}))
    begin = time.monotonic()
    refused(call(verb, tmp_path / "model", *rest), str(tmp_path / "model"), "cannot be opened")
    assert time.monotonic() - begin < 20  # without the check it takes hours


@pytest.mark.parametrize("how", ["safetensors", "bin"])
def test_tied_tensors_that_a_folder_holds_twice(tmp_path, how):
    """Counted as the model has them, before their numbers can be compared."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=128
    )
    model = transformers.BertForMaskedLM(config)
    model.save_pretrained(tmp_path)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert len(state) > len(load_file(tmp_path / "model.safetensors"))
    (tmp_path / "model.safetensors").unlink()
    if how == "bin":
        torch.save(state, tmp_path / "pytorch_model.bin")
    else:
        save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    assert json.loads(ok(call("count", tmp_path, "--json")).stdout)["total"] == nplex.count(model).total


def test_what_the_model_does_not_use_is_named(folder, tmp_path):
    path = shutil.copytree(folder, tmp_path / "bert")
    tensors = load_file(path / "model.safetensors")
    save_file(tensors | {"other.weight": torch.ones(3)}, path / "model.safetensors", {"format": "pt"})
    for verb in (("preview", path, "--rule", 4), ("convert", path, tmp_path / "out", "--rule", 4)):
        result = ok(call(*verb))
        assert result.stderr.count("left out, as a BertForSequenceClassification does not have it: other.weight") == 1
    save_file(tensors | {"classifier.bias": torch.ones(2, dtype=torch.int64)}, path / "model.safetensors")
    refused(call("count", path), "classifier.bias is of type I64 in the files")
    (path / "model.safetensors").unlink()
    ok(call("count", path))  # as its config describes it
    result = call("convert", path, tmp_path / "more", "--rule", 4)
    assert result.exit_code == 2
    assert "holds no file of weights" in result.stderr


@pytest.mark.parametrize("verb", ["convert", "fold"])
def test_a_folder_that_lacks_a_tensor_is_refused(folder, tmp_path, verb):
    whole = tmp_path / "whole"
    ok(call("convert", folder, whole, "--rule", 4))
    path = whole / "model.safetensors"
    tensors = load_file(path)
    del tensors["bert.encoder.layer.0.output.dense.components"]
    save_file(tensors, path, {"format": "pt"})
    rule = ("--rule", 2, "--everything") if verb == "convert" else ()
    result = call(verb, whole, tmp_path / "out", *rule)
    assert result.exit_code == 2
    assert "lacks bert.encoder.layer.0.output.dense.components" in result.stderr
    assert not (tmp_path / "out").exists()


def test_wrong_input_is_one_line(file, tmp_path):
    out = tmp_path / "out.safetensors"
    refused(call("preview", tmp_path / "none", "--rule", 4), "no such file or folder")
    refused(call("preview", tmp_path, "--rule", 4), "config.json")
    refused(call("preview", file, "--rule", "dense"), "dense converts nothing")
    refused(call("preview", file, "--rule", "4", "2"), "need patterns")
    refused(call("preview", file, "--rule", "five"), "five")
    refused(call("preview", file, "--rule", "4", "--only", "a", "--all-but", "b"), "exclude each other")
    refused(call("preview", file, "--rule", "=4"), "several rules need patterns", "=4 has none")
    refused(call("preview", file, "--rule", "none.json"), "there is no such file")
    refused(call("convert", file, out, "--rule", "4", "--only", "nothing"), "nothing to convert")
    refused(call("convert", file, file, "--rule", "4"), "is the model itself")
    refused(call("convert", file, tmp_path, "--rule", "4", "--force"), "is a folder")
    refused(call("fold", file, out), "nothing to fold")
    assert not out.exists()
    out.write_bytes(file.read_bytes()[:100])
    refused(call("count", out), "damaged")
    out.write_text("hello")
    refused(call("count", out), "damaged")


@pytest.fixture
def with_tokenizer(folder, tmp_path):
    """The folder with a tokenizer of words, and a file of texts."""
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    path = tmp_path / "bert"
    shutil.copytree(folder, path)
    words = {word: i for i, word in enumerate(["[UNK]", "[PAD]", *"abcdefghij"])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]")
    made.save_pretrained(path)
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(" ".join("abcdefghij"[(i * j) % 10] for j in range(3 + i % 7)) for i in range(60)))
    return path, texts


@pytest.mark.parametrize("rule", ["2", "low-rank:0.5"])
def test_a_folder_is_calibrated_by_texts(with_tokenizer, tmp_path, rule):
    path, texts = with_tokenizer
    result = ok(call("convert", path, tmp_path / "out", "--rule", rule, "--calibrate", texts))
    assert "output error" in result.stdout
    assert "root mean square of" in result.stdout
    import transformers

    model = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "out")
    dense = transformers.BertForSequenceClassification.from_pretrained(path)
    layer = model.bert.encoder.layer[0].intermediate.dense
    assert type(layer).__name__ == ("Linear" if rule == "2" else "LowRankLinear")
    counted = json.loads(ok(call("count", tmp_path / "out", "--json")).stdout)
    assert counted["total"] == nplex.count(model).total < nplex.count(dense).total
    ok(call("fold", tmp_path / "out", tmp_path / "dense"))
    x = {"input_ids": torch.arange(12).reshape(2, 6)}
    folded = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "dense")
    torch.testing.assert_close(folded(**x).logits, model(**x).logits, rtol=1e-4, atol=1e-4)


def test_bad_texts_are_one_line(with_tokenizer, folder, file, tmp_path):
    path, texts = with_tokenizer
    out = tmp_path / "out"
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    refused(call("convert", path, out, "--rule", 2, "--calibrate", empty), "holds no text")
    refused(call("convert", path, out, "--rule", 2, "--calibrate", tmp_path / "no.txt"), "no.txt")
    refused(call("convert", folder, out, "--rule", 2, "--calibrate", texts), "has no tokenizer that can be opened")
    refused(call("convert", file, out, "--rule", 2, "--calibrate", texts), "has no tokenizer")
    refused(call("convert", path, out, "--rule", 2, "--weights", "fresh", "--calibrate", texts), "--weights nearest")
    assert not out.exists()


def test_a_file_of_low_rank_opens_counts_and_folds(file, tmp_path):
    out, back = tmp_path / "small.safetensors", tmp_path / "dense.safetensors"
    ok(call("convert", file, out, "--rule", "low-rank:0.5"))
    model = nplex.load(out, weights())
    assert model[0].low_rank == int(0.5 * 64 * 96 / 160)
    assert json.loads(ok(call("count", out, "--json")).stdout)["total"] == nplex.count(model).total
    ok(call("fold", out, back))
    folded, x = nplex.load(back, weights()), torch.randn(3, 64)
    torch.testing.assert_close(folded[0](x), model[0](x))
