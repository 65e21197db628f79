"""`srlhfv sft`: supervised fine-tuning on questions with one response."""

from srlhfv_jax.cli import flags, stage
from srlhfv_jax.config import SFTConfig


def main(argv: list[str]) -> None:
    settings, workdir = flags.stage("sft", SFTConfig, argv, __doc__)
    stage.given(settings.init, "config.init", "a Hugging Face folder, an export, or the workdir of an earlier stage")
    stage.given(settings.data.path, "config.data.path", "rows with a question and a response")
    from srlhfv_jax.runs.run import command
    from srlhfv_jax.supervised import sft

    command(sft.run, settings, workdir)
