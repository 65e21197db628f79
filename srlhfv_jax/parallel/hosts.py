"""Several processes (hosts of a TPU pod, or local ones in a test): start, batches from each one's rows, arrays back to NumPy."""

import os
import re
import sys
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import multihost

from srlhfv_jax.errors import UserError
from srlhfv_jax.parallel.mesh import ROWS, row_shards

Tree = TypeVar("Tree")

BARRIER_S = 300  # how long the first process at a barrier waits for the last
HEARTBEAT_S = 60  # a process that says nothing for so long is lost
LAST_LOOK_S = 10
TEXT_BYTES = 2048
BROKEN = re.compile("[Cc]onnect|peer|[Ss]ocket|UNAVAILABLE|heartbeat")  # what transports say of a partner that is gone


class Lost(RuntimeError):
    """Other processes of this run are gone, or late. One line; nothing more can be computed or saved."""


def initialize() -> None:
    """Join the other processes, if several were announced; call it before anything touches a device.

    Announced means: JAX_COORDINATOR_ADDRESS with JAX_NUM_PROCESSES and JAX_PROCESS_ID (any machines), more than one host in
    TPU_WORKER_HOSTNAMES, or SRLHFV_DISTRIBUTED=1 where JAX finds the cluster by itself (a Cloud TPU pod slice, Slurm, Open MPI).
    """
    if jax.distributed.is_initialized():
        return
    environment = os.environ
    if "JAX_COORDINATOR_ADDRESS" in environment:
        numbers = [environment.get(name, "") for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")]
        if not all(number.isdigit() for number in numbers):
            raise UserError("JAX_COORDINATOR_ADDRESS is set: JAX_NUM_PROCESSES and JAX_PROCESS_ID must be set too, to numbers")
        count, own = map(int, numbers)
        address = environment["JAX_COORDINATOR_ADDRESS"]
        jax.distributed.initialize(address, num_processes=count, process_id=own, heartbeat_timeout_seconds=HEARTBEAT_S)
    elif "," in environment.get("TPU_WORKER_HOSTNAMES", "") or environment.get("SRLHFV_DISTRIBUTED") == "1":
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_S)


def process_index() -> int:
    return jax.process_index()


def process_count() -> int:
    return jax.process_count()


def say(text: str) -> None:
    """One line on stderr, from the first process only."""
    if jax.process_index() == 0:
        print(text, file=sys.stderr, flush=True)


def barrier(name: str, seconds: float = BARRIER_S) -> None:
    """Wait until every process is here.

    Raises:
        Lost: some are not, after so many seconds; it names them.
    """
    try:
        _meet(name, seconds)
    except jax.errors.JaxRuntimeError as error:
        raise Lost(f"{_missing(error)} did not come to {name!r} within {seconds:g} seconds") from error


def lost(error: Exception) -> Lost | None:
    """The message about other processes in the failure of a computation or a save that several share; None: it is another failure.

    A process that is gone breaks its connections. Those that are left meet once more, to see who does not come.
    """
    if isinstance(error, Lost):
        return error
    broken = isinstance(error, jax.errors.JaxRuntimeError) and BROKEN.search(str(error))
    if not broken or jax.process_count() == 1:  # in this order: counting touches the devices
        return None
    try:
        _meet("after a failure", LAST_LOOK_S)
    except jax.errors.JaxRuntimeError as absence:
        return Lost(f"{_missing(absence)} is gone ({str(error).splitlines()[0][:200]})")
    return None


def _meet(name: str, seconds: float) -> None:
    multihost.get_barrier_sync_fn()(key=name, timeout_ms=round(1000 * seconds))


def _missing(error: Exception) -> str:
    """Processes that did not come, as the coordination service lists them; it lives in process 0."""
    if "UNAVAILABLE" in str(error):
        return f"process 0 of {jax.process_count()}, which leads,"
    listed = str(error).partition("task names:")[2].partition("RPC:")[0]
    late = sorted(map(int, re.findall(r"(\d+)\s*$", listed, re.MULTILINE)))
    return f"process {', '.join(map(str, late))} of {jax.process_count()}" if late else "another process"


def from_first(value: int) -> int:
    """The first process's number, on every process."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def array_from_first(array: np.ndarray) -> np.ndarray:
    """The first process's array, on every process; all have one of its shape."""
    return array if jax.process_count() == 1 else np.asarray(multihost_utils.broadcast_one_to_all(array))


def text_from_first(text: str) -> str:
    """The first process's text, cut to what is sent at once, on every process."""
    if jax.process_count() == 1:
        return text
    sent = text.encode()[:TEXT_BYTES].ljust(TEXT_BYTES, b"\0")
    received = multihost_utils.broadcast_one_to_all(np.frombuffer(sent, np.uint8))
    return np.asarray(received).tobytes().rstrip(b"\0").decode(errors="ignore")


def from_each(array: np.ndarray) -> np.ndarray:
    """The arrays of all processes, of one shape, stacked: [process, ...]. On every process."""
    if jax.process_count() == 1:
        return array[None]
    return np.asarray(multihost_utils.process_allgather(array))


def texts_from_each(text: str) -> list[str]:
    """The text of each process, cut to what is sent at once."""
    sent = text.encode()[:TEXT_BYTES].ljust(TEXT_BYTES, b"\0")
    received = from_each(np.frombuffer(sent, np.uint8))
    return [row.tobytes().rstrip(b"\0").decode(errors="ignore") for row in received]


def check_batch(rows: int, mesh: Mesh, name: str = "batch of") -> None:
    """Raise UserError unless a batch of `rows` rows (over all processes) divides evenly over the mesh."""
    shards = row_shards(mesh)
    if rows < 1 or rows % shards:
        sizes = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in ROWS)
        raise UserError(
            f"{name} {rows} rows must be a positive multiple of {shards} ({sizes} of the mesh): change the batch size or config.mesh"
        )


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Axis 0 over (data, fsdp), everything else whole."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def own_rows(rows: int, mesh: Mesh, process: int | None = None) -> np.ndarray:
    """Rows that a process loads of a batch of `rows` rows (over all processes): those of the row shards that its devices hold.

    Ascending, each once. Where the tensor axis crosses processes, several of them load the same rows.

    Args:
        process: its index; None: this one.

    Raises:
        UserError: the rows do not divide over the mesh.
    """
    check_batch(rows, mesh)
    asked = jax.process_index() if process is None else process
    places = row_sharding(mesh).devices_indices_map((rows,))
    held = [np.arange(rows)[place] for device, place in places.items() if device.process_index == asked]
    return np.unique(np.concatenate(held))


def owners(rows: int, mesh: Mesh) -> np.ndarray:
    """The process that each row of a batch belongs to: the first of those that hold it. [rows]"""
    owner_B = np.full(rows, -1)
    for process in reversed(range(jax.process_count())):
        owner_B[own_rows(rows, mesh, process)] = process
    return owner_B


def local_rows(tree: Any) -> Any:
    """This process's rows of arrays that are split along axis 0, as NumPy: its `own_rows`, in their order."""

    def get(array: jax.Array) -> np.ndarray:
        parts = {shard.index[0].indices(len(array))[0]: shard.data for shard in array.addressable_shards}
        return np.concatenate([np.asarray(parts[first]) for first in sorted(parts)])

    return jax.tree.map(get, tree)


def global_batch(batch: Tree, mesh: Mesh) -> Tree:
    """Make global arrays, axis 0 split over (data, fsdp), from each process's NumPy rows: its `own_rows`, in their order.

    Raises:
        UserError: the rows of all processes together do not divide over the mesh.
    """
    sharding, shards = row_sharding(mesh), row_shards(mesh)
    held = len(own_rows(shards, mesh))

    def put(local: np.ndarray) -> jax.Array:
        local = np.asarray(local)
        rows = len(local) * shards // held
        own = own_rows(rows, mesh)

        def shard(place: tuple[slice, ...]) -> np.ndarray:
            first, end, _ = place[0].indices(rows)
            start = np.searchsorted(own, first)
            return local[start : start + end - first]

        return jax.make_array_from_callback((rows, *local.shape[1:]), sharding, shard)

    return jax.tree.map(put, batch)


def to_host(tree: Any) -> Any:
    """The whole arrays as NumPy, on every process. Waits for them."""

    def get(array: Any) -> np.ndarray:
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            if array.is_fully_replicated:
                return np.asarray(array.addressable_data(0))
            return np.asarray(multihost_utils.process_allgather(array, tiled=True))
        return np.asarray(array)

    return jax.tree.map(get, tree)
