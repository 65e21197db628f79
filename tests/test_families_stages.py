"""Every vision-language family goes the whole way, sft -> guard and scores on one backbone -> ppo_lag -> export, with questions
about one picture, about none, and in conversations about two.

The two whose towers and decoders ask for most train their policy on eight devices: compiling that takes a minute each.
"""

import jax
import numpy as np
import pytest
import tiny_hf
import tiny_stages
import transformers
from tiny_data import png

from srlhfv_jax.config import GuardConfig, PPOLagConfig, SFTConfig
from srlhfv_jax.data import taxonomies
from srlhfv_jax.guard import Guard, train as guard
from srlhfv_jax.hf.load import load_pretrained
from srlhfv_jax.parallel import hosts
from srlhfv_jax.ppo_lag import run as ppo_lag
from srlhfv_jax.quickstart.pipeline import write_rows
from srlhfv_jax.supervised import sft

pytestmark = pytest.mark.slow  # every family through every stage

FAMILIES = {
    "llava_next": tiny_hf.llava_next_config(),
    "qwen2_vl": tiny_hf.qwen2_vl_config(),
    "qwen2_5_vl": tiny_hf.qwen2_5_vl_config(),
    "smolvlm": tiny_hf.smolvlm_config(),
    "gemma3": tiny_hf.gemma3_config(),
}
ON_EIGHT = ("qwen2_5_vl", "gemma3")
MESH = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}
SIZES = ((40, 17), (13, 33), (20, 20))  # width and height of the pictures


def settings(kind, command: str, **changes):
    """Short rows with room for pictures."""
    lengths = {"data.split": "", "data.prompt_length": 128, "data.response_length": 6, "data.batch_size": 8}
    return tiny_stages.settings(kind, command, **(lengths | changes))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Pairs about pictures of three shapes; of four rows one has none, and one is a conversation with a system turn about two."""
    rng = np.random.default_rng(0)

    def words(count):
        return " ".join(f"w{i}" for i in rng.integers(6, 49, count))

    made = []
    for i in range(24):
        safer = i % 2
        pictures = [png(i + k, SIZES[(i + k) % 3]) for k in range((1, 2, 1, 0)[i % 4])]
        turns = zip(("system", "user", "assistant"), (words(2), f"<image> {words(2)}", words(3)))
        made.append(
            {
                "images": pictures,
                "history": [{"role": role, "content": text} for role, text in turns] if len(pictures) == 2 else [],
                "question": f"{words(1)} <image> {words(1)}" if len(pictures) == 2 else words(3),
                "responses": [words(2 + i % 3), words(4)],
                "chosen": i // 2 % 2,
                "safer": safer,
                "unsafe": [safer == 1, safer == 0],
                "category": taxonomies.BEAVERTAILS_V[i % 20],
            }
        )
    path = tmp_path_factory.mktemp("rows") / "pairs.parquet"
    write_rows(path, made)
    return str(path)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_goes_from_rows_to_an_export(family, rows, tmp_path):
    tiny_hf.save(tmp_path / "base", FAMILIES[family])
    data = {"data.path": rows}
    done = sft.run(settings(SFTConfig, "sft", init=str(tmp_path / "base"), steps=2, **data), tmp_path / "sft")
    assert np.isfinite(done["loss"]) and done["loss"] > 0 and done["rows"] == 24
    pairs = {"pairs.path": rows, "pairs.batch_size": 8}
    judges = settings(GuardConfig, "guard", init=str(tmp_path / "sft"), steps=2, **data, **pairs)
    done = guard.run(judges, tmp_path / "guard")
    assert np.isfinite(done["loss"]) and done["grad_norm"] > 0
    (verdict,) = Guard.load(tmp_path / "guard").check_output([(png(1, SIZES[0]),)], ["w7 w8"], ["w9"])
    assert 0 < verdict.scores["unsafe"] < 1
    mesh = MESH if family in ON_EIGHT else {}
    start = {"policy": str(tmp_path / "sft"), "scorer": str(tmp_path / "guard")}
    constrained = settings(PPOLagConfig, "ppo_lag", iterations=2, **start, **data, **mesh)
    done = ppo_lag.run(constrained, tmp_path / "ppo_lag")
    # The self-test passed: what was sampled from the cache is what the training graph computes, placeholders match features.
    assert done["grad_norm"] > 0 and np.isfinite(done["kl"]) and np.isfinite(done["lambda.final"])
    before, after = (hosts.to_host(load_pretrained(tmp_path / stage).params) for stage in ("sft", "ppo_lag"))
    jax.tree.map(np.testing.assert_array_equal, before["vision"], after["vision"])
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before["text"], after["text"])
    assert all(jax.tree.leaves(moved["layers"]["self_attn"]["q_proj"]))
    transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "ppo_lag" / "export")
