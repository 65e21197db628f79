"""The device mesh: axes (data, fsdp, tensor) with Auto axis types. One mesh per run; `rules` says what lies where on it."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from srlhfv_jax.config import MeshConfig
from srlhfv_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # the axes over which the rows of a batch are split


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arrange the devices (of all processes) as config.data x config.fsdp x config.tensor; one size may be -1.

    A single process may use fewer devices than it has (the first ones): `--config.mesh.data=1` is one device.

    Raises:
        UserError: the sizes do not fit the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = _sizes((config.data, config.fsdp, config.tensor), len(devices))
    used = math.prod(sizes)
    if used > len(devices) or (used < len(devices) and jax.process_count() > 1):
        raise UserError(
            f"mesh {_text(sizes)} needs {used} devices, there are {len(devices)}: "
            f"change config.mesh (one size may be -1: whatever devices are left)"
        )
    slices = {device.slice_index for device in devices if hasattr(device, "slice_index")}
    if len(slices) > 1:
        raise UserError(f"there are {len(slices)} TPU slices: a run is on one; start it on the hosts of one slice")
    # An axis may be a part of a dimension of the torus: fsdp=32 on 16 x 16 chips, which `jax.make_mesh` refuses.
    grid = mesh_utils.create_device_mesh(sizes, list(devices)[:used], allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def use_mesh(config: MeshConfig) -> Mesh:
    """`make_mesh`, set as the mesh of all that this thread computes from here on."""
    mesh = make_mesh(config)
    jax.set_mesh(mesh)
    return mesh


def one_device() -> Mesh:
    """A mesh of the first device."""
    return make_mesh(MeshConfig(data=1, fsdp=1, tensor=1))


def target_device() -> Any:
    """A device of the kind that what is traced now is for, with `platform` and `device_kind`: of the mesh that is set, or where
    none is, the first. None where an abstract mesh says nothing."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.devices()[0] if mesh.empty else mesh.abstract_device


def row_shards(mesh: Mesh | jax.sharding.AbstractMesh) -> int:
    """Into how many parts the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in ROWS)


def row_blocks() -> int:
    """The same of the mesh of `jax.set_mesh`; 1 without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else row_shards(mesh)


def check_tensor_axis(heads: int, mesh: Mesh) -> None:
    """Raise UserError unless the tensor axis divides a model's query heads."""
    if heads % mesh.shape["tensor"]:
        sizes = [size for size in range(1, mesh.size + 1) if heads % size == 0 and mesh.size % size == 0]
        raise UserError(
            f"config.mesh.tensor {mesh.shape['tensor']} does not divide the {heads} query heads of the model: "
            f"on {mesh.size} devices take one of {', '.join(map(str, sizes))}"
        )


def describe(mesh: Mesh) -> str:
    """One line for the start of a run: sizes, devices used, platform."""
    platform = mesh.devices.flat[0].platform
    return f"mesh {_text(tuple(mesh.shape[axis] for axis in AXES))} on {mesh.size} of {jax.device_count()} {platform} devices"


def _sizes(sizes: tuple[int, ...], devices: int) -> tuple[int, ...]:
    for axis, size in zip(AXES, sizes):
        if size < 1 and size != -1:
            raise UserError(f"config.mesh.{axis} must be a positive number or -1, got {size}")
    if sizes.count(-1) > 1:
        raise UserError(f"mesh {_text(sizes)}: only one of {', '.join(AXES)} may be -1")
    fixed = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and devices % fixed:
        raise UserError(
            f"mesh {_text(sizes)}: {devices} devices cannot be divided by {fixed}, the product of the given sizes: "
            f"change config.mesh"
        )
    return tuple(devices // fixed if size == -1 else size for size in sizes)


def _text(sizes: tuple[int, ...]) -> str:
    return "(" + ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes)) + ")"
