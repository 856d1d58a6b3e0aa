"""Whole models that test_models.py and test_export.py run over, as data: a new one enters every test there.

`make()` gives a dense model with random weights, of one size and without dropout; `inputs()` gives what its forward
takes by name; its first dimension is the batch. Models of transformers are made from configs, without a network.
"""

import os
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import nplex
from nplex.nn import LearnedRule

os.environ["HF_HUB_OFFLINE"] = "1"
WORDS, CLASSES = 60, 5


class Model(NamedTuple):
    """A model, what it takes, and which of its layers are converted."""

    make: Any
    inputs: Any
    where: Any = nplex.sensible
    auto: str = ""  # transformers' class that loads it


class Tagger(nn.Module):
    """A class for each word of sentences of several lengths."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(WORDS, 32, padding_idx=0)
        self.net = nn.LSTM(32, 32, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(64, CLASSES)

    def forward(self, words, lengths):
        packed = pack_padded_sequence(self.words(words), lengths, batch_first=True, enforce_sorted=False)
        return self.head(pad_packed_sequence(self.net(packed)[0], batch_first=True)[0])


class Translator(nn.Module):
    """Torch's transformer between embeddings and a head."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, 64), nn.Embedding(16, 64)
        self.net = nn.Transformer(64, 4, 1, 1, 96, 0.0, batch_first=True)
        self.head = nn.Linear(64, WORDS)

    def forward(self, words, target):
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1], dtype=self.head.weight.dtype)
        return self.head(self.net(self._embed(words), self._embed(target), tgt_mask=mask, tgt_is_causal=True))

    def _embed(self, words):
        return self.words(words) + self.places(torch.arange(words.shape[1], device=words.device))


class Classifier(nn.Module):
    """Torch's transformer encoder, with padding."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(WORDS, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 96, 0.0, batch_first=True, norm_first=True)
        self.net = nn.TransformerEncoder(layer, 2, nn.LayerNorm(64), enable_nested_tensor=False)
        self.head = nn.Linear(64, CLASSES)

    def forward(self, words):
        return self.head(self.net(self.words(words), src_key_padding_mask=words == 0).mean(1))


class Images(nn.Module):
    """A small residual net: convolutions, one of them in groups, and batch normalisation."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.wide = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.grouped = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, groups=2), nn.BatchNorm2d(32), nn.ReLU())
        self.head = nn.Linear(32, CLASSES)

    def forward(self, images):
        x = self.wide(self.stem(images))
        return self.head((x + self.grouped(x)).mean((-2, -1)))


def _of_transformers(model, config, /, **sizes):
    import transformers

    return getattr(transformers, model)(getattr(transformers, config)(**sizes))


TEXT = {
    "vocab_size": WORDS, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 96, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "use_cache": False,
}  # fmt: skip


def bert():
    sizes = TEXT | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_labels": CLASSES}
    return _of_transformers("BertForSequenceClassification", "BertConfig", **sizes, max_position_embeddings=16)


def gpt2():
    sizes = {"vocab_size": WORDS, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 16, "use_cache": False}
    dropouts = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return _of_transformers("GPT2LMHeadModel", "GPT2Config", **sizes, **dropouts, bos_token_id=1, eos_token_id=2)


def t5():
    sizes = {"vocab_size": WORDS, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 1, "num_heads": 4}
    tokens = {"decoder_start_token_id": 0, "eos_token_id": 2, "pad_token_id": 0, "use_cache": False}
    return _of_transformers("T5ForConditionalGeneration", "T5Config", **sizes, **tokens, dropout_rate=0.0)


def llama():
    return _of_transformers("LlamaForCausalLM", "LlamaConfig", **TEXT, num_key_value_heads=2)


def resnet():
    sizes = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 2], "layer_type": "basic"}
    return _of_transformers("ResNetForImageClassification", "ResNetConfig", **sizes, num_labels=CLASSES)


def vit():
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    image = {"image_size": 16, "patch_size": 8, "num_channels": 3, "num_labels": CLASSES}
    dropouts = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return _of_transformers("ViTForImageClassification", "ViTConfig", **sizes, **image, **dropouts)


def _words(*shape):
    return torch.randint(3, WORDS, shape, generator=torch.Generator().manual_seed(1))


def _padded(*shape):
    words = _words(*shape)
    words[0, -3:] = 0
    return words


def _images(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def _sentences():
    words = _padded(3, 9)
    return {"input_ids": words, "attention_mask": (words != 0).long()}


MODELS = {
    "bert": Model(bert, _sentences, auto="AutoModelForSequenceClassification"),
    "gpt2": Model(gpt2, lambda: {"input_ids": _words(3, 9)}, auto="AutoModelForCausalLM"),
    "t5": Model(t5, lambda: _sentences() | {"decoder_input_ids": _words(3, 6)}, auto="AutoModelForSeq2SeqLM"),
    "llama": Model(llama, lambda: {"input_ids": _words(3, 9)}, auto="AutoModelForCausalLM"),
    "resnet": Model(resnet, lambda: {"pixel_values": _images(3, 3, 32, 32)}, auto="AutoModelForImageClassification"),
    "vit": Model(vit, lambda: {"pixel_values": _images(3, 3, 16, 16)}, auto="AutoModelForImageClassification"),
    "tagger": Model(
        Tagger, lambda: {"words": _padded(3, 9), "lengths": torch.tensor([6, 9, 7])}, nplex.only("words", "net")
    ),
    "translator": Model(Translator, lambda: {"words": _words(3, 9), "target": _words(3, 6)}),
    "encoder": Model(Classifier, lambda: {"words": _padded(3, 9)}),
    "images": Model(Images, lambda: {"images": _images(3, 3, 12, 12)}),
}
VARIANTS = {
    "own rules": lambda: {"rule": 4},
    "shared, rank 7": lambda: {"rule": LearnedRule(4, rank=7), "shared": True},
    "nearest": lambda: {"rule": 4, "weights": "nearest"},
}


def dense(name):
    """The same dense model at each call."""
    torch.manual_seed(0)
    return MODELS[name].make()


def converted(name, variant="own rules"):
    """A converted model and the report."""
    model = dense(name)
    return model, nplex.convert_(model, where=MODELS[name].where, **VARIANTS[variant]())


def logits(model, inputs):
    """What the model gives, transformers' models by name."""
    made = model(**inputs)
    return made if isinstance(made, torch.Tensor) else made.logits


def in_double(inputs):
    """Inputs for a model in float64."""
    return {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
