"""Verbs about models on disk: preview, convert, fold, count."""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.progress import track

from nplex.cli.healing import Healer
from nplex.terminal import TWIN, messages, refuse, refusing

if TYPE_CHECKING:
    from nplex.convert import Report

Model = Annotated[
    Path, typer.Argument(help="A folder that transformers wrote, or a file that nplex.save wrote.", metavar="MODEL")
]
Out = Annotated[Path, typer.Argument(help="What is written: a folder, or a file, as MODEL is.", metavar="OUT")]
RuleOption = Annotated[
    list[str],
    typer.Option(
        "--rule", metavar="RULE...",
        help=f"{TWIN}, a .json file of n x n x n numbers, low-rank:128, low-rank:0.5. Or several for parts of the "
        "model: 'encoder.*=4' 'decoder.*=quaternion' '*=dense'.",
    ),
]  # fmt: skip
Only = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="NAME...", help="Layers of this name, or as 'encoder.*'."),
]
AllBut = Annotated[list[str] | None, typer.Option("--all-but", metavar="NAME...", help="Layers but these.")]
Everything = Annotated[bool, typer.Option("--everything", help="Embeddings, output heads and routers too.")]
Shared = Annotated[bool, typer.Option("--shared", help="One rule for all converted layers.")]
Calibrate = Annotated[
    Path | None,
    typer.Option(
        metavar="TEXTS",
        help="A file of texts, one a line, some hundred: nearest are then the outputs on them. For a folder with "
        "a tokenizer.",
    ),
]
Heal = Annotated[
    Path | None,
    typer.Option(metavar="TEXTS", help="A file of texts, one a line: train on them to give what the model gave."),
]
HealSteps = Annotated[
    tuple[int, int] | None,
    typer.Option(help="Steps of healing, 16 texts each: of groups of blocks and of the whole model, as 400 300."),
]
Full = Annotated[bool, typer.Option("--full", help="Print a row for each layer, however wide.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Force = Annotated[bool, typer.Option("--force", help="Replace OUT, if nplex wrote it.")]


def preview(
    model: Model,
    rule: RuleOption,
    only: Only = None,
    all_but: AllBut = None,
    everything: Everything = False,
    shared: Shared = False,
    full: Full = False,
    as_json: Json = False,
) -> None:
    """Print what a conversion would change, and why it skips a layer. Reads no weights, writes nothing.

    Examples:
      nplex preview my/bert --rule 4

      nplex preview my/t5 --rule 'encoder.*=4' 'decoder.*=4:7' --json
    """
    with refusing():
        from nplex.convert import preview as look
        from nplex.stored import open_model

        found = open_model(model, weights=False, tell=_tell)
        report = look(found, _rules(rule), **layers(only, all_but, everything), shared=shared)
    _print(report, as_json, full)


def convert(  # noqa: PLR0913 - options of the command line
    model: Model,
    out: Out,
    rule: RuleOption,
    only: Only = None,
    all_but: AllBut = None,
    everything: Everything = False,
    shared: Shared = False,
    weights: Annotated[
        Literal["nearest", "fresh"],
        typer.Option(help="Start from the nearest to the model's own weights, or from fresh ones; then train."),
    ] = "nearest",
    calibrate: Calibrate = None,
    heal: Heal = None,
    heal_steps: HealSteps = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Convert a model and write it; then train it. Embeddings and output heads stay dense.

    Examples:
      nplex convert my/bert my/bert-4 --rule 4

      nplex convert my/bert my/bert-half --rule low-rank:0.5 --calibrate texts.txt

      nplex convert my/bert my/bert-2 --rule 2 --calibrate texts.txt --heal texts.txt

      nplex convert model.safetensors smaller.safetensors --rule 4 --only 'layers.*'
    """
    with refusing():
        from nplex.stored import check_out

        chosen = {"rule": _rules(rule), **layers(only, all_but, everything), "shared": shared}
        check_out(model, out, force=force)
        if calibrate is not None and weights == "fresh":
            refuse("--calibrate is for --weights nearest: fresh weights know nothing of texts")
        if heal_steps and not heal:
            refuse("--heal-steps are of --heal; give it texts, as --heal texts.txt")
        healer = Healer(model, out, heal, heal_steps) if heal else None
        report = _convert(model, out, chosen | {"weights": weights}, calibrate, healer, force=force)
    _print(report, as_json)
    advice = "Compare it with the original" if healer else "Train it"
    _tell(f"{out} is written. {advice} before use: converted weights only approximate the originals.")


def _convert(
    model: Path, out: Path, chosen: dict[str, Any], calibrate: Path | None, healer: Healer | None, *, force: bool
) -> "Report":
    """Reads, converts, heals and writes."""
    from nplex.convert import convert_
    from nplex.model_folder import read_texts
    from nplex.stored import open_model, write_model

    fresh: dict[str, Any] = chosen | {"weights": "fresh"}
    convert_(open_model(model, weights=False, tell=_tell), **fresh)  # refuses at once
    batches = None if calibrate is None else read_texts(model, calibrate)
    with _step(f"reading {model}"):
        found = open_model(model, weights=True)
    teacher = copy.deepcopy(found) if healer else found
    if batches is not None:
        batches = track(batches, "calibrating", console=messages)
    with _step("converting") if batches is None else nullcontext():
        report = convert_(found, **chosen, calibration=batches)
    if healer:
        _tell(str(healer.heal(found, teacher)))
    with _step(f"writing {out}"):
        write_model(found, model, out, force=force, tell=_tell)
    if healer:
        healer.clear()
    return report


def fold(model: Model, out: Out, force: Force = False, as_json: Json = False) -> None:
    """Write a converted model with plain torch layers of the same outputs, for any tool and server.

    Examples:
      nplex fold my/bert-4 my/bert-4-dense
    """
    with refusing():
        from nplex.convert import fold_
        from nplex.stored import check_out, open_model, write_model

        check_out(model, out, force=force)
        fold_(open_model(model, weights=False, tell=_tell))  # refuses at once
        with _step(f"reading {model}"):
            found = open_model(model, weights=True)
        report = fold_(found)
        with _step(f"writing {out}"):
            write_model(found, model, out, force=force, tell=_tell)
    _print(report, as_json)
    messages.print(f"{out} is written", soft_wrap=True)


def count(model: Model, as_json: Json = False) -> None:
    """Count the parameters of a model, and those that it would have with dense layers.

    Examples:
      nplex count my/bert-4 --json
    """
    with refusing():
        from nplex.counting import count as counted
        from nplex.stored import open_model

        found = counted(open_model(model, weights=False, tell=_tell))
    _print(found, as_json)


def _rules(texts: list[str]) -> str | dict[str, str]:
    """One rule, or a mapping from patterns to rules."""
    pairs = [text.rpartition("=") for text in texts]
    if len(texts) == 1 and not pairs[0][1]:
        return texts[0]
    if bare := [text for text, (pattern, _, _) in zip(texts, pairs, strict=True) if not pattern]:
        refuse(f"several rules need patterns, as --rule 'encoder.*=4' '*=2'; {bare[0]} has none")
    return {pattern: rule for pattern, _, rule in pairs}


def layers(only: list[str] | None, all_but: list[str] | None, everything: bool) -> dict[str, Any]:
    """Which layers, as convert_ takes it."""
    from nplex import convert

    if only and all_but:
        refuse("--only and --all-but exclude each other: give one of them")
    return {"where": convert.all_but(all_but) if all_but else only, "everything": everything}


def _tell(text: str) -> None:
    messages.print(text, soft_wrap=True)


@contextmanager
def _step(what: str) -> Iterator[None]:
    """Says on stderr what takes long."""
    with messages.status(what):
        if not messages.is_terminal:
            messages.print(what, soft_wrap=True)
        yield


def _print(report: Any, as_json: bool, full: bool = False) -> None:
    """A report on stdout, for people or programs."""
    if not as_json:
        report = replace(report, done=False) if hasattr(report, "done") else report  # no optimizer is at hand here
        print(report.full if full else report)
        return
    extra = {name: getattr(report, name) for name in ("total_after",) if hasattr(report, name)}
    print(json.dumps(asdict(report) | extra, indent=1))
