"""A revision beside a policy's weights (models/revision.py): revision.safetensors, one vector of strength 1 for each layer, and
revision.json, which says where it is added, how strongly, and to which weights.

It belongs to the weights that it was fitted on and to no others, which a digest of their files tells.
"""

import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from safetensors.numpy import save_file

from srlhfv_jax import files
from srlhfv_jax.errors import UserError, shown
from srlhfv_jax.hf import peft, weights
from srlhfv_jax.models import revision
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.parallel import hosts, rules

TENSOR = "revision"
ADVICE = "fit it again with srlhfv revise"


class Revision(NamedTuple):
    """Vectors of strength 1, and what revision.json says of them."""

    site: str  # one of models.revision.SITES
    strength: float
    begins: tuple[int, ...]  # the last tokens of every prompt, where it begins to act
    vector_LD: Float[np.ndarray, "L D"]  # float32; 0 in layers that stay as they are
    units: tuple[tuple[int, ...], ...]  # (layer, head), or (layer,), of all that is revised
    weights: str  # `fingerprint` of the checkpoint that it was fitted on


def is_revised(folder: Path) -> bool:
    """Whether a checkpoint has a revision beside its weights."""
    return (folder / weights.REVISION_META).is_file() or (folder / weights.REVISION).is_file()


def fingerprint(*folders: Path) -> str:
    """Digest of the weights of a checkpoint, an adapter's and those it lies over. As the first process reads them."""
    if hosts.process_index() > 0:
        return hosts.text_from_first("")
    sha = hashlib.sha256()
    for folder in dict.fromkeys(folders):
        found = (folder / name for name in weights.files(folder) if name not in weights.BESIDE)
        for file in (*found, folder / peft.CONFIG):
            if file.is_file():
                with file.open("rb") as stream:
                    sha.update(hashlib.file_digest(stream, "sha256").digest())
    return hosts.text_from_first(sha.hexdigest()[:32])


def write(folder: Path, revised: Revision) -> None:
    """Write the two files, and a script that reads them with torch, beside a checkpoint."""
    save_file({TENSOR: revised.vector_LD}, folder / weights.REVISION, metadata={"format": "pt"})
    shutil.copyfile(Path(__file__).with_name("torch_revision.py"), folder / weights.REVISION_LOADER)
    files.write_text(folder / weights.REVISION_META, json.dumps(_described(revised), indent=2) + "\n")


def _described(revised: Revision) -> dict[str, Any]:
    said = revised._asdict()
    del said["vector_LD"]
    return said


def read(config: VLMConfig, folder: Path, under: Path) -> Revision | None:
    """The revision beside a checkpoint; None: there is none.

    Args:
        under: what an adapter in `folder` lies over; else `folder`.

    Raises:
        UserError: half of one, one of another model or of other weights, or numbers that are not finite.
    """
    if not is_revised(folder):
        return None
    meta, path = folder / weights.REVISION_META, folder / weights.REVISION
    for file in (meta, path):
        if not file.is_file():
            raise UserError(f"{folder} has a revision without {file.name}: copy the missing file, or {ADVICE}")
    said = files.read_json(meta, advice=ADVICE)
    kinds = {"site": str, "strength": float, "begins": list[int], "units": list[list[int]], "weights": str}
    site, strength, begins, units, fitted_on = (
        files.take(said, name, kind, str(meta), advice=ADVICE) for name, kind in kinds.items()
    )
    if site not in revision.SITES:
        raise UserError(f"{meta}: site must be {' or '.join(revision.SITES)}, got {shown(site)}: {ADVICE}")
    if not math.isfinite(strength):
        raise UserError(f"{meta}: strength must be a finite number, got {strength}: {ADVICE}")
    if not begins:
        raise UserError(f"{meta}: begins must name the last tokens of every prompt, got none: {ADVICE}")
    if config.activation:
        raise UserError(f"{folder} has a revision and an activated adapter, which begin to act at places of their own: use one")
    tensors, expected = weights.open_file(path), (config.text.layers, config.text.width)
    if {name: tensor.shape for name, tensor in tensors.items()} != {TENSOR: expected}:
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        raise UserError(f"{path} holds {shown(shapes)}, this model needs {TENSOR} {list(expected)}: {ADVICE}")
    if fitted_on != fingerprint(folder, under):
        raise UserError(f"{folder} has a revision that was fitted on other weights than it lies beside: {ADVICE}, on these")
    vector_LD = weights.numbers(path, TENSOR, tensors[TENSOR])
    return Revision(site, float(strength), tuple(begins), vector_LD, tuple(map(tuple, units)), fitted_on)


def lay_over(params: dict[str, Any], revised: Revision, mesh: Mesh | None) -> dict[str, Any]:
    """Parameters that act as revised, in the place of theirs; `params` themselves at strength 0."""
    vector_LD = jnp.asarray(np.float32(revised.strength) * revised.vector_LD)
    if mesh is not None:
        vector_LD = jax.device_put(vector_LD, rules.replicated(mesh))
    return revision.overlay(params, revised.site, vector_LD)
