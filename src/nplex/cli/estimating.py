"""The verb that says what rules would give a model: nplex estimate."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from nplex.cli.models import AllBut, Everything, Full, Json, Only, layers
from nplex.terminal import TWIN, messages, own_code, print_table, refuse, refusing

Rules = Annotated[
    list[str], typer.Option("--rule", metavar="RULE...", help=f"{TWIN}, a .json file of numbers, low-rank:0.5.")
]


def estimate(  # noqa: PLR0913 - options of the command line
    model: Annotated[
        str, typer.Argument(help="A folder that transformers wrote, or module:function.", metavar="FOLDER|M:F")
    ],
    rule: Rules = ["2", "4", "8", "4:7"],  # noqa: B006 - typer reads it
    batch: Annotated[int, typer.Option(min=1, help="Examples at once, for a folder.")] = 8,
    length: Annotated[int, typer.Option(min=1, help="Tokens of each, for a folder.")] = 128,
    only: Only = None,
    all_but: AllBut = None,
    everything: Everything = False,
    measure: Annotated[bool, typer.Option("--measure", help="Run converted models too.")] = False,
    figure: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw size against time.")] = None,
    full: Full = False,
    as_json: Json = False,
) -> None:
    """Print what each rule would give: size, arithmetic, memory, time on this machine; writes no model.

    A function gives the model and what its forward takes: return model, example. Weights of a folder are not read.

    Examples:
      nplex estimate my/bert --rule 2 4 8 4:7

      nplex estimate my_module:my_function --measure --figure size-and-time.png
    """
    with refusing():
        from nplex.estimating import estimate as estimated
        from nplex.figures import new_figure, write_figure

        if figure is not None:
            new_figure()  # refuses at once where matplotlib is missing
        dense, example = _of_function(model) if ":" in model else _of_folder(Path(model), batch, length)
        with messages.status("running the model"):
            chosen = layers(only, all_but, everything)
            try:
                found = estimated(dense, example, rule, **chosen, measure=measure)
            except TypeError as error:
                refuse(str(error))
        if figure is not None:
            write_figure(found.figure(), figure)
    if as_json:
        print(json.dumps(asdict(found) | {"recommendation": found.recommendation}, indent=1))
    elif full:
        print(found.full)
    else:
        print_table(found.table())
        print("\n".join(found.notes))


def _of_function(text: str) -> tuple[Any, Any]:
    """What the user's own function gives."""
    function = own_code(text)
    try:
        given = function()
    except Exception as error:  # whatever the function does
        raise ValueError(f"{text} failed, {type(error).__name__}: {error}; --debug shows where") from error
    if not isinstance(given, tuple) or len(given) != 2:
        raise ValueError(f"{text!r} must return a model and what its forward takes, got a {type(given).__name__}")
    return given


def _of_folder(path: Path, batch: int, length: int) -> tuple[Any, dict[str, Any]]:
    """A model of transformers without weights, and an input of the kind that it takes."""
    import torch

    from nplex.stored import open_model

    if path.is_file():
        raise ValueError(f"{path}: a file holds no forward; give module:function that returns a model and an example")
    model: Any = open_model(path, weights=False)
    config, name = model.config, getattr(model, "main_input_name", "")
    if name == "input_ids":
        ids = torch.randint(0, config.get_text_config().vocab_size, (batch, length))
        return model, {name: ids} | ({"decoder_input_ids": ids} if config.is_encoder_decoder else {})
    if name == "pixel_values" and isinstance(side := getattr(config, "image_size", None), int):
        return model, {name: torch.randn(batch, getattr(config, "num_channels", 3), side, side)}
    raise ValueError(
        f"{path}: a model that takes {name or 'no text'} needs an example; give module:function that returns both"
    )
