"""The cases of benchmarks in a file, for models that run elsewhere; their answers come back as a policy (`answers`)."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from srlhfv_jax import files
from srlhfv_jax.data import images
from srlhfv_jax.data.rows import history_json
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation.suites.case import Case


def check_place(path: Path) -> None:
    """Raise UserError where the file exists, or its folder does not."""
    if path.exists():
        raise UserError(f"--write-cases={path} exists: give a file that does not")
    if not path.parent.is_dir():
        raise UserError(f"--write-cases={path}: there is no folder {path.parent}")


def write_cases(path: Path, cases: Mapping[str, Sequence[Case]]) -> int:
    """Write one JSON object a line, and return their number: benchmark, id, history (the turns before the prompt, if any), prompt, and
    image, the path of its picture, or null.

    Pictures that lie inside a table of their benchmark are written to the folder PATH.pictures.
    """
    lines = [json.dumps(line, ensure_ascii=True) for line in _lines(path.with_name(f"{path.name}.pictures"), cases)]
    files.write_text(path, "\n".join(lines) + "\n")
    return len(lines)


def _lines(folder: Path, cases: Mapping[str, Sequence[Case]]) -> Iterator[dict[str, Any]]:
    for benchmark, benchmark_cases in cases.items():
        for case in benchmark_cases:
            said = {"benchmark": benchmark, "id": case.id} | history_json(case.history) | {"prompt": case.prompt}
            yield said | {"image": _picture(folder, case)}


def _picture(folder: Path, case: Case) -> str | None:
    if case.image is None or isinstance(case.image, Path):
        return case.image and str(case.image.resolve())
    with Image.open(io.BytesIO(case.image), formats=images.FORMATS) as picture:
        ending = "jpeg" if picture.format == "MPO" else picture.format.lower()
    folder.mkdir(exist_ok=True)
    path = folder / f"{images.digest(case.image).hex()}.{ending}"
    if not path.exists():
        path.write_bytes(case.image)
    return str(path.resolve())
