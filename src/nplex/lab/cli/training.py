"""What the verbs that train share: options, checks before any work, progress, interruptions."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nplex.lab.recipes import tasks
from nplex.lab.recipes.recipe import Data, Recipe
from nplex.lab.recipes.settings import changed, names, settings_from
from nplex.lab.run_folder import RunFolder
from nplex.lab.scored import Scored
from nplex.terminal import STOPPED, TWIN, messages, own_code, refuse, refusing

if TYPE_CHECKING:
    from nplex.lab.train import OnStep, State

RULE = f"dense, {TWIN}; or own.json, the table of an own algebra"
NAMES = ", ".join(sorted({name for task in tasks.TASKS.values() for name in names(type(task()))}))
SETTING = f"A setting, any number of times; or a public set in the folder, as sick. Settings: {NAMES}."
TASK = f"{', '.join(tasks.TASKS)}; or your my_module:my_function of a rule."
TaskName = Annotated[str, typer.Argument(metavar="TASK", help=TASK, autocompletion=lambda: [*tasks.TASKS])]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="DIR",
        help="A folder with train, dev and test, as docs/tasks.md says for each task. "
        "Without it the built-in set, which agreement, style and language have.",
    ),
]  # fmt: skip
Size = Annotated[str, typer.Option(help="small, for two cores; or paper, the paper's size.", metavar="SIZE")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help=SETTING)]
SettingsOption = Annotated[
    Path | None,
    typer.Option("--settings", metavar="FILE", help="A TOML file with settings, one a line; --set counts more."),
]
Shared = Annotated[bool, typer.Option("--shared", help="One rule for all converted layers.")]
Epochs = Annotated[
    int | None, typer.Option(min=1, help="Passes over the training examples; the recipe's own if left out.")
]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The run folder; runs/... if left out.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what the run folder holds.")]
Force = Annotated[bool, typer.Option("--force", help="Delete what the run folder holds and start anew.")]


def folder_of(out: Path | None, names: Sequence[str]) -> Path:
    """The run folder that was given, or one below runs that is called after what runs in it."""
    return out or Path("runs") / "-".join(re.sub(r"[^\w(),.+-]+", "-", name) for name in names)


def check_run(rules: list[str], seeds: list[int], run_folder: RunFolder) -> None:
    """Refuses options that exclude each other or mean nothing."""
    if run_folder.resume and run_folder.force:
        refuse("--resume goes on with a folder and --force deletes it: give one of them")
    if len(set(rules)) < len(rules):
        refuse(f"each rule may be given once, got {' '.join(rules)}")
    if any(not 0 <= seed < 2**31 for seed in seeds):
        refuse(f"a seed is a number from 0 to {2**31 - 1}, got {' '.join(map(str, seeds))}")


@dataclass(frozen=True)
class Options:
    """How a task is trained, as the command line says it."""

    size: str = "small"
    sets: Sequence[str] | None = None
    settings: Path | None = None
    data: Path | None = None
    epochs: int | None = None
    shared: bool = False

    def given(self) -> list[str]:
        """The options that are not as they are by default."""
        every = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
        return ["--set" if name == "sets" else f"--{name}" for name in every]

    def values(self) -> dict[str, Any]:
        """All settings, by name; of the file those that no option gives."""
        found = settings_from(self.settings, [text for text in self.sets or () if "=" in text])
        if self.epochs is not None and "epochs" in found:
            raise ValueError("epochs is given twice: by --epochs and as a setting")
        return found | ({} if self.epochs is None else {"epochs": self.epochs})

    def public_set(self) -> str:
        """The public set that is read."""
        found = [text for text in self.sets or () if "=" not in text]
        if len(found) > 1:
            raise ValueError(f"expected one public set, or NAME=VALUE; got {' '.join(found)}")
        return "".join(found)


def prepare(task: str, rules: Sequence[str], options: Options, run_folder: RunFolder) -> tuple[Recipe | Scored, Data]:
    """What is trained with the first of some rules, and its data; tells first what is wrong."""
    with refusing():
        import accelerate  # noqa: F401, RUF100 - its absence is told before any work

        from nplex.lab.train import join, main_process, restarted

        join()
        plain = trained(task, rules[0], options)
        recipe, *_ = every = [plain.with_rule(rule) for rule in rules]
        if len({each.rule for each in every}) < len(rules):
            raise ValueError(f"each rule may be given once, got {' '.join(rules)}")
        loaded = recipe.load(options.data)
        if main_process() and not restarted():
            run_folder.open()
    return recipe, loaded


def trained(task: str, rule: str, options: Options) -> Recipe | Scored:
    """The recipe of a task by its name, or of one's own, with all settings; or one's own function.

    Raises:
        ValueError: there is no such task, or an option is wrong or not for it.
    """
    if ":" not in task:
        recipe = tasks.recipe_of(task, rule, size=options.size, set=options.public_set())
    else:
        found = own_code(task)
        if not (isinstance(found, type) and issubclass(found, Recipe)):
            if given := options.given():
                raise ValueError(f"{', '.join(given)} is for tasks, and {task} is a function")
            return Scored(task, found)
        if options.size != Options.size:
            raise ValueError(f"--size is for the tasks of nplex, and {task} is your own: change it by --set")
        try:
            recipe = found(set=options.public_set())
        except TypeError as error:
            raise ValueError(f"{task} cannot be made: {error}") from error
    return changed(replace(recipe, shared=options.shared), options.values())


def resuming(run_folder: RunFolder) -> str:
    """How to go on with a folder after Ctrl-C."""
    return f"to go on: the same command with --resume --out {run_folder.folder}"


@contextmanager
def interruptible(advice: str) -> Iterator[None]:
    """Says how to go on after Ctrl-C, and turns damaged run files into one line."""
    from nplex.lab.train import Interrupted

    try:
        with refusing():
            yield
    except (Interrupted, KeyboardInterrupt):
        messages.print(f"stopped; {advice}", soft_wrap=True)
        raise SystemExit(STOPPED) from None  # typer gives the code of its own Exit for a Ctrl-C that nobody told of


@contextmanager
def progress() -> Iterator["OnStep"]:
    """A bar for each run where stderr is a terminal, else a line for each epoch; of several processes the first's."""
    from rich.progress import Progress, TaskID

    from nplex.lab.train import main_process

    shows, bars = main_process(), dict[str, TaskID]()
    with Progress(console=messages, disable=not (shows and messages.is_terminal)) as shown:

        def report(label: str, state: "State", steps: int) -> None:
            note = f"{state.tokens / max(state.seconds, 1e-9):,.0f} tokens/s"
            if state.history:
                last = state.history[-1]
                scores = "  ".join(f"dev {k} {v:.4g}" for k, v in last.items() if k not in ("epoch", "loss"))
                note = f"loss {last['loss']:.3f}  {scores}  {note}"
            if label not in bars:
                bars[label] = shown.add_task(label, total=steps)
            shown.update(bars[label], completed=state.step, description=f"{label}: {note}")
            if shows and not messages.is_terminal and state.batch == 0:
                messages.print(f"{label}: epoch {state.epoch}, {note}", soft_wrap=True)

        yield report
