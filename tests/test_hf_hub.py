"""Model ids of the hub: read from its cache without a connection, and one clear line where there is neither."""

import json

import huggingface_hub
import jax
import numpy as np
import pytest
import tiny_hf

from srlhfv_jax.checkpoint import provenance
from srlhfv_jax.errors import UserError
from srlhfv_jax.guard.train import PRODUCT
from srlhfv_jax.hf import card, hub, load_pretrained
from srlhfv_jax.models import guard_heads, score_heads
from srlhfv_jax.runs.run import Started, export_run, finish

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


@pytest.mark.parametrize("typed", ["runs/stf", "runs/stf/", "./runs/stf"])
def test_the_nearest_folder_is_named(cache, tmp_path, monkeypatch, typed):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "sft").mkdir(parents=True)
    with pytest.raises(UserError, match="; did you mean 'runs/sft'") as error:
        load_pretrained(typed)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", ["/runs/sft", "runs/sft/export", "llama", "../base", "runs/"])
def test_only_owner_and_name_are_looked_up(path):
    assert not hub.is_model_id(path)


def test_a_folder_that_exists_is_never_looked_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub.is_model_id("runs/sft")
    (tmp_path / "runs" / "sft").mkdir(parents=True)
    assert not hub.is_model_id("runs/sft")


def lay_out(cache, revisions: dict[str, int], newest: str) -> None:
    """A cache with several commits of one model, of which a branch has one."""
    store = cache / "models--someone--tiny-llama"
    (store / "refs").mkdir(parents=True)
    (store / "refs" / "main").write_text(newest)
    for revision, seed in revisions.items():
        tiny_hf.save(store / "snapshots" / revision, tiny_hf.llama_config(), seed=seed)


def test_a_revision_is_read_where_it_is_named_and_recorded_where_it_is_not(cache):
    old, new = "1" * 40, "2" * 40
    lay_out(cache, {old: 1, new: 2}, new)
    newest, pinned = load_pretrained("someone/tiny-llama"), load_pretrained(f"someone/tiny-llama@{old}")
    assert newest.base == f"someone/tiny-llama@{new}" and pinned.base == f"someone/tiny-llama@{old}"
    embeddings = [np.asarray(one.params["text"]["embed"]["embedding"]) for one in (newest, pinned)]
    assert np.abs(embeddings[0] - embeddings[1]).max() > 0.1


def test_a_run_is_resumed_with_the_revision_that_it_began_with(cache):
    old, new = "1" * 40, "2" * 40
    lay_out(cache, {old: 1, new: 2}, old)
    settings = {"init": "someone/tiny-llama", "seed": 3}
    began = provenance.record(settings)
    assert began["revisions"] == {"someone/tiny-llama": old}
    provenance.check_same(began, settings)
    (cache / "models--someone--tiny-llama" / "refs" / "main").write_text(new)
    with pytest.raises(UserError, match=f"someone/tiny-llama was {old} on the hub .* is now {new}; use someone/tiny-llama@{old}"):
        provenance.check_same(began, settings)
    provenance.check_same(began, settings | {"init": f"someone/tiny-llama@{old}"})


def test_a_card_names_the_revision(cache):
    said = card.card(
        base=f"someone/tiny-llama@{REVISION}",
        product=card.Product("sft", ""),
        settings={"data": {"path": "a"}},
        result={},
        trace=[],
    )
    assert "base_model: someone/tiny-llama\n" in said and f"- base model: someone/tiny-llama@{REVISION}" in said


def test_a_process_reads_and_records_one_commit_wherever_the_branch_goes(cache):
    old, new = "1" * 40, "2" * 40
    lay_out(cache, {old: 1, new: 2}, old)
    before = load_pretrained("someone/tiny-llama")
    (cache / "models--someone--tiny-llama" / "refs" / "main").write_text(new)
    after = load_pretrained("someone/tiny-llama")
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)
    assert provenance.record({"init": "someone/tiny-llama"})["revisions"] == {"someone/tiny-llama": old}


def test_the_files_of_exported_heads_name_the_commit_that_the_run_started_from(cache, tmp_path):
    lay_out(cache, {REVISION: 1}, REVISION)
    loaded = load_pretrained("someone/tiny-llama")
    tree = {"backbone": loaded.params, "heads": score_heads.init(loaded.config, ("cost",), jax.random.key(0))}
    tree["guard"] = guard_heads.init(loaded.config, 1, jax.random.key(1))
    (tmp_path / "config.json").write_text(json.dumps({"init": "someone/tiny-llama", "data": {"path": "a"}}))
    (tmp_path / "metrics.jsonl").write_text("")
    started = Started(tmp_path, None, None, None, 0.0)
    export_run(started, PRODUCT, loaded.config, tree, base=loaded.path, result={}, guard={"categories": ["a"]})
    named = {"started_from": f"someone/tiny-llama@{REVISION}"}
    for name in ("score_heads.json", "guard.json"):
        assert named.items() <= json.loads((tmp_path / "export" / name).read_text()).items()
    finish(started, PRODUCT, {}, guard={"categories": ["a"], "false_positive_rate": 0.05})
    described = json.loads((tmp_path / "export" / "guard.json").read_text())
    assert described["false_positive_rate"] == 0.05 and named.items() <= described.items()
