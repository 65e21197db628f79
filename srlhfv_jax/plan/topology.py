"""TPU slices that are not here: their devices as the compiler of libtpu describes them, how much memory each has, and how fast
each is by its maker's word.

Needs the package libtpu, and no TPU: `pip install 'srlhfv-jax[plan]'`.
"""

import importlib.util
import os
from collections.abc import Sequence
from typing import NamedTuple

import jax

from srlhfv_jax.errors import UserError


class Device(NamedTuple):
    """One device of a kind of slice. A chip of v4 and tpu7x is two devices to the compiler: theirs are half a chip's numbers."""

    limit_gib: float  # that a program may use, as the compiler says when a program needs more
    tflops: float  # 10^12 operations a second on bfloat16, at most
    hbm: float  # 10^9 bytes a second
    ici: float  # 10^9 bytes a second out of the device, over all its links to other chips together
    per_chip: int = 1


# Rates: cloud.google.com/tpu/docs, the tables "key specifications" of v4, v5e, v5p, v6e and tpu7x (read in November 2026). They
# give the links' bandwidth in both directions together; half of it leaves the device. v4's links: Jouppi et al., arXiv 2304.01433
# (six of 50 GB/s). Nothing of this was measured here.
DEVICES = {
    "v4": Device(15.25, 275 / 2, 1200 / 2, 300 / 2, per_chip=2),
    "v5e": Device(15.75, 197, 819, 400 / 2),
    "v5p": Device(95.74, 459, 2765, 1200 / 2),
    "v6e": Device(31.25, 918, 1638, 800 / 2),
    "tpu7x": Device(94.74, 2307 / 2, 7380 / 2, 1200 / 2 / 2, per_chip=2),
}

# This is no TPU machine: no metadata server to ask, no other workers; and two plans may run at once.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def compute_on_cpu() -> None:
    """Compute on the CPU whatever devices there are: the compiler for TPUs needs none. Call it before JAX starts."""
    jax.config.update("jax_platforms", "cpu")


def devices(name: str) -> Sequence[jax.Device]:
    """The devices of a slice such as "v5e:2x4".

    Raises:
        UserError: as `device`; libtpu is not installed, or knows no such slice.
    """
    from jax.experimental import topologies  # here: it looks for plugins

    for name_of, value in ENVIRONMENT.items():
        os.environ.setdefault(name_of, value)
    device(name)
    shape = name.partition(":")[2]
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("the compiler for TPUs is not installed: pip install 'srlhfv-jax[plan]' (no TPU is needed)")
    one_chip = shape.replace("x", "").strip("1") == ""
    bounds = {"chips_per_host_bounds": (1, 1, 1)} if one_chip else {}
    try:
        return topologies.get_topology_desc(topology_name=name, platform="tpu", **bounds).devices
    except (RuntimeError, NotImplementedError, ValueError) as error:
        raise UserError(f"the compiler knows no slice {name}: {str(error).strip().splitlines()[0]}") from None


def device(name: str) -> Device:
    """Memory and speed of one device of the slice.

    Raises:
        UserError: no such kind of slice, or none of its shapes.
    """
    kind, _, shape = name.partition(":")
    if kind not in DEVICES or not shape:
        raise UserError(f"--topology must be one of {', '.join(f'{kind}:AxB' for kind in DEVICES)} such as v5e:2x4, got {name!r}")
    return DEVICES[kind]


def limit_bytes(name: str) -> int:
    """Bytes that a program may use on one device of the slice."""
    return int(device(name).limit_gib * 2**30)
