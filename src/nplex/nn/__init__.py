"""Layers with torch.nn's names and signatures, and a rule."""

from nplex.nn.attention import MultiheadAttention
from nplex.nn.bilinear import Bilinear
from nplex.nn.cells import GRUCell, LSTMCell, RNNCell
from nplex.nn.conv import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from nplex.nn.embedding import Embedding, EmbeddingBag
from nplex.nn.linear import Linear
from nplex.nn.low_rank import LowRankLinear
from nplex.nn.recurrent import GRU, LSTM, RNN
from nplex.nn.rule import FixedRule, LearnedRule, Rule
from nplex.nn.sharing import missing_rules, share
from nplex.nn.transformer import (
    Transformer,
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
)
from nplex.nn.weight_cache import cached
from nplex.nn.written import as_rule

__all__ = [
    "Linear",
    "LowRankLinear",
    "Bilinear",
    "Embedding",
    "EmbeddingBag",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "RNN",
    "LSTM",
    "GRU",
    "RNNCell",
    "LSTMCell",
    "GRUCell",
    "MultiheadAttention",
    "TransformerEncoderLayer",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerDecoder",
    "Transformer",
    "Rule",
    "LearnedRule",
    "FixedRule",
    "as_rule",
    "share",
    "missing_rules",
    "cached",
]
