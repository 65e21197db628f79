"""Settings of every test: 8 fake CPU devices, strict shapes and dtypes, no network, no accelerator.

What one test compiled is there for all others of this run and for the commands that they start.
"""

import importlib.util
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from commands import COMPILER

os.environ["JAX_PLATFORMS"] = "cpu"
FLAGS = ("--xla_force_host_platform_device_count=8", *COMPILER)
os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), *FLAGS))
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    COMPILED = tempfile.TemporaryDirectory(prefix="compiled")  # of the process that starts the others: it goes when that ends
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the tokenizer warns about the processes that tests fork

import jax
import pytest

from srlhfv_jax.config import MeshConfig
from srlhfv_jax.parallel import host_cpu
from srlhfv_jax.parallel.mesh import make_mesh

host_cpu.give_fake_devices_threads()

LONGEST = ("test_real_weights", "test_processes", "test_quickstart_short", "test_end_to_end", "test_families_stages", "test_plan")
assert all(Path(__file__).with_name(f"{name}.py").exists() for name in LONGEST), LONGEST

# Its CPU build is there for some Pythons only. Without it, files that compare with it are left out, and tests of other files that
# build a checkpoint with it are skipped.
TORCH = re.compile(r"^(?:import|from) (?:torch|peft|tiny_families)\b", re.MULTILINE)
collect_ignore = []
if importlib.util.find_spec("torch") is None:
    collect_ignore = [file.name for file in sorted(Path(__file__).parent.glob("test_*.py")) if TORCH.search(file.read_text())]


def pytest_report_header() -> str:
    """Files that this run leaves out."""
    return f"without PyTorch {len(collect_ignore)} files are left out: {' '.join(collect_ignore)}" if collect_ignore else ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes come first: two run at a time, and none of these should be left to run alone."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def pytest_configure(config: pytest.Config) -> None:
    jax.config.update("jax_numpy_rank_promotion", "raise")
    config.addinivalue_line("filterwarnings", "error::FutureWarning")  # a float scattered into an int array, for one


@pytest.fixture(autouse=True)
def no_mesh_left_behind() -> Iterator[None]:
    """A stage sets the mesh of its process; the next test starts without."""
    yield
    jax.set_mesh(None)


@pytest.fixture
def one_device() -> jax.sharding.Mesh:
    return make_mesh(MeshConfig(data=1, fsdp=1, tensor=1))


@pytest.fixture
def eight_devices() -> jax.sharding.Mesh:
    return make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
