"""TPU slices that are not here: their devices as the compiler of libtpu describes them, and how much memory each has.

Needs the package libtpu, and no TPU: `pip install 'srlhfv-jax[plan]'`.
"""

import importlib.util
import os
from collections.abc import Sequence

import jax

from srlhfv_jax.errors import UserError

# GiB that a program may use on one device, as the compiler says when a program needs more.
LIMIT_GIB = {"v5e": 15.75, "v5p": 95.74, "v6e": 31.25}

# This is no TPU machine: no metadata server to ask, no other workers; and two plans may run at once.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def devices(name: str) -> Sequence[jax.Device]:
    """The devices of a slice such as "v5e:2x4".

    Raises:
        UserError: libtpu is not installed, or knows no such slice.
    """
    from jax.experimental import topologies  # here: it looks for plugins

    for name_of, value in ENVIRONMENT.items():
        os.environ.setdefault(name_of, value)
    kind, _, shape = name.partition(":")
    if kind not in LIMIT_GIB or not shape:
        raise UserError(
            f"--topology must be one of {', '.join(f'{kind}:AxB' for kind in LIMIT_GIB)} such as v5e:2x4, got {name!r}"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("the compiler for TPUs is not installed: pip install 'srlhfv-jax[plan]' (no TPU is needed)")
    one_chip = shape.replace("x", "").strip("1") == ""
    bounds = {"chips_per_host_bounds": (1, 1, 1)} if one_chip else {}
    try:
        return topologies.get_topology_desc(topology_name=name, platform="tpu", **bounds).devices
    except (RuntimeError, NotImplementedError, ValueError) as error:
        raise UserError(f"the compiler knows no slice {name}: {str(error).strip().splitlines()[0]}") from None


def limit_bytes(name: str) -> int:
    """What a program may use on one device of the slice."""
    return int(LIMIT_GIB[name.partition(":")[0]] * 2**30)
