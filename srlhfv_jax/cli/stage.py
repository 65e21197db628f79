"""`srlhfv STAGE`: a stage that trains, by the record of its room."""

from srlhfv_jax.cli import flags
from srlhfv_jax.config.base import value_at
from srlhfv_jax.runs.stage import Stage, given


def main(stage: Stage, argv: list[str]) -> None:
    settings, workdir = flags.stage(stage.name, stage.settings, argv, stage.text, needed=stage.needed, example=stage.example)
    for path, meaning in stage.needed.items():
        given(value_at(settings, path), f"config.{path}", meaning)
    stage.check(settings)
    run = stage.load()
    from srlhfv_jax.guard.watch import with_guard
    from srlhfv_jax.runs.run import command

    command(with_guard(run, settings), settings, workdir)
