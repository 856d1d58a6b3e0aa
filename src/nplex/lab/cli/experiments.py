"""Verbs that train: compare, run."""

from pathlib import Path
from typing import Annotated

import typer

from nplex.lab.cli import training
from nplex.lab.run_folder import COMPARISON, RunFolder
from nplex.terminal import messages, print_table


def compare(  # noqa: PLR0913 - options of the command line
    task: training.TaskName,
    rule: Annotated[list[str], typer.Option(help=f"Any number of: {training.RULE}.", metavar="RULE...")],
    seed: Annotated[
        list[int] | None, typer.Option(help="One or more; each rule runs with each.", metavar="SEED...")
    ] = None,
    size: training.Size = "small",
    sets: training.SetOption = None,
    settings: training.SettingsOption = None,
    data: training.DataOption = None,
    shared: training.Shared = False,
    epochs: training.Epochs = None,
    out: training.Out = None,
    resume: training.Resume = False,
    force: training.Force = False,
) -> None:
    """Train a model with each rule on the same data and print what was saved and what it cost.

    Writes into the run folder: compare.json, compare.md, compare.png, and for each rule and seed a folder with
    settings.json, result.json, log.jsonl, vocabulary.json and model.safetensors. Ctrl-C stops after the running
    step; --resume resumes bit for bit.

    Examples:
      nplex compare agreement --rule dense 2 4 8

      nplex compare agreement --rule dense quaternion 4 4:7 4:4 --seed 0 1 2 --out runs/rules

      nplex compare my_module:my_function --rule dense 4 8

      nplex compare inference --rule dense 5 --set sick --data my/folder --epochs 3

      nplex compare agreement --rule dense own.json --set learning_rate=2e-3 --set layers=4 --settings my.toml
    """
    seeds = sorted(set(seed or [0]))
    folder = training.folder_of(out, (task, "compare"))
    run_folder = RunFolder(folder, resume, force)
    training.check_run(rule, seeds, run_folder)
    options = training.Options(size, sets, settings, data, epochs, shared)
    recipe, loaded = training.prepare(task, rule, options, run_folder)
    from nplex.files import write_text
    from nplex.lab import experiment, plot

    with training.interruptible(training.resuming(run_folder)), training.progress() as report:
        summary = experiment.compare(recipe, rule, seeds, loaded, folder, report)
    write_text(folder / COMPARISON[1], summary.markdown())
    plot.comparison(summary, folder / COMPARISON[2])
    print_table(summary.table())
    messages.print(f"tables, figure and models are in {folder}", soft_wrap=True)


def run(  # noqa: PLR0913 - options of the command line
    task: training.TaskName,
    rule: Annotated[str, typer.Option(help=f"One of: {training.RULE}.", metavar="RULE")] = "4",
    seed: Annotated[int, typer.Option(help="Of first values and of the order of examples.")] = 0,
    size: training.Size = "small",
    sets: training.SetOption = None,
    settings: training.SettingsOption = None,
    data: training.DataOption = None,
    shared: training.Shared = False,
    epochs: training.Epochs = None,
    out: training.Out = None,
    resume: training.Resume = False,
    force: training.Force = False,
) -> None:
    """Train one model and print its result. Under torchrun, each process takes its share of every batch.

    Examples:
      nplex run agreement --rule 4

      nplex run agreement --rule quaternion --seed 1 --out runs/quaternion

      nplex run translation --rule 4:7 --set multi30k --data my/folder --out runs/fast --resume

      torchrun --nproc-per-node 2 -m nplex run agreement --rule 4 --out runs/two
    """
    folder = training.folder_of(out, (task, Path(rule).name, f"seed{seed}"))
    run_folder = RunFolder(folder, resume, force)
    training.check_run([rule], [seed], run_folder)
    options = training.Options(size, sets, settings, data, epochs, shared)
    recipe, loaded = training.prepare(task, [rule], options, run_folder)
    from nplex.lab import experiment
    from nplex.lab.summary import summarise
    from nplex.lab.train import main_process

    with training.interruptible(training.resuming(run_folder)), training.progress() as report:
        result = experiment.run(recipe, loaded, seed, folder, report)
    if main_process():
        print_table(summarise([result], recipe.baseline(loaded)).table())
        messages.print(f"result and model are in {folder}", soft_wrap=True)
