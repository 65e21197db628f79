"""A run in its workdir: what a command does around a stage, and what a stage does around its loop.

command -> the stage: start -> (rows, checkpoints) -> training.loop.run -> export_run, finish

WORKDIR/config.json and result.json of a stage are written here and nowhere else.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from srlhfv_jax import files, quiet
from srlhfv_jax.checkpoint import lock, provenance
from srlhfv_jax.checkpoint.manager import Manager
from srlhfv_jax.config import to_dict
from srlhfv_jax.config.stored import Trained
from srlhfv_jax.data import templates
from srlhfv_jax.errors import UserError
from srlhfv_jax.hf import card, export, hub, weights
from srlhfv_jax.hf.card import Product
from srlhfv_jax.hf.config import read_config
from srlhfv_jax.hf.export import export_pretrained
from srlhfv_jax.hf.load import described_in
from srlhfv_jax.models import kernels
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.parallel import host_cpu, hosts, rules
from srlhfv_jax.parallel.mesh import describe, make_mesh
from srlhfv_jax.runs.stage import LoadGuard, Run, Verdicts
from srlhfv_jax.training import metrics, trackers
from srlhfv_jax.training.metrics import Writer

EXPORT = "export"
TEMPLATE = "chat_template.jinja"
ADVICE = "remove it, since the checkpoints hold the settings too"


class Started(NamedTuple):
    """Mesh, folder and writers of a stage that runs."""

    workdir: Path
    mesh: Mesh
    writer: Writer
    manager: Manager
    began: float  # time.monotonic()
    verdicts: Verdicts | None = None  # of the guard of `log.guard`; None: there is none


def command(run: Run, settings: Any, workdir: Path) -> None:
    """Run a stage as a command of its own: alone in its workdir, and refused before anything is loaded or overwritten where the
    workdir has checkpoints made with other settings.

    Raises:
        UserError: another run is in the workdir, or the settings have changed.
    """
    host_cpu.prepare()
    with lock.held(workdir):
        check_unchanged(settings, workdir)
        try:
            run(settings, workdir)
        except Exception as error:
            if (lost := hosts.lost(error)) is None:
                raise
            print(f"srlhfv: error: {lost}; the same command in all processes goes on from the last checkpoint", file=sys.stderr)
            sys.stderr.flush()
            os._exit(1)  # an orderly end would wait for the others


def record(measure: Run, settings: Any, workdir: Path) -> dict[str, Any]:
    """Run what only measures, with its settings and its numbers in the workdir; returns the numbers."""
    began = time.monotonic()
    write_settings(workdir, settings)
    result = measure(settings, workdir)
    write_result(workdir, result, began)
    return result


def check_unchanged(settings: Any, workdir: Path) -> None:
    """Raise UserError where `workdir` has checkpoints (its own, or those of a pipeline's stages) made with other settings."""
    before = workdir / "config.json"
    if before.is_file() and ((workdir / "checkpoints").is_dir() or any(workdir.glob("*/checkpoints"))):
        provenance.check_same({"settings": files.read_json(before, advice=ADVICE)}, to_dict(settings))


def write_settings(workdir: Path, settings: Any) -> None:
    """Write WORKDIR/config.json."""
    metrics.write_json(workdir / "config.json", to_dict(settings))


def write_result(workdir: Path, result: dict[str, Any], began: float) -> None:
    """Write WORKDIR/result.json, with the `seconds` since this start began beside the numbers."""
    metrics.write_result(workdir, result | {"seconds": time.monotonic() - began})


def start(settings: Trained, workdir: Path, load_guard: LoadGuard | None = None) -> Started:
    """Join the other processes, lay out the mesh, load the guard of `log.guard`, open the workdir.

    Args:
        load_guard: of the guard's room, which stages must not import (`guard.watch.with_guard` gives it); None: there is none.

    Raises:
        UserError: a setting that cannot be met here, or no guard where `log.guard` says.
    """
    began = time.monotonic()
    trackers.check(settings.log.trackers)
    hosts.initialize()
    mesh = make_mesh(settings.mesh)
    kernels.check(settings.model.attention, mesh.devices.flat[0].platform)
    jax.set_mesh(mesh)
    hosts.say(describe(mesh))
    if settings.log.guard and load_guard is None:
        raise UserError(f"config.log.guard={settings.log.guard} is read by the commands and functions of single stages alone")
    verdicts = load_guard(settings, mesh) if settings.log.guard and load_guard is not None else None
    workdir = Path(workdir)
    write_settings(workdir, settings)
    export.clear(workdir)
    record_template(settings.data.chat_template, workdir)
    manager = Manager(workdir, settings.checkpoint.every_steps, settings.checkpoint.keep, to_dict(settings))
    log = settings.log
    names = (*(("tensorboard",) if log.tensorboard else ()), *dict.fromkeys(log.trackers))
    writer = Writer(workdir, names, project=log.project, settings=to_dict(settings))
    return Started(workdir, mesh, writer, manager, began, verdicts)


def record_template(path: str, workdir: Path) -> None:
    """Keep the chat template of `data.chat_template` in the workdir: exports have it from there.

    Raises:
        UserError: it cannot be read, or the run to be resumed had another one.
    """
    copy, text = workdir / TEMPLATE, templates.read(path) if path else None
    before = recorded_template(workdir)
    if (workdir / "checkpoints").is_dir() and before not in (None, text):
        raise UserError(
            f"cannot resume: config.data.chat_template={path} is not {copy}, which this workdir was started with; use that"
        )
    if hosts.process_index() > 0:
        return
    if text is None:
        copy.unlink(missing_ok=True)
    else:
        files.write_text(copy, text)


def recorded_template(workdir: Path) -> str | None:
    """The chat template that a run was given in the place of its checkpoint's; None: it has that of its checkpoint."""
    copy = workdir / TEMPLATE
    return copy.read_text("utf-8") if copy.is_file() else None


def describe_parameters(name: str, tree: Any, mesh: Mesh) -> None:
    """Print a tree in one line, once, for the start of a run; with `--verbose` also what lies where, leaf by leaf."""
    hosts.say(f"{name}: {rules.summary(tree, mesh)}" + (f"\n{rules.table(tree, mesh)}" if quiet.verbose() else ""))


def last_numbers(started: Started) -> dict[str, float]:
    """The numbers of the last logged step, read back from metrics.jsonl: the same after a run and after its resumption."""
    numbers: dict[str, float] = {}
    for row in metrics.read(started.writer.path):
        numbers = numbers | row if row["step"] == numbers.get("step") else row
    return numbers


def export_run(
    started: Started,
    product: Product,
    config: VLMConfig,
    tree: Any,
    *,
    base: str | Path,
    result: dict[str, float],
    about: dict[str, Any] = {},
    guard: dict[str, Any] | None = None,
) -> None:
    """Write WORKDIR/export and a first WORKDIR/result.json: before anything is measured, which may fail.

    Args:
        about: what score_heads.json says beside the stage.
        guard: what guard.json says of the tree's guard.
    """
    origin = _origin(started.workdir)
    export_pretrained(
        started.workdir / EXPORT,
        config,
        tree.get("backbone"),
        base=base,
        adapter=tree.get("adapter"),
        heads=tree.get("heads"),
        meta={"stage": product.stage} | about | origin,
        chat_template=recorded_template(started.workdir),
        guard=tree.get("guard"),
        guard_meta=None if guard is None else guard | origin,
    )
    finish(started, product, result)


def finish(started: Started, product: Product, result: dict[str, float], guard: dict[str, Any] | None = None) -> dict[str, float]:
    """Write WORKDIR/result.json, and the export's card and guard.json, with what was measured; returns the result."""
    if hosts.process_index() == 0:
        if guard is not None:
            export.write_guard_meta(started.workdir / EXPORT, guard | _origin(started.workdir))
        files.write_text(started.workdir / EXPORT / "README.md", _card(started.workdir, product, result))
    write_result(started.workdir, result, started.began)
    return result


def _card(workdir: Path, product: Product, result: dict[str, float]) -> str:
    """The model card, from what the first process wrote, which also writes the export."""
    settings = files.read_json(workdir / "config.json")
    trace = [(line["step"], line["lambda"]) for line in metrics.read(workdir / "metrics.jsonl") if "lambda" in line]
    shown = trace[:: max(1, len(trace) // 20)]
    base = _origin(workdir)["started_from"]
    folder = workdir / EXPORT
    sees = read_config(described_in(folder)).vision is not None
    adapter = not weights.is_checkpoint(folder)
    return card.card(base=base, product=product, settings=settings, result=result, trace=shown, sees=sees, adapter=adapter)


def _origin(workdir: Path) -> dict[str, str]:
    """`hub.origin` of the checkpoint that a run started from; {} where another process writes."""
    if hosts.process_index() > 0:
        return {}
    settings = files.read_json(workdir / "config.json")
    return hub.origin(settings["policy" if "policy" in settings else "init"])
