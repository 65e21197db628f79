"""`srlhfv plan`: what a run would need on a TPU slice, before the slice is paid for. No TPU needed, nothing is loaded.

    srlhfv plan --config=configs/ppo_lag.py --topology=v5e:2x4 --config.policy=llava-hf/llava-1.5-7b-hf --config.sharing=adapters

    ... --search [--compiled=6]    other meshes, microbatches (of rollouts too) and remat, ordered by arithmetic and compiled in turn

The config is that of `sft`, `scores`, `reward`, `cost`, `guard` or `ppo_lag`. The model is a folder, or a hub id whose shape is
known (hf/published.py). Every row is taken to have one picture, of the most tiles that its family cuts.
"""

from pathlib import Path

from absl import flags as absl_flags

from srlhfv_jax.cli import flags
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
    found, changed = flags.read_with_config("plan", values, argv, __doc__, configured_as="ppo_lag")
    flags.required(values, "topology")
    settings = parse(stored.kind_of(found, "--config"), found)
    unread.check_changed(settings, changed)
    unread.check(settings)
    named = settings.start
    if not named:
        raise UserError(f"config.{'policy' if settings.stage == 'ppo_lag' else 'init'} is empty: whose shape should be planned?")
    from srlhfv_jax.parallel.mesh import make_mesh
    from srlhfv_jax.plan import memory as plan, search as plan_search, table as plan_table, topology
    from srlhfv_jax.training.metrics import write_result

    topology.compute_on_cpu()
    device, devices = topology.device(values.topology), topology.devices(values.topology)

    def config_of(settings):
        return plan.shape(named, settings.model)

    if values.search:
        ordered = plan_search.candidates(settings, config_of(settings), devices, device)
        print(f"{named} on {values.topology}: {len(ordered)} settings may fit, compiling at most {values.compiled}", flush=True)
        tried = []
        for one in plan_search.search(ordered, config_of, devices, device, values.compiled):
            print(f"  {plan_search.describe(one)}", flush=True)
            tried.append(one)
        chosen = plan_search.best(tried)
        settings, planned = chosen.candidate.settings, chosen.plan
        print(f"{'the cheapest that fits' if chosen.numbers['fits'] else 'nothing fits; the nearest'}: {chosen.candidate.flags}")
    mesh = make_mesh(settings.mesh, devices)
    if not values.search:
        sizes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
        print(f"{named} on {values.topology}, mesh ({sizes})", flush=True)
        planned = plan.of(settings, config_of(settings), mesh, topology.limit_bytes(values.topology))
    numbers = plan_table.result(planned, device, settings.data.batch_size)
    for line in plan_table.table(numbers, planned, device, settings.lora.int8):
        print(line)
    if values.workdir:
        sizes = {f"mesh.{axis}": size for axis, size in mesh.shape.items()}
        write_result(Path(values.workdir), numbers | plan_search.chosen(settings) | sizes | {"topology": values.topology})
