"""Texts of a file as batches of token numbers, for the verbs that run a model of transformers."""

from pathlib import Path
from typing import Any

from nplex.model_folder import naming

__all__ = ["batches_of"]

BATCH, LONGEST = 32, 128


def batches_of(model: Path, texts: Path) -> list[dict[str, Any]]:
    """The lines of a file in batches of 32 of like length, by the tokenizer of a folder; 128 tokens of each at most.

    Empty lines are left out. Batches keep the order in which their first texts stand in the file.

    Args:
        model: a folder that transformers wrote.
        texts: a file of UTF-8 text.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the model is a file and holds no code and no tokenizer, or the file has no text; names it.
    """
    if not model.is_dir():
        raise ValueError(f"{model} is a file of weights alone and cannot run texts; name a folder of transformers")
    try:
        lines = [line.strip() for line in texts.read_text("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{texts} is not UTF-8 text ({error}); name a file with one text a line") from None
    if not lines:
        raise ValueError(f"{texts} holds no text; expected one a line")
    from transformers import AutoTokenizer

    with naming(model, "has no tokenizer that can be read"):
        tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    order = sorted(range(len(lines)), key=lambda i: len(lines[i]))
    groups = sorted((order[i : i + BATCH] for i in range(0, len(order), BATCH)), key=min)
    options = {"padding": True, "truncation": True, "max_length": LONGEST, "return_tensors": "pt"}
    return [dict(tokenizer([lines[i] for i in group], **options)) for group in groups]
