"""`srlhfv cost`: a cost model on a backbone of its own, for sharing="separate"."""

from srlhfv_jax.cli import flags, stage
from srlhfv_jax.config import ScoresConfig


def main(argv: list[str]) -> None:
    settings, workdir = flags.stage("cost", ScoresConfig, argv, __doc__)
    stage.given(settings.init, "config.init", "a Hugging Face folder, an export, or the workdir of an earlier stage")
    stage.given(settings.data.path, "config.data.path", "rows with two responses and both preferences")
    from srlhfv_jax.runs.run import command
    from srlhfv_jax.supervised import cost

    command(cost.run, settings, workdir)
