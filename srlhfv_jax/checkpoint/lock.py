"""One run in a workdir: WORKDIR/run.lock, locked by the system while the run's first process lives, with its host and process id.

The lock is a POSIX one: it goes with its process however that ends, and NFS passes it on to other hosts. Some mounts keep locks to
themselves (gcsfuse), so a run that another host left there without its end is named; some have none at all, which is said.
"""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from srlhfv_jax.errors import UserError, disk, reason, short
from srlhfv_jax.parallel import hosts

FILE = "run.lock"
NONE = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)  # what mounts without locks say
_held: dict[Path, int] = {}  # by this process -> how many times


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
    """While inside, no other run uses `workdir`. All processes of a run share the lock of its first one.

    Raises:
        UserError: another run is in it, or it cannot be locked; on every process the same line.
    """
    hosts.initialize()  # asking which process this is touches the devices
    path = Path(workdir).absolute() / FILE
    problem, file = "", None
    if path not in _held and hosts.process_index() == 0:
        problem, file = _take(path)
    if problem := hosts.text_from_first(problem):
        raise UserError(problem)
    _held[path] = _held.get(path, 0) + 1
    try:
        yield
    finally:
        _held[path] -= 1
        if not _held[path]:
            del _held[path]
        if file is not None:
            os.ftruncate(file, 0)  # an orderly end
            os.close(file)


def _take(path: Path) -> tuple[str, int | None]:
    """(why the lock cannot be had, "": this process has it now; the open file)."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _lock(path)
    except (FileExistsError, NotADirectoryError):
        return f"--workdir={path.parent} is a file, or lies in one: give a folder", None
    except OSError as error:
        return disk(error) or f"--workdir={path.parent} cannot be locked ({reason(error)}): give another folder", None


def _lock(path: Path) -> tuple[str, int | None]:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    before = short(os.pread(file, 200, 0).decode("utf-8", "replace").strip().replace("\n", " "))
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NONE:
            os.close(file)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                holder = before or "another process"
                return f"{path.parent} is in use by {holder}: wait for it, or stop it; another run needs another --workdir", None
            raise
        hosts.say(f"srlhfv: {path.parent} is on a disk without locks: a second run in it would not be noticed")
    line = f"host {socket.gethostname()}, process {os.getpid()}"
    if before and before.partition(",")[0] != line.partition(",")[0]:
        hosts.say(f"srlhfv: {path.parent} was in use by {before}, which did not end in order: if it still runs there, stop it")
    os.ftruncate(file, 0)
    os.pwrite(file, f"{line}\n".encode(), 0)
    return "", file
