"""Paths that users give, and JSON files that others wrote: whatever is wrong with one is a single `UserError` that names it. And how
files of our own are written: whole or not at all.

A file may be missing, a folder, cut, of another encoding, nested without end, or hold a value of another type than is needed.
"""

import difflib
import errno
import json
import os
import re
import sys
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from srlhfv_jax.errors import UserError, reason, shown

URL = re.compile("[A-Za-z][A-Za-z0-9+.-]+:/")  # also "gs:/b", which is what a path makes of gs://b
AGAIN = "copy it again, or restore it"
OBJECTS = "expected one object per line"
UNIONS = (typing.Union, types.UnionType)
NAMES = {dict: "an object", list: "a list", str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def local(text: str | Path, name: str) -> Path:
    """The path of this machine that a setting or flag means; `~` is the home folder.

    Raises:
        UserError: a URL, which would become a folder of that name; no path at all.
    """
    text = str(text)
    if URL.match(text):
        raise UserError(f"{name}={shown(text)} is a URL: give a folder of this machine, such as one where the bucket is mounted")
    if not text.strip() or "\0" in text:
        raise UserError(f"{name}={shown(text)} is no path: give a folder")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # of a user that is not known
        raise UserError(f"{name}={shown(text)}: {reason(error)}") from None


def exists(path: str | Path) -> bool:
    """Whether a file or folder is here; false of what can be no path."""
    try:
        return bool(str(path)) and Path(path).exists()
    except (OSError, ValueError):
        return False


def nearest(path: str | Path) -> str:
    """The end of a message: the file or folder here that is called most like `path`; "" where nothing is."""
    folder = Path(path).parent if exists(Path(path).parent) else Path(".")
    try:
        close = difflib.get_close_matches(Path(path).name, sorted(os.listdir(folder)), n=1)
    except (OSError, ValueError):
        return ""
    return f"; did you mean {str(folder / close[0])!r}?" if close else ""


def read_json(path: Path, kind: Any = dict, *, advice: str = AGAIN) -> Any:
    """Content of a small JSON file, which must be of this type (see `fits`).

    Raises:
        UserError: it cannot be read, is no JSON, or holds something else; `advice` is what to do then.
    """
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        raise UserError(f"{shown(str(path))} cannot be read ({reason(error)}): {advice}") from None
    return parse_json(content, str(path), kind, advice=advice)


def parse_json(content: bytes | str, origin: str, kind: Any = dict, *, advice: str = AGAIN) -> Any:
    """The same of bytes in hand; `origin` names them."""
    try:
        value = json.loads(content.decode("utf-8-sig") if isinstance(content, bytes) else content)
        json.dumps(value, ensure_ascii=False).encode()  # half surrogates, which no file and no terminal takes
    except (ValueError, RecursionError) as error:
        raise UserError(f"{origin} is not JSON ({reason(error)}): {advice}") from None
    if not fits(value, kind):
        raise UserError(f"{origin} must hold {described(kind)}, got {shown(value)}: {advice}")
    return value


def json_lines(
    lines: Iterable[bytes | str], path: Path, *, advice: str = OBJECTS, torn_end: bool = False
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, object) of every line that is not empty.

    Args:
        lines: each with its end, such as an open file: one of bytes ends lines at newlines alone, where text may hold other
            separators. Bytes are UTF-8.
        path: names the file in messages.
        advice: what to do with such a line.
        torn_end: a last line without a newline that is no JSON was torn by a kill, and is left out.

    Raises:
        UserError: a line is no JSON object; names it.
    """
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                row = json_object(line, path, number, advice=advice)
            except UserError as error:
                if torn_end and error.__cause__ is not None and line[-1:] not in (b"\n", "\n"):
                    return
                raise
            yield number, row


def json_object(line: bytes | str, path: Path, number: int, *, advice: str = OBJECTS) -> dict[str, Any]:
    """The object of one line.

    Raises:
        UserError: as `json_lines`.
    """
    try:
        row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8") if isinstance(line, bytes) else line)
    except UnicodeDecodeError as error:
        known = advice if advice != OBJECTS else "write it anew as UTF-8"
        raise UserError(f"{path}:{number} is not JSON (which is utf-8 text; {reason(error)}): {known}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}:{number} is not JSON ({reason(error)}): {advice}") from error
    if not isinstance(row, dict):
        more = "" if advice == OBJECTS else f"; {advice}"
        raise UserError(f"{path}:{number} is a JSON {type(row).__name__}: {OBJECTS}{more}")
    return row


def take(data: dict[str, Any], name: str, kind: Any, origin: str, *, advice: str = AGAIN) -> Any:
    """data[name], which must be there and of this type.

    Raises:
        UserError: it is not; `origin` names the file.
    """
    if name not in data:
        raise UserError(f"{origin} has no {name} ({described(kind)}): {advice}")
    if not fits(data[name], kind):
        raise UserError(f"{origin}: {name} must be {described(kind)}, got {shown(data[name])}: {advice}")
    return data[name]


def fits(value: Any, kind: Any) -> bool:
    """Whether a value of JSON is of a type: a class, `list[...]`, `dict[str, ...]` or a union. True is no int; NaN is no float."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in UNIONS:
        return any(fits(value, one) for one in inner)
    if origin is list:
        return isinstance(value, list) and all(fits(one, inner[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(one, inner[1]) for one in value.values())
    if kind is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    return kind is Any or type(value) is kind


def described(kind: Any) -> str:
    """A type in words."""
    inner = typing.get_args(kind)
    if typing.get_origin(kind) in UNIONS:
        return " or ".join("null" if one is type(None) else described(one) for one in inner)
    name = NAMES.get(typing.get_origin(kind) or kind, "any value")
    return f"{name} of which each is {described(inner[-1])}" if inner and inner[-1] is not Any else name


def write_text(path: Path, text: str) -> None:
    """Write a text file so that a reader, a kill or a power cut meets the old one or the new one, never half of it."""
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(text, encoding="utf-8")
    put(beside, path)


def put(beside: Path, path: Path) -> None:
    """Rename a finished file or folder to its place, when all of it is on the disk."""
    sync_tree(beside)
    os.replace(beside, path)
    sync(path.parent)


def sync_tree(path: Path) -> None:
    """A file, or a folder with all that is in it, is on the disk."""
    for folder, _, names in os.walk(path):
        for name in names:
            sync(Path(folder, name))
        sync(Path(folder))
    if not path.is_dir():
        sync(path)


def sync(path: Path) -> None:
    """A file, or the names in a folder, are on the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):  # mounts that keep no such promise
            raise
    finally:
        os.close(file)
