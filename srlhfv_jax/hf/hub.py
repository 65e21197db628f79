"""A model id of the Hugging Face hub -> a local folder, through the hub's own cache (HF_HOME) and its offline mode."""

import re
import time
from pathlib import Path

from srlhfv_jax.errors import UserError
from srlhfv_jax.hf import weights
from srlhfv_jax.parallel import hosts

MODEL_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
DESCRIBING = ("*.json", "*.jinja", "*.txt", "*.model")  # never pickles, never code


def is_model_id(path: str | Path) -> bool:
    """`owner/name`, where no such folder exists."""
    return bool(MODEL_ID.fullmatch(str(path))) and not Path(path).exists()


def fetch(model_id: str) -> Path:
    """The newest snapshot of a model, its weights being those that its index names; what the cache has is not downloaded again.

    Raises:
        UserError: there is no such model or folder, no right to read it, or no connection and no copy in the cache.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    began = time.monotonic()
    try:
        folder = Path(huggingface_hub.snapshot_download(model_id, allow_patterns=list(DESCRIBING)))
        huggingface_hub.snapshot_download(model_id, revision=folder.name, allow_patterns=weights.files(folder))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{model_id} is neither a folder here nor a model that the Hugging Face hub gave us ({reason}): correct the path, go "
            "online, or log in with `hf auth login` if the model is gated"
        ) from None
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    hosts.say(f"{model_id}: {size / 1e9:.2f} GB from the Hugging Face hub or its cache in {time.monotonic() - began:.1f} s")
    return folder
