"""nplex convert --heal: texts in, a healed folder out; stopped and gone on."""

import pytest
import torch
from safetensors.torch import load_file
from test_cli import call, ok, refused

import nplex
from nplex.model_folder import read_texts

LINES = [
    f"{a} {b} {c}"
    for a in ("the", "a")
    for b in ("cat", "dog", "old bird")
    for c in ("runs", "sleeps")
    for _ in "123456789"
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    path = tmp_path_factory.mktemp("models") / "bert"
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *dict.fromkeys(" ".join(LINES).split())])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]").save_pretrained(path)
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(path)
    return path


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n\n".join(LINES), "utf-8")
    return path


def test_texts_become_batches_of_like_length(folder, texts):
    batches = read_texts(folder, texts, 32)
    assert sum(len(batch["input_ids"]) for batch in batches) == len(LINES)
    assert {tuple(batch["input_ids"].shape) for batch in batches} == {(32, 3), (32, 4), (12, 4)}
    assert all(len(batch["input_ids"]) == 1 for batch in read_texts(folder, texts))


def test_a_healed_folder_loads(folder, texts, tmp_path):
    from transformers import AutoModel

    steps = ("--heal", texts, "--heal-steps", 4, 3)
    (tmp_path / "out.healing").mkdir()
    (tmp_path / "out.healing" / "mine.txt").write_text("kept")
    result = ok(call("convert", folder, tmp_path / "out", "--rule", 2, *steps))
    assert "groups" in result.stderr
    assert "healing on cpu" in result.stderr
    ok(call("convert", folder, tmp_path / "plain", "--rule", 2))
    healed, plain = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "plain"))
    assert healed.keys() == plain.keys()
    assert not any(
        torch.equal(healed[name], plain[name]) for name in healed if "components" in name and "layer" in name
    )
    assert isinstance(AutoModel.from_pretrained(tmp_path / "out").encoder.layer[0].output.dense, nplex.nn.Linear)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.healing", "plain", "texts.txt"]
    assert [path.name for path in (tmp_path / "out.healing").iterdir()] == ["mine.txt"]


def test_stopped_and_gone_on(folder, texts, tmp_path, monkeypatch):
    from nplex.pretrained import healing_loop

    steps = ("--rule", 2, "--heal", texts, "--heal-steps", 4, 60)
    ok(call("convert", folder, tmp_path / "whole", *steps))
    update, count = healing_loop.Run._update, [0]

    def stopping(self, phase):
        count[0] += 1
        if count[0] == 58:
            raise KeyboardInterrupt
        update(self, phase)

    monkeypatch.setattr(healing_loop.Run, "_update", stopping)
    result = call("convert", folder, tmp_path / "out", *steps)
    assert result.exit_code == 130
    assert "the same command goes on" in result.stderr
    assert (tmp_path / "out.healing" / "healing.safetensors").exists()
    assert not (tmp_path / "out").exists()
    count[0] = 1000
    ok(call("convert", folder, tmp_path / "out", *steps))
    assert count[0] == 1010
    whole, gone_on = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert all(torch.equal(whole[name], gone_on[name]) for name in whole)
    assert not (tmp_path / "out.healing").exists()


def test_what_cannot_heal_is_refused_before_any_work(folder, texts, tmp_path):
    out, empty = tmp_path / "out", tmp_path / "empty.txt"
    empty.write_text("\n \n")
    refused(call("convert", folder, out, "--rule", 2, "--heal", empty), "holds no text")
    refused(call("convert", folder, out, "--rule", 2, "--heal", tmp_path / "none.txt"), "none.txt")
    empty.write_bytes(b"\xff\xfe\x00")
    refused(call("convert", folder, out, "--rule", 2, "--heal", empty), "cannot be read as text")
    refused(call("convert", folder, out, "--rule", 2, "--heal", texts, "--heal-steps", 0, 0), "both 0")
    refused(call("convert", folder, out, "--rule", 2, "--heal-steps", 1, 1), "--heal texts.txt")
    file = tmp_path / "model.safetensors"
    nplex.save(torch.nn.Sequential(torch.nn.Linear(64, 64)), file)
    refused(call("convert", file, tmp_path / "x.safetensors", "--rule", 2, "--heal", texts), "texts need a folder")
    assert not out.exists()
