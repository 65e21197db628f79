"""The machine and the versions that a run would have, as plain lines."""

import os
import platform

import jax

from srlhfv_jax.checkpoint import provenance
from srlhfv_jax.config import MeshConfig
from srlhfv_jax.errors import public
from srlhfv_jax.parallel import hosts
from srlhfv_jax.parallel.mesh import describe, make_mesh

VARIABLES = ("JAX_PLATFORMS", "XLA_FLAGS", "LIBTPU_INIT_ARGS", "HF_HOME", "HF_HUB_OFFLINE", "SRLHFV_DISTRIBUTED")
VARIABLES += ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "TPU_WORKER_HOSTNAMES", "JAX_COMPILATION_CACHE_DIR")


def lines() -> list[str]:
    """Versions, commit, system, devices, the mesh that everything over fsdp would have, variables that are set."""
    hosts.initialize()
    devices = jax.devices()
    facts = [f"{name} {version}" for name, version in provenance.versions().items()]
    facts += [f"commit {provenance.commit() or 'none: not a git checkout'}", f"system {platform.platform()}"]
    facts += [f"processors {os.cpu_count()}"]
    facts += [f"devices {len(devices)} of {devices[0].platform} ({devices[0].device_kind}), {hosts.process_count()} processes"]
    facts += [f"{describe(make_mesh(MeshConfig(data=1, fsdp=-1, tensor=1)))}"]
    return facts + [f"variable {name}={public(os.environ[name])}" for name in VARIABLES if name in os.environ]
