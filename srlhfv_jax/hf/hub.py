"""A model id of the Hugging Face hub -> a local folder, through the hub's own cache (HF_HOME) and its offline mode."""

import re
import time
from pathlib import Path

from srlhfv_jax import files
from srlhfv_jax.errors import UserError, reason
from srlhfv_jax.hf import weights
from srlhfv_jax.parallel import hosts

MODEL_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")
FETCHED: dict[tuple[str, str], Path] = {}  # (cache, model id) -> its folder: while a process lives, a model is one commit
DESCRIBING = ("*.json", "*.jinja", "*.txt", "*.model")  # never pickles, never code


def is_model_id(path: str | Path) -> bool:
    """`owner/name` or `owner/name@revision`, where no such folder exists."""
    return bool(MODEL_ID.fullmatch(str(path))) and not Path(path).exists()


def name(model_id: str | Path) -> str:
    """`owner/name` of a model id."""
    return MODEL_ID.fullmatch(str(model_id))["name"]


def revision(model_id: str | Path) -> str:
    """The commit of a model that this process read, or else of the files that are in the cache; "" where there are none."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    if (read := FETCHED.get(_key(model_id))) is not None:
        return read.name
    parts = MODEL_ID.fullmatch(str(model_id))
    try:
        return Path(huggingface_hub.snapshot_download(parts["name"], revision=parts["revision"], local_files_only=True)).name
    except (LocalEntryNotFoundError, HFValidationError):
        return ""


def pinned(path: str | Path) -> str:
    """A checkpoint as a record names it: a model id with the commit that was read, a folder as it is."""
    return f"{name(path)}@{revision(path)}" if is_model_id(path) else str(path)


def origin(named: str) -> dict[str, str]:
    """For the JSON files of an export's heads: the checkpoint that its run started from, as the user named it, `pinned`."""
    return {"started_from": pinned(named)}


def fetch(model_id: str) -> Path:
    """The newest snapshot of a model, or that of its revision (a branch, a tag or a commit), its weights being those that its index
    names; what the cache has is not downloaded again. A process that asks again gets the same commit, wherever a branch is by then.

    Raises:
        UserError: there is no such model or folder, no right to read it, or no connection and no copy in the cache.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    if (read := FETCHED.get(_key(model_id))) is not None and read.is_dir():
        return read
    began, (owner_and_name, wanted) = time.monotonic(), MODEL_ID.fullmatch(model_id).group("name", "revision")
    try:
        folder = Path(huggingface_hub.snapshot_download(owner_and_name, revision=wanted, allow_patterns=list(DESCRIBING)))
        huggingface_hub.snapshot_download(owner_and_name, revision=folder.name, allow_patterns=weights.files(folder))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise UserError(
            f"{model_id} is neither a folder here nor a model that the Hugging Face hub gave us ({reason(error)}): correct the path, go "
            f"online, or log in with `hf auth login` if the model is gated{files.nearest(model_id)}"
        ) from None
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    hosts.say(
        f"{owner_and_name}@{folder.name}: {size / 1e9:.2f} GB from the Hugging Face hub or its cache in {time.monotonic() - began:.1f} s"
    )
    FETCHED[_key(model_id)] = folder
    return folder


def _key(model_id: str | Path) -> tuple[str, str]:
    import huggingface_hub

    return str(huggingface_hub.constants.HF_HUB_CACHE), str(model_id)
