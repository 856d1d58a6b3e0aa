"""Verbs about rules alone: nplex rule learn, ..."""

import typer

from nplex.cli.rule.learning import learn

rule = typer.Typer(
    no_args_is_help=True, rich_markup_mode="rich", help="Multiplication tables: learn one from examples."
)
rule.command()(learn)
