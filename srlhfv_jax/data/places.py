"""Data that lies elsewhere -> files here: a data set of the Hugging Face hub, a bucket (gs://, s3://), the picture behind an address.

The hub's copies lie in its own cache (HF_HOME, HF_HUB_OFFLINE), all others in `cache_folder`. A copy is complete or not there.
"""

import hashlib
import os
import re
import tempfile
import urllib.request
from pathlib import Path

from srlhfv_jax import files
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.errors import UserError, public, reason, short, shown

SET_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")
ADDRESS = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]+)://", re.IGNORECASE)
BUCKETS = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs"}  # scheme -> the package that fsspec needs for it
SECONDS = 30  # for one picture
FETCHED: dict[tuple[str, str], Path] = {}  # (data set, revision) -> its folder: while a process lives, a set is one commit


def cache_folder() -> Path:
    """The folder of copies: XDG_CACHE_HOME/srlhfv_jax, or ~/.cache/srlhfv_jax."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "srlhfv_jax"


def local(path: str, revision: str, expected: str) -> Path:
    """A file or folder here.

    Args:
        revision: of a data set of the hub: a branch, a tag or a commit; "": its newest one.
        expected: for the message.

    Raises:
        UserError: it is neither here nor there.
    """
    if files.exists(path):
        return Path(path)
    if ADDRESS.match(path):
        return _from_bucket(path)
    match = SET_ID.fullmatch(path)
    if match is not None and not files.exists(str(Path(path).parent)):
        return _from_hub(match["name"], match["revision"] or revision, path)
    raise UserError(f"data path {shown(path)} does not exist: expected {expected}{files.nearest(path)}")


def _from_hub(name: str, revision: str, path: str) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    if (name, revision) not in FETCHED:
        try:
            folder = huggingface_hub.snapshot_download(name, repo_type="dataset", revision=revision or None)
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
            raise UserError(
                f"{short(path)} is neither a path here nor a data set that the Hugging Face hub gave us ({reason(error)}): correct it, go "
                f"online, or log in with `hf auth login` if it is gated{files.nearest(path)}"
            ) from None
        FETCHED[name, revision] = Path(folder)
    return FETCHED[name, revision]


def _from_bucket(address: str) -> Path:
    """A copy of what lies there now: it is made again when names, sizes or versions there change."""
    import fsspec

    scheme = ADDRESS.match(address)["scheme"].lower()
    if scheme in ("http", "https", "file"):
        raise UserError(f"data path {shown(address)} is an address: download it, and give its path")
    try:
        there, inner = fsspec.core.url_to_fs(address)
        files = there.find(inner) if there.isdir(inner) else [inner]
        about = repr([(file, there.size(file), there.ukey(file)) for file in files])
        target = cache_folder() / "data" / hashlib.sha256(f"{address} {about}".encode()).hexdigest()[:32] / Path(inner).name
        if not target.exists():
            _copy(there, inner, files, target)
    except ImportError as error:
        needed = BUCKETS.get(scheme)
        raise UserError(
            f"{shown(address)} needs {needed or f'a package of fsspec for {scheme}://'} ({reason(error)}): "
            + (f"pip install {needed}, or copy the data here" if needed else "install it, or copy the data here")
        ) from error
    except Exception as error:  # of the network, of fsspec and of each cloud's own library
        raise UserError(
            f"{short(public(address))} cannot be read ({type(error).__name__}: {reason(error)}): check the address and your right to read it"
        ) from error
    return target


def _copy(there, inner: str, files: list[str], target: Path) -> None:
    target.parent.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent.parent) as draft:
        copy = Path(draft) / "copy"
        for file in files:
            file_here = copy / target.name / file.removeprefix(inner).lstrip("/") if file != inner else copy / target.name
            file_here.parent.mkdir(parents=True, exist_ok=True)
            there.get_file(file, str(file_here))
        try:
            os.rename(copy, target.parent)
        except OSError:
            if not target.exists():  # another process was first
                raise


def picture(address: str, most: int) -> bytes:
    """The bytes behind an http address, from the cache where they are there.

    Raises:
        Unusable: nothing came, or more than `most` bytes.
    """
    cached = cache_folder() / "pictures" / hashlib.sha256(address.encode()).hexdigest()
    if cached.is_file():
        return cached.read_bytes()
    if not address.lower().startswith(("http://", "https://")):
        raise Unusable("image_not_here", f"{shown(address)} is no http address")
    try:
        with urllib.request.urlopen(address, timeout=SECONDS) as reply:
            content = reply.read(most + 1)
    except (OSError, ValueError) as error:  # of the network; of an address that is none
        raise Unusable("image_not_here", f"{shown(address)}: {reason(error)}") from error
    if len(content) > most:
        raise Unusable("image_too_large", f"{shown(address)} has more than {most} bytes")
    cached.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=cached.parent, delete=False) as draft:
        draft.write(content)
    os.replace(draft.name, cached)
    return content
