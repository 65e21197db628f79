"""`srlhfv plan`: what a run would need on a TPU slice, before the slice is paid for. No TPU needed, nothing is loaded.

    srlhfv plan --config=configs/ppo_lag.py --topology=v5e:2x4 --config.policy=llava-hf/llava-1.5-7b-hf --config.sharing=adapters

    ... --search [--compiled=6]    other meshes, microbatches (of rollouts too) and remat, ordered by arithmetic and compiled in turn

The config is that of `sft`, `scores`, `reward`, `cost`, `guard` or `ppo_lag`. The model is a folder, or a hub id whose shape is
known (hf/published.py). Every row is taken to have one picture, of the most tiles that its family cuts.
"""

from absl import flags as absl_flags

from srlhfv_jax.cli import flags, switches
from srlhfv_jax.cli.help import About
from srlhfv_jax.config import stored, unread
from srlhfv_jax.errors import UserError
from srlhfv_jax.parsing import parse


def main(argv: list[str]) -> None:
    values = absl_flags.FlagValues()
    absl_flags.DEFINE_string(
        "topology", None, "slice, such as v5e:2x4, v5p:2x2x1 or v6e:1x1 (v4 and tpu7x: two devices a chip)", flag_values=values
    )
    absl_flags.DEFINE_string("workdir", "", "write the numbers to WORKDIR/result.json", flag_values=values)
    absl_flags.DEFINE_bool(
        "search", False, "try meshes, microbatches and remat; print the cheapest that fits", flag_values=values
    )
    absl_flags.DEFINE_integer("compiled", 6, "with --search: compile at most this many", lower_bound=1, flag_values=values)
    config, changed = flags.read_with_config(About("plan", __doc__), values, argv, configured_as="ppo_lag")
    switches.required(values, "topology")
    settings = parse(stored.kind_of(config, "--config"), config)
    unread.check_changed(settings, changed)
    unread.check(settings)
    if not settings.start:
        raise UserError(f"config.{'policy' if settings.stage == 'ppo_lag' else 'init'} is empty: whose shape should be planned?")
    from srlhfv_jax.plan import run

    run.run(settings, values.topology, values.workdir, searched=values.compiled if values.search else 0)
