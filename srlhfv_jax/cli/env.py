"""`srlhfv env`: what a bug report should say of this machine: versions, commit, devices, mesh and the variables that change them."""

from absl import flags as absl_flags

from srlhfv_jax.cli import switches
from srlhfv_jax.parallel import host_cpu


def main(argv: list[str]) -> None:
    switches.read(absl_flags.FlagValues(), "env", argv, __doc__)
    host_cpu.prepare()
    from srlhfv_jax.runs import environment

    for line in environment.lines():
        print(line)
