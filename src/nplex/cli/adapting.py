"""nplex adapt: an adapter and a head learn to label texts, beside a frozen model of transformers."""

import json
import random
import shutil
import zlib
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from nplex.cli.models import Json, Only
from nplex.files import read_json, write_json
from nplex.terminal import TWIN, messages, refuse, refusing

ORDER = "adapt.json"  # in the folder of the checkpoint: whose it is
FEWEST, TESTED = 10, 10  # labelled texts at least; every tenth is for testing
Example = tuple[list[str], str]  # a text or two, and their label


def adapt(  # noqa: PLR0913 - options of the command line
    model: Annotated[Path, typer.Argument(help="A folder that transformers wrote.", metavar="MODEL")],
    data: Annotated[
        Path, typer.Argument(help="A file of lines TEXT<tab>LABEL or TEXT<tab>TEXT<tab>LABEL.", metavar="DATA")
    ],
    out: Annotated[Path, typer.Argument(help="The folder that is written: adapter, head, labels.", metavar="OUT")],
    rule: Annotated[str, typer.Option(help=f"{TWIN}.")] = "4",
    low_rank: Annotated[float, typer.Option(help="A delta has so many numbers times d_in + d_out.")] = 1.0,
    only: Only = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the texts.")] = 3,
    rate: Annotated[float, typer.Option(help="The learning rate, of AdamW.")] = 3e-3,
    batch: Annotated[int, typer.Option(min=1, help="Texts in a batch.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Of first values, order, and which texts test.")] = 0,
    as_json: Json = False,
) -> None:
    """Train an adapter on labelled texts; the model stays as it is. Every tenth text, at random, only tests.

    Examples:
      nplex adapt my/minilm reviews.tsv my/reviews

      nplex adapt my/minilm pairs.tsv my/entailment --rule 8 --low-rank 2 --epochs 5
    """
    with refusing():
        if out.exists():
            refuse(f"{out} exists; name another path, or delete it")
        if not rate > 0:
            refuse(f"--rate must be above 0, got {rate}")
        options = {"num_train_epochs": epochs, "learning_rate": rate, "per_device_train_batch_size": batch}
        added = {"rule": rule, "low_rank": int(low_rank) if low_rank.is_integer() else low_rank, "only": only}
        result = _adapted(model, data, out, added, options | {"seed": seed})
    if as_json:
        print(json.dumps(result, indent=1))
        return
    print(
        f"accuracy {100 * result['accuracy']:.1f} % of {result['tested']:,} texts "
        f"(the most frequent label: {100 * result['most_frequent']:.1f} %)"
    )
    messages.print(
        f"{out} is written: AutoModelForSequenceClassification.from_pretrained({str(model)!r}, "
        f"config=AutoConfig.from_pretrained({str(out)!r})), then nplex.adapters.load(model, {str(out)!r})",
        soft_wrap=True,
    )


def _adapted(model: Path, data: Path, out: Path, added: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Adds, trains and writes; the figures."""
    from nplex import adapters, convert

    rule = convert.parse_rule(added["rule"])
    if rule is None:
        raise ValueError("dense adapts nothing; give a rule, as --rule 4")
    examples, folder = labelled(data), out.with_name(f"{out.name}.training")
    order = {"model": str(model), "data": zlib.crc32(data.read_bytes()), **added, **options}
    before = _checkpoint(folder, order)
    random.Random(options["seed"]).shuffle(examples)
    labels = sorted({label for _, label in examples})
    net, tokenizer, fresh = _opened(model, labels, options["seed"])
    where = convert.only(*added["only"]) if added["only"] else None
    report = adapters.add_(net, rule, low_rank=added["low_rank"], where=where)
    body = f"{net.base_model_prefix}."
    trained = {name: p for name, p in net.named_parameters() if name in fresh or not name.startswith(body)}
    for parameter in trained.values():
        parameter.requires_grad_(True)
    messages.print(f"{replace(report, frozen=False)}\ntrained too: {', '.join(trained)}", soft_wrap=True)
    tested = len(examples) // TESTED
    parts = [_encoded(part, tokenizer, labels) for part in (examples[tested:], examples[:tested])]
    write_json(folder / ORDER, order)
    accuracy = _trained(net, tokenizer, parts, folder, options | {"before": before})
    adapters.save(net.cpu(), out)
    net.config.save_pretrained(out)
    _clear(folder)
    often = Counter(label for _, label in examples[:tested]).most_common(1)[0][1]
    return {
        "accuracy": accuracy, "most_frequent": often / tested, "tested": tested, "trained": len(parts[0]),
        "labels": labels, "parameters": report.parameters,
    }  # fmt: skip


def labelled(path: Path) -> list[Example]:
    """The lines of a file: one text, or two, and a label behind the last tab.

    Raises:
        ValueError: a line has no label or another number of texts than the first, or there are too few lines or one
            label alone; names the line.
        OSError: the file cannot be read.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error.reason} at byte {error.start}") from None
    found: list[Example] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        *texts, label = (cell.strip() for cell in line.split("\t"))
        if len(texts) not in (1, 2) or not all((*texts, label)) or (found and len(texts) != len(found[0][0])):
            raise ValueError(
                f"{path}, line {number}: expected TEXT<tab>LABEL or TEXT<tab>TEXT<tab>LABEL, the same in all lines; "
                f"got {line!r:.60}"
            )
        found.append((texts, label))
    if len(found) < FEWEST or len({label for _, label in found}) < 2:
        raise ValueError(
            f"{path} holds {len(found)} labelled texts; expected {FEWEST} or more, of two labels or more"
        )
    return found


def _opened(path: Path, labels: list[str], seed: int) -> tuple[Any, Any, set[str]]:
    """The model with a head for these labels, its tokenizer, and the names of parameters that no file holds.

    Raises:
        ValueError: it cannot be opened, or a tensor of its body has another shape in the files.
    """
    if not (path / "config.json").is_file():
        raise ValueError(f"{path} holds no config.json; expected a folder that save_pretrained wrote")
    import transformers

    import nplex.huggingface  # noqa: F401 - transformers reads our models after it
    from nplex.model_folder import naming

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    transformers.set_seed(seed)
    with naming(path, "cannot be opened as a classifier of texts"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, **options)
        net, found = transformers.AutoModelForSequenceClassification.from_pretrained(
            path, **options, **names, ignore_mismatched_sizes=True, output_loading_info=True
        )
        others = sorted(each[0] for each in found["mismatched_keys"])
        if others := [name for name in others if name.startswith(f"{net.base_model_prefix}.")]:
            raise ValueError(f"{others[0]} has another shape in the files than config.json says")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    net.config.pad_token_id = tokenizer.pad_token_id
    return net, tokenizer, set(found["missing_keys"])


def _encoded(examples: list[Example], tokenizer: Any, labels: list[str]) -> list[dict[str, Any]]:
    """Tokens and the number of the label."""
    return [
        {
            **tokenizer(*texts, truncation=True, max_length=min(tokenizer.model_max_length, 512)),
            "labels": labels.index(label),
        }
        for texts, label in examples
    ]


def _checkpoint(folder: Path, order: dict[str, Any]) -> str | None:
    """The last checkpoint of the same command, None where there is none.

    Raises:
        ValueError: the folder is another command's, or not of this program.
    """
    from transformers.trainer_utils import get_last_checkpoint

    if not folder.exists():
        return None
    if not (folder / ORDER).is_file():
        raise ValueError(
            f"{folder} is not of nplex adapt, which keeps its checkpoint there; move it, or name another OUT"
        )
    if others := [key for key, value in read_json(folder / ORDER).items() if order.get(key) != value]:
        raise ValueError(f"{folder} holds the checkpoint of another {others[0]}; delete it to start anew")
    return get_last_checkpoint(str(folder))


def _trained(net: Any, tokenizer: Any, parts: list[Any], folder: Path, options: dict[str, Any]) -> float:
    """Trains, from a checkpoint if there is one; the accuracy on the second part."""
    import torch
    from transformers import DataCollatorWithPadding, PrinterCallback, Trainer, TrainingArguments

    before = options.pop("before")
    arguments = TrainingArguments(
        output_dir=str(folder), report_to="none", weight_decay=0.0, save_strategy="epoch",
        save_total_limit=1, eval_strategy="epoch", per_device_eval_batch_size=64, logging_strategy="epoch",
        disable_tqdm=not messages.is_terminal, dataloader_pin_memory=torch.cuda.is_available(), **options,
    )  # fmt: skip

    def measure(found: Any) -> dict[str, float]:
        return {"accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())}

    collate = DataCollatorWithPadding(tokenizer)
    trainer = Trainer(net, arguments, collate, *parts, compute_metrics=measure)
    trainer.remove_callback(PrinterCallback)  # it prints among the results
    messages.print(f"training; {folder} holds the checkpoint of the last epoch", soft_wrap=True)
    trainer.train(resume_from_checkpoint=before)
    return trainer.evaluate()["eval_accuracy"]


def _clear(folder: Path) -> None:
    """Deletes what this program wrote for going on."""
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)
    (folder / ORDER).unlink(missing_ok=True)
    with suppress(OSError):  # it holds something else
        folder.rmdir()
