"""`srlhfv weights units`: which neurons and heads of a policy serve safety, and which serve use. Scores and sets are in
`weights/units.py`, the file in `training/units.py`."""

import dataclasses
import functools
from pathlib import Path

import jax
from jax.sharding import Mesh

from srlhfv_jax.batches import SupervisedBatch
from srlhfv_jax.errors import UserError
from srlhfv_jax.hf import fingerprint
from srlhfv_jax.hf.load import Pretrained
from srlhfv_jax.models import measure, vlm
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.models.measure import Units
from srlhfv_jax.parallel import hosts, rules
from srlhfv_jax.runs import answered
from srlhfv_jax.runs.answered import AnsweredSettings
from srlhfv_jax.training import units
from srlhfv_jax.training.units import SETS, UnitScores, UnitsFile
from srlhfv_jax.weights.units import added, check_shares, importance, norms, sets, totals


@dataclasses.dataclass(frozen=True)
class Settings(AnsweredSettings):
    """Flags of `srlhfv weights units`, whose help says what each is."""

    policy: str
    safe: str
    useful: str
    out: str
    safety: float
    utility: float
    complex: float
    redundant: float
    disjoint: bool

    @property
    def shares(self) -> dict[str, float]:
        """Shares of the sets, by name."""
        return {"safety": self.safety, "utility": self.utility, "complex": self.complex, "redundant": self.redundant}


def write_units(settings: Settings) -> dict[str, tuple[int, int]]:
    """Measure, rank, and write the file; returns (neurons, heads) of each set, and prints them.

    Raises:
        UserError: shares, rows, a place to write to or a policy that cannot be used.
    """
    out = Path(settings.out)
    if out.is_dir():
        raise UserError(f"--out={out} is a folder: give a file, such as {out / 'units.safetensors'}")
    check_shares(settings.shares, disjoint=settings.disjoint)
    everywhere = answered.mesh(settings)
    answered.check(settings, (settings.safe, settings.useful), {"--policy": settings.policy})
    model = answered.load(settings, settings.policy, everywhere)
    weights = UnitScores(*hosts.to_host(jax.jit(norms, out_shardings=rules.replicated(everywhere))(model.params)))
    safe, useful = (importance(moments(settings, path, model, everywhere), weights) for path in (settings.safe, settings.useful))
    chosen = sets(safe, useful, settings.shares, disjoint=settings.disjoint)
    whose = fingerprint.of(settings.policy)
    if hosts.process_index() == 0:
        out.parent.mkdir(parents=True, exist_ok=True)
        units.write(out, UnitsFile(whose, settings.shares, safe, useful, chosen))
    hosts.barrier("the units are written")
    counts = totals(chosen)
    hosts.say("\n".join(_sentences(counts, safe)))
    return counts


def moments(settings: Settings, path: str, model: Pretrained, everywhere: Mesh) -> Units:
    """Moments of every unit over the last token of each prompt and the tokens of its answer."""
    sums: Units | None = None
    reading = jax.jit(functools.partial(read, model.config), out_shardings=rules.replicated(everywhere))
    for batch in answered.batches(settings, path, model, everywhere):
        sums = added(sums, hosts.to_host(reading(model.params, batch)))
    assert sums is not None, "fit_loosely refuses a file without rows"
    return sums


def read(config: VLMConfig, params: dict, batch: SupervisedBatch) -> Units:
    """Moments of every unit over these tokens of a batch."""
    features = None if batch.images is None else vlm.encode_images(config, params, batch.images)
    reduce = measure.of_units(answered.read_mask(batch))
    return vlm.measure(config, params, batch.tokens_BT, batch.positions_BT, batch.mask_BT, features, reduce)[1]


def _sentences(counts: dict[str, tuple[int, int]], scores: UnitScores) -> list[str]:
    neurons, heads = scores.mlp.size, scores.heads.size
    lines = [f"units of {len(scores.mlp)} layers: {neurons} neurons, {heads} heads"]
    for name in SETS:
        of = counts[name]
        lines.append(f"{name:<10} {of[0]} neurons ({100 * of[0] / neurons:.1f} %), {of[1]} heads ({100 * of[1] / heads:.1f} %)")
    return lines
