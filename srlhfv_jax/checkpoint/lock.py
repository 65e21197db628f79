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

from srlhfv_jax.errors import UserError, short
from srlhfv_jax.parallel import hosts

FILE = "run.lock"
NONE = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)  # what mounts without locks say
_held: dict[Path, int] = {}  # by this process -> how many times


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
    """While inside, no other run uses `workdir`. All processes of a run share the lock of its first one.

    Raises:
        UserError: another run is in it.
    """
    hosts.initialize()  # asking which process this is touches the devices
    path = Path(workdir).absolute() / FILE
    if path in _held or hosts.process_index() > 0:
        other, file = None, None
    else:
        other, file = _take(path)
    if hosts.from_first(int(other is not None)):
        raise UserError(
            f"{workdir} is in use by {other or 'another run'}: wait for it, or stop it; another run needs another --workdir"
        )
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


def _take(path: Path) -> tuple[str | None, int]:
    """(who holds the lock, None: this process does now; the open file)."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"--workdir={path.parent} is a file, or lies in one: give a folder") from None
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    before = short(os.pread(file, 200, 0).decode("utf-8", "replace").strip().replace("\n", " "))
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NONE:
            os.close(file)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return before or "another process", -1
            raise
        hosts.say(f"srlhfv: {path.parent} is on a disk without locks: a second run in it would not be noticed")
    own = f"host {socket.gethostname()}, process {os.getpid()}"
    if before and before.partition(",")[0] != own.partition(",")[0]:
        hosts.say(f"srlhfv: {path.parent} was in use by {before}, which did not end in order: if it still runs there, stop it")
    os.ftruncate(file, 0)
    os.pwrite(file, f"{own}\n".encode(), 0)
    return None, file
