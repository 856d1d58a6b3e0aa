"""What happened, for people and programs: log.jsonl, and TensorBoard where it is installed."""

import json
from pathlib import Path
from typing import Any

from nplex.files import write_text
from nplex.lab.checked import COUNT, NUMBER, Kind, are_numbers, sealed, unsealed, wrong
from nplex.lab.run_folder import LOG, TENSORBOARD
from nplex.lab.train.processes import main_process
from nplex.lab.train.state import State

EVERY = 50
KINDS: dict[str, Kind] = {"step": COUNT, "epoch": COUNT, "loss": NUMBER}


class Log:
    """A line each 50 steps and after each pass: step, epoch, loss, rate, tokens a second, scores.

    Made again after a stop, it drops what was written past the checkpoint: no line is lost, none stands twice.
    Of several processes the first one logs.
    """

    def __init__(self, folder: Path, state: State) -> None:
        self._path = folder / LOG
        self._logs = main_process()
        if self._logs:
            self._cut(state.step)
        self._board = _board(folder / TENSORBOARD, state.step) if self._logs else None

    def step(self, state: State, loss: float, rate: float) -> None:
        """Logs an update."""
        speed = state.tokens / max(state.seconds, 1e-9)
        values = {"loss": loss, "rate": rate, "tokens_per_second": round(speed, 1)}
        self._write({"step": state.step, "epoch": state.epoch, **values}, values, state.step)

    def epoch(self, state: State) -> None:
        """Logs the scores after a pass."""
        last = state.history[-1]
        scores = {f"dev/{name}": value for name, value in last.items() if name not in ("epoch", "loss")}
        self._write({"step": state.step, **last}, {"epoch loss": last["loss"], **scores}, state.step)

    def close(self) -> None:
        """Ends TensorBoard's file."""
        if self._board is not None:
            self._board.close()

    def _write(self, line: dict, values: dict[str, float], step: int) -> None:
        if not self._logs:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(sealed(line)) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def _cut(self, step: int) -> None:
        """Drops lines past a step, and a last one that was cut off."""
        if self._path.exists():
            kept = [line for line in lines(self._path) if line["step"] <= step]
            write_text(self._path, "".join(json.dumps(sealed(line)) + "\n" for line in kept))


def lines(path: Path) -> list[dict]:
    """The lines of a log, without a last one that was cut off; none where there is no log.

    Raises:
        ValueError: a line is none that `Log` wrote; names it, and what to do.
    """
    found: list[dict] = []
    value: dict = {}
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1] if path.exists() else [], 1):
        try:
            value = json.loads(line)
            if not are_numbers(value):
                raise ValueError("expected numbers under their names")
            found.append(unsealed(value))
            if reason := wrong(value, KINDS):
                raise ValueError(reason)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path}, line {number}, is damaged ({error}); delete the file to go on without its lines"
            ) from None
    return found


def _board(folder: Path, step: int) -> Any:
    """TensorBoard's writer, or None where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)
