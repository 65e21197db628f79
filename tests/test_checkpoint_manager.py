"""Checkpoints: bit exact, atomic, verified, restored onto another mesh, refused where they do not belong."""

import json
import os

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tiny_training as tiny

from srlhfv_jax.checkpoint import manifest
from srlhfv_jax.checkpoint.manager import Manager
from srlhfv_jax.config import MeshConfig
from srlhfv_jax.errors import UserError
from srlhfv_jax.parallel import hosts, rules
from srlhfv_jax.parallel.mesh import make_mesh
from srlhfv_jax.training import state


def tree(mesh, scale=1.0):
    """Every kind of leaf that a stage keeps: odd floats, bfloat16, integers, bools, empty states."""
    params = rules.place(jax.tree.map(lambda x: x * scale / 3, tiny.initial()), mesh)
    half = jnp.asarray([0.1, 2.7, -3e-8], jnp.bfloat16)
    moments = rules.replicate({"half": half, "none": (), "flag": jnp.asarray([True, False])}, mesh)
    lam = jnp.float32(np.nextafter(0.7, 1))
    return state.TrainState(params, {"moments": moments}, rules.replicate(jnp.int32(5), mesh), {"lam": lam})


def save(workdir, current, *steps, keep=3, settings=None):
    manager = Manager(workdir, 1, keep, settings)
    for step in steps:
        manager.save(step, current, {"position": step}, {"best": step / 7})
    manager.close()


def restore(workdir, current, settings=None):
    """(state, data_state, extra, step) of the newest sound checkpoint; None: there is none."""
    manager = Manager(workdir, 1, 3, settings)
    step = manager.latest()
    return None if step is None else (*manager.restore(step, rules.abstract(current)), step)


def assert_same_bits(left, right):
    def check(a, b):
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()

    jax.tree.map(check, hosts.to_host(left), hosts.to_host(right))


def file_of(workdir, step):
    """A file that holds array data."""
    return max((workdir / "checkpoints" / str(step) / "state").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())


def test_what_is_restored_is_what_was_saved_bit_for_bit(tmp_path, eight_devices):
    current = tree(eight_devices)
    save(tmp_path, current, 2, 4)
    restored, data_state, extra, step = restore(tmp_path, current)
    assert_same_bits(restored, current)
    assert (data_state, extra, step) == ({"position": 4}, {"best": 4 / 7}, 4)
    assert restored.opt_state["moments"]["half"].dtype == ml_dtypes.bfloat16
    jax.tree.map(lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim) or pytest.fail(), restored, current)


def test_restore_onto_another_mesh_gives_the_same_bits(tmp_path, eight_devices, one_device):
    current = tree(eight_devices)
    save(tmp_path, current, 1)
    for mesh in (one_device, make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))):
        restored = restore(tmp_path, tree(mesh, scale=0.5))[0]
        assert_same_bits(restored, current)
        assert restored.params["text"]["embed"]["embedding"].sharding.mesh == mesh


def test_an_empty_workdir_restores_nothing(tmp_path, one_device):
    assert restore(tmp_path, tree(one_device)) is None


def test_only_the_newest_checkpoints_are_kept_with_a_manifest_each(tmp_path, one_device):
    save(tmp_path, tree(one_device), 1, 2, 3, 4, keep=2)
    assert Manager(tmp_path, 1, 2).steps() == [3, 4]
    assert sorted(path.name for path in (tmp_path / "checkpoints" / "manifests").iterdir()) == ["3.json", "4.json"]
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".pkl", ".pickle", ".pt", ".bin")]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(tmp_path, one_device, capsys, damage):
    older, newer = tree(one_device), tree(one_device, scale=2.0)
    save(tmp_path, older, 1)
    save(tmp_path, newer, 2)
    file = file_of(tmp_path, 2)
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 2] ^= 4
        file.write_bytes(content)
    else:
        file.unlink()
    restored, data_state, _, step = restore(tmp_path, older)
    assert step == 1 and data_state == {"position": 1}
    assert_same_bits(restored, older)
    said = capsys.readouterr().err
    assert "checkpoint 2 in" in said and "is damaged" in said and file.name in said
    save(tmp_path, newer, 2)  # the step is free again, the damaged one is kept aside
    assert restore(tmp_path, older)[3] == 2 and (tmp_path / "checkpoints" / "damaged" / "2").is_dir()


@pytest.mark.parametrize("damage", ["whole", "truncated", "flipped"])
def test_a_checkpoint_without_manifest_is_never_used_and_named(tmp_path, one_device, capsys, damage):
    """A kill came before it had one: whether its files are whole is not known."""
    save(tmp_path, tree(one_device), 1)
    save(tmp_path, tree(one_device, scale=2.0), 2)
    (manifests(tmp_path) / "2.json").unlink()
    file = file_of(tmp_path, 2)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4 if damage == "flipped" else 0
    file.write_bytes(content[: len(content) // 2] if damage == "truncated" else content)
    restored, _, _, step = restore(tmp_path, tree(one_device))
    assert step == 1 and "checkpoint 2 in" in capsys.readouterr().err
    assert_same_bits(restored, tree(one_device))


def test_a_kill_before_the_first_manifest_is_a_run_from_the_beginning(tmp_path, one_device):
    save(tmp_path, tree(one_device), 1)
    (manifests(tmp_path) / "1.json").unlink()
    assert restore(tmp_path, tree(one_device)) is None and restore(tmp_path, tree(one_device)) is None


def test_the_older_checkpoint_goes_when_the_newer_one_has_its_manifest(tmp_path, one_device, monkeypatch):
    save(tmp_path, tree(one_device), 1, keep=1)

    def fail(folder, target):
        raise OSError("no manifest")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no manifest"):
        patch.setattr(manifest, "write", fail)
        save(tmp_path, tree(one_device), 2, keep=1)
    assert restore(tmp_path, tree(one_device))[3] == 1
    save(tmp_path, tree(one_device), 2, keep=1)
    assert Manager(tmp_path, 1, 1).steps() == [2]


def manifests(workdir):
    return workdir / "checkpoints" / "manifests"


BROKEN = [b"", b"{", b"[]", b"{}", b"null", b"\xff\xfe", b'{"a": 1}', b'{"a": []}', b'{"a": [1, "b"]}', b"\0" * 300, b"[" * 99999]


@pytest.mark.parametrize("content", BROKEN, ids=lambda content: repr(content[:12]))
def test_a_damaged_manifest_is_damage_of_its_checkpoint(tmp_path, one_device, capsys, content):
    save(tmp_path, tree(one_device), 1, 2)
    (manifests(tmp_path) / "2.json").write_bytes(content)
    assert restore(tmp_path, tree(one_device))[3] == 1
    said = capsys.readouterr().err
    assert "checkpoint 2 in" in said and said.count("\n") == 1 and len(said) < 700


def test_a_manifest_cut_in_the_middle_or_without_its_last_file_is_damage(tmp_path, one_device):
    save(tmp_path, tree(one_device), 1, 2, 3)
    path = manifests(tmp_path) / "3.json"
    files = json.loads(path.read_text())
    files.pop(sorted(files)[-1])
    path.write_text(json.dumps(files))
    other = manifests(tmp_path) / "2.json"
    other.write_text(other.read_text()[:-40])
    assert restore(tmp_path, tree(one_device))[3] == 1


def test_what_others_left_among_the_checkpoints_is_left_alone(tmp_path, one_device):
    save(tmp_path, tree(one_device), 1)
    for name in ("note.json", "7x.json", "²5.json", "007.json"):
        (manifests(tmp_path) / name).write_text("mine")
    for name in ("notes", "²", "007", "-3"):
        (tmp_path / "checkpoints" / name).mkdir()
    (tmp_path / "checkpoints" / "9").write_text("a file")
    save(tmp_path, tree(one_device), 2)
    assert restore(tmp_path, tree(one_device))[3] == 2 and Manager(tmp_path, 1, 2).steps() == [1, 2]
    assert (manifests(tmp_path) / "note.json").read_text() == "mine"


def test_files_are_on_the_disk_before_their_manifest_and_it_before_its_name(tmp_path, one_device, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (order.append(os.readlink(f"/proc/self/fd/{file}")), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(str(b)), replace(a, b)))
    save(tmp_path, tree(one_device), 1)
    named = order.index(str(manifests(tmp_path) / "1.json"))
    arrays = file_of(tmp_path, 1)
    for path in (arrays, arrays.parent, manifests(tmp_path) / "1.json.tmp"):
        assert str(path) in order[:named], path
    assert str(manifests(tmp_path)) in order[named:]


def test_nothing_but_damage_is_an_error(tmp_path, one_device):
    save(tmp_path, tree(one_device), 1, 2)
    for step in (1, 2):
        file_of(tmp_path, step).write_bytes(b"")
    with pytest.raises(UserError, match="all 2 checkpoints in .* are damaged"):
        restore(tmp_path, tree(one_device))


def test_a_checkpoint_of_another_model_is_refused_by_leaf(tmp_path, one_device):
    current = tree(one_device)
    save(tmp_path, current, 1)
    other = current._replace(extra={"lam": jnp.zeros(3), "window": jnp.zeros(2)})
    with pytest.raises(UserError, match=r"extra.lam is float32\[\] in the checkpoint and float32\[3\] here"):
        restore(tmp_path, other)
    with pytest.raises(UserError, match=r"extra.lam is float32\[\] in the checkpoint and absent here"):
        restore(tmp_path, current._replace(extra=()))
    assert restore(tmp_path, current)[3] == 1  # refusing is not damage


def test_a_setting_that_changes_the_mathematics_is_named(tmp_path, one_device):
    current = tree(one_device)
    settings = {"seed": 1, "ppo": {"kl_coef": 0.1}, "freeze": ("a",)}
    settings |= {"log": {"every_steps": 1}, "mesh": {"data": 1}, "microbatches": 1}
    save(tmp_path, current, 1, settings=settings)
    for changed in ({"log": {"every_steps": 9}}, {"mesh": {"data": 8}}, {"microbatches": 4}):
        assert restore(tmp_path, current, settings | changed)[3] == 1
    with pytest.raises(UserError, match="config.ppo.kl_coef was 0.1 when this workdir was started and is now 0.2"):
        restore(tmp_path, current, settings | {"ppo": {"kl_coef": 0.2}})
    with pytest.raises(UserError, match=r"config.freeze was \['a'\]"):
        restore(tmp_path, current, settings | {"freeze": ()})


def test_the_arrays_may_be_donated_as_soon_as_save_returns(tmp_path, one_device):
    current = tree(one_device)
    expected = jax.tree.map(np.array, hosts.to_host(current))
    manager = Manager(tmp_path, 1, 2)
    manager.save(1, current, {}, {})
    overwrite = lambda x: ~x if x.dtype == bool else x + jnp.ones_like(x)  # noqa: E731
    overwritten = jax.jit(lambda tree: jax.tree.map(overwrite, tree), donate_argnums=0)(current)
    jax.block_until_ready(overwritten)
    manager.close()
    assert_same_bits(restore(tmp_path, overwritten)[0], expected)
