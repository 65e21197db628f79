"""Model ids of the hub: read from its cache without a connection, and one clear line where there is neither."""

import huggingface_hub
import jax
import numpy as np
import pytest
import tiny_hf

from srlhfv_jax.errors import UserError
from srlhfv_jax.hf import hub, load_pretrained

REVISION = "0" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub, and no connection."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "10KB"}])
def test_a_model_in_the_cache_loads_by_its_id(cache, shards):
    """As the hub lays it out: every file of a snapshot is a link to a blob."""
    store = cache / "models--someone--tiny-llama"
    tiny_hf.save(store / "blobs", tiny_hf.llama_config(), **shards)
    (store / "refs").mkdir()
    (store / "refs" / "main").write_text(REVISION)
    (store / "snapshots" / REVISION).mkdir(parents=True)
    for blob in (store / "blobs").iterdir():
        (store / "snapshots" / REVISION / blob.name).symlink_to(blob)
    by_id = load_pretrained("someone/tiny-llama")
    by_folder = load_pretrained(store / "blobs")
    assert by_id.config == by_folder.config
    jax.tree.map(np.testing.assert_array_equal, by_id.params, by_folder.params)


def test_what_is_neither_here_nor_on_the_hub_is_said_in_one_line(cache):
    with pytest.raises(UserError, match="someone/nothing is neither a folder here nor a model that the .* hub gave us") as error:
        load_pretrained("someone/nothing")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", ["/runs/sft", "runs/sft/export", "llama", "../base", "runs/"])
def test_only_owner_and_name_are_looked_up(path):
    assert not hub.is_model_id(path)


def test_a_folder_that_exists_is_never_looked_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub.is_model_id("runs/sft")
    (tmp_path / "runs" / "sft").mkdir(parents=True)
    assert not hub.is_model_id("runs/sft")
