"""Compiled programs outlive the process: the next one finds them without being told where."""

import os
import platform
import subprocess
import sys

import pytest
from commands import ENVIRONMENT

from srlhfv_jax import compilation_cache

PROGRAM = """
from srlhfv_jax import compilation_cache
compilation_cache.prepare()
import jax
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if event.endswith("/cache_hits") else None)
print(float(jax.jit(lambda x: x * 2.5 + 0.25)(1.5)), len(hits))
"""


@pytest.fixture
def unset(monkeypatch):
    """An environment in which nothing was said of a folder; it is put back."""
    monkeypatch.setenv(compilation_cache.FOLDER, "")
    monkeypatch.delenv(compilation_cache.FOLDER)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_MAX_SIZE", "")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_MAX_SIZE")
    return monkeypatch


def test_the_next_process_compiles_nothing(tmp_path):
    environment = {name: value for name, value in ENVIRONMENT.items() if name != compilation_cache.FOLDER}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0", "JAX_PLATFORMS": "cpu"}
    first, second = (
        subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(2)
    )
    assert first == ["4.0", "0"]
    assert second[0] == "4.0" and int(second[1]) >= 1


def test_a_folder_of_the_users_cache_unless_the_environment_names_one(unset, tmp_path):
    unset.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    compilation_cache.prepare()
    folder = os.environ[compilation_cache.FOLDER]
    assert folder.startswith(str(tmp_path / "cache" / "srlhfv_jax" / "compiled")) and os.path.isdir(folder)
    unset.setenv(compilation_cache.FOLDER, "/elsewhere")
    compilation_cache.prepare()
    assert os.environ[compilation_cache.FOLDER] == "/elsewhere"


def test_where_nothing_can_be_written_there_is_none(unset, tmp_path):
    (tmp_path / "file").write_text("")
    unset.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    compilation_cache.prepare()
    assert compilation_cache.FOLDER not in os.environ


def test_processors_do_not_share_a_folder(unset, tmp_path):
    unset.setenv("XDG_CACHE_HOME", str(tmp_path))
    here = compilation_cache.default_folder()
    unset.setattr(compilation_cache, "_processor", lambda: "x86_64-another")
    assert compilation_cache.default_folder() != here and here.name.startswith(platform.machine())
