"""`srlhfv guard`: a guard that judges questions and answers: how severe their harm is, and of which kinds."""

from srlhfv_jax.cli import flags, stage
from srlhfv_jax.config import GuardConfig


def main(argv: list[str]) -> None:
    settings, workdir = flags.stage("guard", GuardConfig, argv, __doc__)
    stage.given(settings.init, "config.init", "a Hugging Face folder, an export, or the workdir of an earlier stage")
    stage.given(settings.data.path, "config.data.path", "rows with safety labels")
    from srlhfv_jax.guard import train as guard
    from srlhfv_jax.runs.run import command

    command(guard.run, settings, workdir)
