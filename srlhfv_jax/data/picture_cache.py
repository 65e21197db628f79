"""Patches of pictures that were cut before, as many as fit into memory."""

import threading
from collections.abc import Iterable, Mapping

import numpy as np

PICTURE_CACHE_BYTES = 1 << 30  # prepared pictures kept in memory; those that do not fit are prepared again each time


class PictureCache:
    """Patches of pictures by digest, as many as fit; read and filled by several threads."""

    def __init__(self) -> None:
        self._patches: dict[bytes, np.ndarray] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, digests: Iterable[bytes]) -> dict[bytes, np.ndarray]:
        """Those that are there."""
        return {digest: self._patches[digest] for digest in digests if digest in self._patches}

    def keep(self, made: Mapping[bytes, np.ndarray]) -> None:
        """Those that fit."""
        with self._lock:
            for digest, patches in made.items():
                if self._bytes + patches.nbytes <= PICTURE_CACHE_BYTES and digest not in self._patches:
                    self._patches[digest] = patches
                    self._bytes += patches.nbytes
