"""Healing for the command line: what `nplex convert --heal` does between the conversion and the writing."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nplex.terminal import messages

if TYPE_CHECKING:
    from nplex.pretrained import HealingReport

BATCH = 16  # smaller ones with more steps reach more in the same time


class Healer:
    """Healing on the texts of a file, with a checkpoint beside what is written; looks at its input at once."""

    def __init__(self, model: Path, out: Path, texts: Path, steps: tuple[int, int] | None) -> None:
        from accelerate import Accelerator

        from nplex.model_folder import read_texts
        from nplex.pretrained import Healing

        self._settings = Healing(group_steps=steps[0], steps=steps[1]) if steps else Healing()
        self._batches = read_texts(model, texts, BATCH)
        self._accelerator = Accelerator()
        self._folder = out.with_name(f"{out.name}.healing")

    def heal(self, model: Any, teacher: Any) -> "HealingReport":
        """Heals a converted model on what device there is; goes on where it was stopped."""
        from nplex.pretrained import heal

        accelerator = self._accelerator
        messages.print(f"healing on {accelerator.device}; {self._folder} holds the checkpoint", soft_wrap=True)
        try:
            report = heal(
                model, teacher.to(accelerator.device), self._batches, self._settings, folder=self._folder,
                accelerator=accelerator,
            )  # fmt: skip
        except KeyboardInterrupt:
            messages.print("the same command goes on from the last checkpoint", soft_wrap=True)
            raise
        model.to("cpu")
        return report

    def clear(self) -> None:
        """Deletes the checkpoint."""
        from nplex.pretrained.healing_loop import FILE

        (self._folder / FILE).unlink(missing_ok=True)
        with suppress(OSError):  # it holds something else
            self._folder.rmdir()
