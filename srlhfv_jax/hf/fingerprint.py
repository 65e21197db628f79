"""Fingerprints of checkpoints: whether numbers that lie in a file are of these weights."""

import hashlib
from collections.abc import Iterator

from srlhfv_jax.hf import weights
from srlhfv_jax.hf.load import backbone_name, checkpoint_folder, described_in
from srlhfv_jax.parallel import hosts


def digests(path: str) -> Iterator[bytes]:
    """SHA-256 of each file of a checkpoint that holds weights, an adapter, a revision or the architecture, in order; of what it lies over
    too."""
    for folder in dict.fromkeys([checkpoint_folder(path), checkpoint_folder(backbone_name(path))]):
        described = (folder / name for name in ("adapter_config.json", weights.REVISION_META))
        for file in sorted([*folder.glob("*.safetensors"), *described, described_in(folder) / "config.json"]):
            if file.is_file():
                with file.open("rb") as stream:
                    yield hashlib.file_digest(stream, "sha256").digest()


def of(path: str) -> str:
    """Fingerprint of a checkpoint, 32 hexadecimal digits, as the first process finds it."""
    if hosts.process_index() > 0:
        return hosts.text_from_first("")
    return hosts.text_from_first(hashlib.sha256(b"".join(digests(path))).hexdigest()[:32])
