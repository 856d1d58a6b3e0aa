"""nplex adapt: labelled texts in, a folder with adapter and head out; stopped and gone on; bad input."""

import json

import pytest
import torch
from test_cli import call, ok, refused
from test_cli_healing import folder  # noqa: F401 - a fixture

from nplex import adapters
from nplex.cli import adapting
from nplex.files import read_tensors

LINES = [
    f"{'the' if i % 3 else 'a'} {'cat' if i % 2 else 'dog'} runs\t{'tame' if i % 2 else 'wild'}" for i in range(60)
]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "animals.tsv"
    path.write_text("\n".join(LINES), "utf-8")
    return path


def test_an_adapter_is_learned_and_loads(folder, data, tmp_path):  # noqa: F811
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    before = (folder / "model.safetensors").read_bytes()
    out = tmp_path / "out"
    found = json.loads(
        ok(call("adapt", folder, data, out, "--rate", 0.03, "--epochs", 8, "--batch", 8, "--json")).stdout
    )
    assert found["accuracy"] == 1.0
    assert (found["tested"], found["trained"], found["labels"]) == (6, 54, ["tame", "wild"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["animals.tsv", "out"]
    assert (folder / "model.safetensors").read_bytes() == before
    model = AutoModelForSequenceClassification.from_pretrained(folder, config=AutoConfig.from_pretrained(out))
    adapters.load(model.eval(), out)
    logits = model(
        **AutoTokenizer.from_pretrained(folder)(["the cat runs", "a dog runs"], return_tensors="pt")
    ).logits
    assert [model.config.id2label[int(i)] for i in logits.argmax(-1)] == ["tame", "wild"]


def test_a_stopped_one_goes_on_to_the_same_numbers(folder, data, tmp_path, monkeypatch):  # noqa: F811
    arguments = ("--epochs", 2, "--batch", 8)
    ok(call("adapt", folder, data, tmp_path / "whole", *arguments))
    trained = adapting._trained

    def stopping(net, tokenizer, parts, place, options):
        from transformers import Trainer

        step = Trainer.training_step
        count = []

        def counted(self, *inputs):
            count.append(1)
            if len(count) == 9:  # in the second pass
                raise KeyboardInterrupt
            return step(self, *inputs)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "training_step", counted)
            return trained(net, tokenizer, parts, place, options)

    with monkeypatch.context() as patch:
        patch.setattr(adapting, "_trained", stopping)
        assert call("adapt", folder, data, tmp_path / "out", *arguments).exit_code == 130
    assert not (tmp_path / "out").exists()
    refused(call("adapt", folder, data, tmp_path / "out", "--epochs", 3, "--batch", 8), "another num_train_epochs")
    ok(call("adapt", folder, data, tmp_path / "out", *arguments))
    whole, again = (read_tensors(tmp_path / name / "adapters.safetensors")[0] for name in ("whole", "out"))
    assert whole.keys() == again.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


BAD = {
    "no label": ("a cat", "line 1: expected"),
    "three texts": ("a\tb\tc\td", "line 1: expected"),
    "another number of texts": ("a\tb\nc\td\te", "line 2: expected"),
    "an empty text": ("\tb", "line 1: expected"),
    "nothing": ("", "holds 0 labelled texts"),
    "few": ("a\tb\nc\td", "holds 2 labelled texts"),
    "one label": ("a\tb\n" * 20, "of two labels or more"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data(name, folder, tmp_path):  # noqa: F811
    text, message = BAD[name]
    (tmp_path / "data.tsv").write_text(text)
    refused(call("adapt", folder, tmp_path / "data.tsv", tmp_path / "out"), message)
    assert [path.name for path in tmp_path.iterdir()] == ["data.tsv"]


def test_bad_calls(folder, data, tmp_path):  # noqa: F811
    (tmp_path / "mine.training").mkdir()
    (tmp_path / "mine.training" / "notes.txt").write_text("kept")
    (tmp_path / "bytes.tsv").write_bytes(b"\xff\xfe\x00a")
    for arguments, message in (
        ((folder, data, tmp_path), "exists"),
        ((tmp_path, data, tmp_path / "out"), "holds no config.json"),
        ((folder, tmp_path / "none.tsv", tmp_path / "out"), "none.tsv"),
        ((folder, tmp_path / "bytes.tsv", tmp_path / "out"), "is not text in UTF-8"),
        ((folder, data, tmp_path / "out", "--rule", "dense"), "dense adapts nothing"),
        ((folder, data, tmp_path / "out", "--rule", "octopus"), "octopus"),
        ((folder, data, tmp_path / "out", "--low-rank", "0.3"), "low_rank"),
        ((folder, data, tmp_path / "out", "--only", "nothing"), "where selects none"),
        ((folder, data, tmp_path / "out", "--rate", "nan"), "--rate must be above 0"),
        ((folder, data, tmp_path / "mine"), "is not of nplex adapt"),
    ):
        refused(call("adapt", *arguments), message)
    assert (tmp_path / "mine.training" / "notes.txt").read_text() == "kept"


def test_what_no_file_holds_is_trained_and_saved(folder, data, tmp_path):  # noqa: F811
    from transformers import AutoTokenizer, BertModel

    BertModel.from_pretrained(folder, add_pooling_layer=False).save_pretrained(tmp_path / "bare")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "bare")
    done = ok(call("adapt", tmp_path / "bare", data, tmp_path / "out", "--epochs", 1))
    assert "trained too: bert.pooler.dense.weight, bert.pooler.dense.bias, classifier.weight" in done.stderr
    assert "trained.bert.pooler.dense.weight" in read_tensors(tmp_path / "out" / "adapters.safetensors")[0]
    described = json.loads((tmp_path / "bare" / "config.json").read_text())
    (tmp_path / "bare" / "config.json").write_text(json.dumps(described | {"intermediate_size": 32}))
    refused(call("adapt", tmp_path / "bare", data, tmp_path / "other"), "has another shape in the files")
