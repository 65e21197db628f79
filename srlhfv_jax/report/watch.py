"""The report of a run that goes on: written again whenever a file of the workdir has changed, in a page that loads itself anew."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from srlhfv_jax.errors import UserError
from srlhfv_jax.report.build import write_report
from srlhfv_jax.report.workdir import sources

SECONDS = 5  # between two looks, and between two loads of the page


def watch(workdir: Path, path: Path | None, *, sleep: Callable[[float], None] = time.sleep) -> None:
    """Write the report of a workdir again and again, until a signal ends the process.

    A file that is damaged, or a run that has written nothing yet, is said on stderr, once for each state of the files.

    Raises:
        UserError: no such folder.
    """
    if not workdir.is_dir():
        raise UserError(f"expected --workdir to be the folder of a run, got {str(workdir)!r}, which does not exist")
    before = None
    while True:
        stamps = _stamps(workdir)
        if stamps != before:
            _write(workdir, path, first=before is None)
            before = stamps
        sleep(SECONDS)


def _write(workdir: Path, path: Path | None, *, first: bool) -> None:
    try:
        written = write_report(workdir, path, reload_seconds=SECONDS)
    except UserError as error:
        print(f"srlhfv: {error}; looking again every {SECONDS} seconds", file=sys.stderr, flush=True)
        return
    if first:
        print(f"wrote {written}, and writes it again when the run does; Ctrl-C ends this", flush=True)


def _stamps(workdir: Path) -> dict[Path, tuple[int, int]]:
    """Time of the last change and size of each file that the report reads."""
    stamps = {}
    for file in sources(workdir):
        try:
            about = file.stat()
        except FileNotFoundError:  # just replaced
            continue
        stamps[file] = (about.st_mtime_ns, about.st_size)
    return stamps
