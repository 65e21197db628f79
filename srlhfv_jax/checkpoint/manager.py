"""Checkpoints of a run under WORKDIR/checkpoints: arrays through Orbax, loader position and notes as JSON, a manifest per step.

    WORKDIR/checkpoints/<step>/          written by Orbax beside and renamed when complete, while the next steps run
    WORKDIR/checkpoints/manifests/<step>.json   size and checksum of each file, written after that
    WORKDIR/checkpoints/damaged/<step>   set aside on restore, named on stderr

A kill at any moment leaves the last checkpoint that has a manifest; one without is not used: its files may be torn. Older ones go
when a newer one has its manifest, but for one that the notes of the newer one name (`PINNED`). No pickles are written or read. Frozen models are not in here: the settings say where they are,
and they are loaded again.
"""

import copy
import re
import shutil
import threading
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from srlhfv_jax.checkpoint import manifest, provenance
from srlhfv_jax.errors import UserError
from srlhfv_jax.parallel import hosts, rules

PINNED = "pinned"  # among the notes of a checkpoint: the step of an older one that stays beside the newest
PARAMETERS = "params."  # how the names of a state's parameters begin
STEP = re.compile("0|[1-9][0-9]{0,9}")  # the name of a checkpoint


class Manager:
    """Saves and restores one run's state. `settings` (config.to_dict) is stored, and must match when the run is resumed."""

    def __init__(self, workdir: Path, every_steps: int, keep: int, settings: dict[str, Any] | None = None) -> None:
        self.workdir = Path(workdir).absolute()
        self.folder = self.workdir / "checkpoints"
        self._manifests = self.folder / "manifests"
        self._every_steps = every_steps
        self._keep = keep
        self._settings = settings
        self._orbax: ocp.CheckpointManager | None = None
        self._sealer: threading.Thread | None = None
        self._failure: Exception | None = None

    def due(self, step: int) -> bool:
        """Whether a checkpoint belongs after `step`."""
        return self._every_steps > 0 and step % self._every_steps == 0

    def save(self, step: int, state: Any, data_state: dict, extra: dict) -> None:
        """Start saving; returns when the arrays have been copied, so that the next step may donate them."""
        self.wait()
        about = copy.deepcopy({"data_state": data_state, "extra": extra})  # written while the next steps change them
        if self._settings is not None:
            about["provenance"] = provenance.record(self._settings)
        self._open().save(
            step, args=ocp.args.Composite(state=ocp.args.StandardSave(_named(state)), about=ocp.args.JsonSave(about)), force=True
        )
        self._sealer = threading.Thread(target=self._seal, args=(step, extra.get(PINNED)), name="checkpoint-seal")
        self._sealer.start()

    def wait(self) -> None:
        """Until the last save is complete, manifest included; its error, if any, is raised here."""
        if self._sealer is not None:
            self._sealer.join()
            self._sealer = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def close(self) -> None:
        self.wait()
        if self._orbax is not None:
            self._orbax.close()
            self._orbax = None

    def steps(self) -> list[int]:
        """The complete checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if STEP.fullmatch(path.name) and path.is_dir())

    def latest(self) -> int | None:
        """The newest checkpoint whose files are all as they were written; None if there is none. Newer ones are set aside and named.

        Raises:
            UserError: there are checkpoints, and all of them are damaged.
        """
        self.wait()
        steps, problems = self.steps(), []
        for step in reversed(steps):
            problem = self._problem(step)
            if problem is None:
                return step
            problems.append(problem)
            self._set_aside(step, problem)
        if any(problem != manifest.UNSEALED for problem in problems):
            raise UserError(
                f"all {len(steps)} checkpoints in {self.folder} are damaged (moved to {self.folder / 'damaged'}): "
                f"run the same command again to start from the beginning"
            )
        return None

    def parameters(self) -> tuple[dict[str, jax.Array], int]:
        """(the trained parameters by path, the step) of the newest whole checkpoint; nothing is changed, a run may be writing.

        Raises:
            UserError: there is none.
        """
        step = next((step for step in reversed(self.steps()) if self._problem(step) is None), None)
        if step is None:
            raise UserError(f"{self.folder} has no whole checkpoint: let the run come to its first, or start it again")
        folder = self.folder / str(step) / "state"
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
            found = {name: leaf for name, leaf in reader.metadata(folder).item_metadata.items() if name.startswith(PARAMETERS)}
            wanted = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place) for name, leaf in found.items()}
            how = ocp.checkpoint_utils.construct_restore_args(wanted)
            read = reader.restore(folder, args=ocp.args.PyTreeRestore(wanted, restore_args=how, partial_restore=True))
        return {name.removeprefix(PARAMETERS).replace(".", "/"): leaf for name, leaf in read.items()}, step

    def whole(self, step: int) -> bool:
        """Whether all files of the checkpoint of a step are there as they were written; asked by all processes together."""
        self.wait()
        return self._problem(step) is None

    def restore(self, step: int, abstract: Any) -> tuple[Any, dict, dict]:
        """The checkpoint of a step as (state, data_state, extra), bit for bit as saved.

        Args:
            abstract: the state as ShapeDtypeStructs with shardings (`parallel.rules.abstract`); the mesh may be another one.

        Raises:
            UserError: it belongs to another model, or was made with other settings.
        """
        self._check(step, abstract)
        about = self._open().restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))["about"]
        if self._settings is not None and "provenance" in about:
            provenance.check_same(about["provenance"], self._settings)
        named = self._open().restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(_named(abstract))))["state"]
        state = jax.tree.unflatten(jax.tree.structure(abstract), [named[name] for name in _named(abstract)])
        return state, about["data_state"], about["extra"]

    def forget(self, step: int) -> None:
        """Remove the checkpoint of a step, so that another one of it can be saved."""
        self.wait()
        self._remove(step, None)

    def _open(self) -> ocp.CheckpointManager:
        if self._orbax is None:
            options = ocp.CheckpointManagerOptions(create=True, cleanup_tmp_directories=True, enable_async_checkpointing=True)
            handlers = {"state": ocp.StandardCheckpointHandler(), "about": ocp.JsonCheckpointHandler()}
            self._orbax = ocp.CheckpointManager(epath.Path(self.folder), options=options, item_handlers=handlers)
        return self._orbax

    def _seal(self, step: int, pinned: int | None) -> None:
        try:
            self._open().wait_until_finished()
            if hosts.process_index() == 0:
                manifest.write(self.folder / str(step), self._manifest(step))
                for old in (step for step in self.steps()[: -self._keep] if step != pinned):
                    self._manifest(old).unlink(missing_ok=True)
                    shutil.rmtree(self.folder / str(old))
                kept = {str(step) for step in self.steps()}
                for path in self._manifests.glob("*.json"):
                    if STEP.fullmatch(path.stem) and path.stem not in kept:
                        path.unlink()
        except Exception as error:  # raised again by wait(), in the thread that trains
            self._failure = error

    def _manifest(self, step: int) -> Path:
        return self._manifests / f"{step}.json"

    def _problem(self, step: int) -> str | None:
        """Found by the first process; the others follow its verdict."""
        problem = manifest.damage(self.folder / str(step), self._manifest(step)) if hosts.process_index() == 0 else None
        verdict = hosts.from_first(0 if problem is None else 1 if problem == manifest.UNSEALED else 2)
        return (None, manifest.UNSEALED, problem or "damaged")[verdict]

    def _set_aside(self, step: int, problem: str) -> None:
        state = "not used" if problem == manifest.UNSEALED else "damaged"
        hosts.say(f"srlhfv: checkpoint {step} in {self.folder} is {state} ({problem}); trying the one before it")
        place = self.folder / "damaged" / str(step)
        while place.exists():
            place = place.with_name(place.name + "_")
        self._remove(step, place)

    def _remove(self, step: int, place: Path | None) -> None:
        """From among the checkpoints, to `place`; None: for good."""
        if self._orbax is not None:
            self._orbax.close()
            self._orbax = None
        if hosts.process_index() == 0:
            self._manifest(step).unlink(missing_ok=True)  # first: what is half removed has none
            if place is None:
                shutil.rmtree(self.folder / str(step))
            else:
                place.parent.mkdir(exist_ok=True)
                (self.folder / str(step)).rename(place)
        hosts.barrier(f"remove checkpoint {step}")

    def _check(self, step: int, abstract: Any) -> None:
        """Compare names, shapes and dtypes first: Orbax would cast silently, or fail without saying which leaf."""
        metadata = self._open().item_metadata(step)["state"]
        if metadata is None:
            return
        saved = {name: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in metadata.items()}
        expected = {name: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in _named(abstract).items()}
        for name in sorted(saved.keys() | expected.keys()):
            if saved.get(name) != expected.get(name):
                raise UserError(
                    f"checkpoint {step} in {self.folder} does not fit this run: {name} is {_text(saved.get(name))} in the "
                    f"checkpoint and {_text(expected.get(name))} here; use another --workdir, or the settings it was made with"
                )


def _named(state: Any) -> dict[str, Any]:
    """Leaves by path: what is on disk then depends on names, not on the classes of optax's states."""
    return {path.replace("/", "."): leaf for path, leaf in rules.leaves(state)}


def _text(leaf: tuple[tuple[int, ...], str] | None) -> str:
    return "absent" if leaf is None else f"{leaf[1]}{list(leaf[0])}"
