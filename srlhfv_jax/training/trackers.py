"""Trackers of a run: what shows its numbers while it goes on. Each has the three methods of `Tracker`.

TensorBoard       event files in WORKDIR/tensorboard
WeightsAndBiases  wandb, the extra of that name
Trackio           trackio, the extra of that name

Everything that they are told is in the workdir too, so that a run can lose any of them (`background.py`). They get the settings as
config.json has them, without the secrets of addresses. Only the first process has trackers.
"""

import importlib.util
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from srlhfv_jax import files
from srlhfv_jax.errors import UserError

IDS = "tracker.json"
EXTRAS = ("wandb", "trackio")


class Run(NamedTuple):
    """The run that a tracker shows."""

    workdir: Path
    step: int  # of the checkpoint that it goes on from; 0: it begins
    project: str = ""
    id: str = ""  # the same after a resumption
    settings: Mapping[str, Any] = {}  # without secrets

    @property
    def name(self) -> str:
        return f"{self.workdir.resolve().name}-{self.id}"


class Sample(NamedTuple):
    """One answer to one of the prompts that are answered again and again."""

    number: int  # of the prompt
    question: str  # the turns before it included
    pictures: tuple[Image.Image, ...]
    answer: Mapping[str, Any]  # "text", "length", and what judges it: "reward", "cost", ...


class Record(NamedTuple):
    """News of one step."""

    numbers: Mapping[str, float] = {}
    histograms: Mapping[str, np.ndarray] = {}  # name -> [B], a value of each answer of the rollout
    samples: Sequence[Sample] = ()


class Tracker(Protocol):
    """Shows a run. Whatever one of these raises is said once, and ends this tracker, not the run."""

    def start(self, run: Run) -> None:
        """Begin, or go on with the run of this id."""

    def log(self, step: int, record: Record) -> None:
        """Show what is new at a step; steps never go back."""

    def close(self) -> None:
        """Send what is still waiting."""


def check(names: Sequence[str]) -> None:
    """Raise UserError where a tracker of `names` is not installed."""
    for name in names:
        spec = importlib.util.find_spec(name) if name in EXTRAS else None
        if name in EXTRAS and (spec is None or spec.origin is None):  # a folder ./wandb has a spec too
            raise UserError(f"config.log.trackers names {name!r}, which is not installed: pip install 'srlhfv-jax[{name}]'")


def make(name: str) -> Tracker:
    """A tracker by the name that settings give it."""
    return {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "trackio": Trackio}[name]()


def run_id(workdir: Path, step: int) -> str:
    """The id under which trackers know the run: a new one where it begins, kept in the workdir until then."""
    path = workdir / IDS
    if step == 0 or not path.is_file():
        files.write_text(path, f'{{"id": "{secrets.token_hex(4)}"}}\n')
    return files.take(files.read_json(path, advice="remove it"), "id", str, str(path), advice="remove it")


class TensorBoard:
    """Event files beside metrics.jsonl."""

    def start(self, run: Run) -> None:
        from tensorboardX import SummaryWriter  # here, because it imports torch where that is installed: seconds

        self._writer = SummaryWriter(str(run.workdir / "tensorboard"), purge_step=run.step + 1 if run.step else None)

    def log(self, step: int, record: Record) -> None:
        for name, value in record.numbers.items():
            self._writer.add_scalar(name, value, step)
        for name, value_B in record.histograms.items():
            self._writer.add_histogram(name, value_B, step)
        for sample in record.samples:
            for index, picture in enumerate(sample.pictures):
                name = f"samples/{sample.number}/picture_{index}"
                self._writer.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")
            self._writer.add_text(f"samples/{sample.number}", f"**{sample.question}**\n\n{_cell(sample)}", step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of wandb. It is told nothing of the machine, the command line or the code: these may hold secrets."""

    def start(self, run: Run) -> None:
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project=run.project,
            id=run.id,
            name=run.name,
            dir=str(run.workdir),
            config=dict(run.settings),
            resume="allow",
            settings=wandb.Settings(console="off", disable_git=True, save_code=False, silent=True, x_disable_meta=True),
        )

    def log(self, step: int, record: Record) -> None:
        self._run.log(_values(record, self._wandb), step=step)

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A run of trackio: in its own folder, or on the server or Space that its environment variables name."""

    def start(self, run: Run) -> None:
        import trackio

        self._trackio = trackio
        self._run = trackio.init(project=run.project, name=run.name, config=dict(run.settings), resume="allow", embed=False)

    def log(self, step: int, record: Record) -> None:
        self._run.log(_values(record, self._trackio), step=step)

    def close(self) -> None:
        self._run.finish()


def _values(record: Record, library: ModuleType) -> dict[str, Any]:
    """A record in the types of a library: wandb's, and trackio's, which are called the same."""
    histograms = {f"histogram/{name}": library.Histogram(value_B) for name, value_B in record.histograms.items()}
    values = dict(record.numbers) | histograms
    if record.samples:
        columns, rows = _table(record.samples, library.Image)
        values["samples"] = library.Table(columns=columns, data=rows)
    return values


def _table(samples: Sequence[Sample], picture: type) -> tuple[list[str], list[list[Any]]]:
    """(columns, rows): the first picture of each prompt, the question, and all that is known of the answer."""
    keys = list(dict.fromkeys(key for sample in samples for key in sample.answer))
    rows = [
        [
            picture(sample.pictures[0]) if sample.pictures else None,
            sample.question,
            *(sample.answer.get(key) for key in keys),
        ]
        for sample in samples
    ]
    return ["picture", "question", *keys], rows


def _cell(sample: Sample) -> str:
    """The answer and what is known of it, as TensorBoard's Markdown."""
    facts = ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in _facts(sample))
    text = str(sample.answer["text"]).replace("\n", "\n    ")
    return f"    {text}\n\n{facts}"


def _facts(sample: Sample) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in sample.answer.items() if key != "text"]
