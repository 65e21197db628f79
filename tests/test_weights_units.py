"""Scores of units and sets by rank, by hand; and `srlhfv weights units` from a policy and rows to training with units that stand still."""

import functools
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_stages import picture_task, rows, settings

from srlhfv_jax.cli.main import main
from srlhfv_jax.config import SFTConfig
from srlhfv_jax.errors import UserError
from srlhfv_jax.hf.load import load_pretrained
from srlhfv_jax.models.measure import Moments, Units
from srlhfv_jax.supervised import sft
from srlhfv_jax.training import units as files
from srlhfv_jax.training.units import SETS, UnitScores
from srlhfv_jax.weights.units import importance, norms, sets

SAFE = UnitScores(np.array([[5.0, 1.0, 4.0, 0.25, 2.0]]), np.array([[0.5, 3.0]]))
USEFUL = UnitScores(np.array([[1.0, 3.5, 4.0, 0.5, 0.0]]), np.array([[2.5, 0.0]]))


def test_scores_by_hand():
    """One layer, two neurons that a kernel [2, 2] reads, one head of two channels. I = variance x squared norm of the channel's row."""
    layers = {
        "mlp": {"down_proj": {"kernel": np.array([[[1.5, -2.0], [0.5, 0.0]]], np.float32)}},
        "self_attn": {"o_proj": {"kernel": np.array([[[3.0, 0.0], [0.0, 0.25]]], np.float32)}},
    }
    moments = Units(
        heads=Moments(np.array([4.0]), np.zeros((1, 1, 2)), np.array([[[2.0, 8.0]]])),  # variances 0.5 and 2
        mlp=Moments(np.array([4.0]), np.array([[9.0, -1.0]]), np.array([[1.0, 6.0]])),  # variances 0.25 and 1.5
    )
    scores = importance(moments, norms({"text": {"layers": layers}}))
    np.testing.assert_allclose(scores.mlp, [[0.25 * 6.25, 1.5 * 0.25]])
    np.testing.assert_allclose(scores.heads, [[0.5 * 9 + 2 * 0.0625]])


def test_a_channel_scaled_up_and_its_reader_scaled_down_score_the_same():
    rng = np.random.default_rng(0)
    values, kernel = rng.normal(size=(1, 7, 3)), rng.normal(size=(1, 3, 5))
    scale = np.array([0.3, 7.0, 1.5])

    def score(values, kernel):
        of = Moments(np.array([7.0]), values.mean(axis=1), 7 * values.var(axis=1))
        heads = Moments(np.array([7.0]), np.zeros((1, 1, 3)), np.zeros((1, 1, 3)))
        layers = {"mlp": {"down_proj": {"kernel": kernel}}, "self_attn": {"o_proj": {"kernel": np.zeros((1, 3, 5))}}}
        return importance(Units(heads, of), norms({"text": {"layers": layers}})).mlp

    np.testing.assert_allclose(score(values * scale, kernel / scale[:, None]), score(values, kernel), rtol=1e-5)


def places(of: UnitScores) -> tuple[list[int], list[int]]:
    return np.flatnonzero(of.mlp).tolist(), np.flatnonzero(of.heads).tolist()


def test_sets_by_rank_by_hand():
    """Gaps of the neurons 4, -2.5, 0, -0.25, 2; sums 6, 4.5, 8, 0.75, 2. Gaps of the heads -2, 3; sums 3, 3: the first of equal ones."""
    shares = {"safety": 0.4, "utility": 0.2, "complex": 0.4, "redundant": 0.4}
    apart = sets(SAFE, USEFUL, dict.fromkeys(SETS, 0.2), disjoint=True)
    assert {name: places(of)[0] for name, of in apart.items()} == {
        "safety": [0],
        "utility": [1],
        "complex": [2],
        "redundant": [3],
    }
    free = sets(SAFE, USEFUL, shares, disjoint=False)
    assert {name: places(of)[0] for name, of in free.items()} == {
        "safety": [0, 4],
        "utility": [1],
        "complex": [0, 2],
        "redundant": [3, 4],
    }
    halves = sets(SAFE, USEFUL, dict.fromkeys(SETS, 0.5), disjoint=False)
    assert {name: places(of)[1] for name, of in halves.items()} == {
        "safety": [1],
        "utility": [0],
        "complex": [0],
        "redundant": [0],
    }


def test_disjoint_sets_are_disjoint_and_no_smaller():
    rng = np.random.default_rng(1)
    safe, useful = (UnitScores(rng.exponential(size=(3, 40)), rng.exponential(size=(3, 5))) for _ in range(2))
    found = sets(safe, useful, {"safety": 0.1, "utility": 0.3, "complex": 0.2, "redundant": 0.4}, disjoint=True)
    assert sum(of.mlp.astype(int) for of in found.values()).max() == 1
    assert [int(of.mlp.sum()) for of in found.values()] == [12, 36, 24, 48]


@pytest.mark.parametrize(
    "share, disjoint, said", [(1.5, False, "from 0 to 1"), (-0.1, True, "from 0 to 1"), (0.3, True, "disjoint")]
)
def test_shares_that_no_sets_have(share, disjoint, said):
    with pytest.raises(UserError, match=said):
        sets(SAFE, USEFUL, dict.fromkeys(SETS, share), disjoint=disjoint)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A picture task with `a`, the workdir of a stage, and `units`, a file of its units."""
    folder = picture_task(tmp_path_factory.mktemp("picture"))
    sft.run(settings(SFTConfig, "sft", init=str(folder / "base"), init_random=True, steps=1, **rows(folder)), folder / "a")
    jax.set_mesh(None)
    assert main(asked(folder)) == 0
    return folder


def asked(folder, **changes) -> list[str]:
    data = str(folder / "sft.parquet")
    shares = dict(safety=0.2, utility=0.2, complex=0.3, redundant=0.3)
    flags = dict(policy=folder / "a", safe=data, useful=data, out=folder / "units", batch_size=16) | shares | changes
    return ["weights", "units", *(f"--{name}={value}" for name, value in flags.items())]


@functools.cache
def trained(picture, workdir, **changes):
    """The decoder's leaves behind three steps from `a`."""
    given = settings(
        SFTConfig, "sft", init=str(picture / "a"), **rows(picture) | {"steps": 3, "optimizer.weight_decay": 0.1} | dict(changes)
    )
    sft.run(given, workdir)
    jax.set_mesh(None)
    return load_pretrained(workdir).params


@pytest.mark.slow
def test_the_file_has_scores_and_sets_and_the_policy_goes_on_with_them(picture, tmp_path):
    units = files.read(str(picture / "units"), "x")
    assert units.safe.mlp.min() >= 0 and units.safe.mlp.max() > 0
    np.testing.assert_array_equal(units.safe.mlp, units.useful.mlp)  # of the same rows
    before = load_pretrained(picture / "a").params["text"]["layers"]
    frozen = trained(picture, tmp_path / "frozen", **{"optimizer.frozen_units": str(picture / "units")})["text"]["layers"]
    still = units.sets["safety"].mlp | units.sets["complex"].mlp
    same = (frozen["mlp"]["down_proj"]["kernel"] == before["mlp"]["down_proj"]["kernel"]).all(axis=2)
    np.testing.assert_array_equal(same, still)
    only = trained(picture, tmp_path / "only", **{"optimizer.only_units": str(picture / "units")})
    moved = (only["text"]["layers"]["mlp"]["up_proj"]["kernel"] != before["mlp"]["up_proj"]["kernel"]).any(axis=2)
    np.testing.assert_array_equal(moved, units.sets["redundant"].mlp)
    np.testing.assert_array_equal(
        only["text"]["embed"]["embedding"], load_pretrained(picture / "a").params["text"]["embed"]["embedding"]
    )


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_to_the_same_numbers(picture, tmp_path):
    changes = {"optimizer.frozen_units": str(picture / "units"), "checkpoint.every_steps": 2}
    whole = trained(picture, tmp_path / "whole", **changes)
    shutil.copytree(
        tmp_path / "whole", tmp_path / "again", ignore=lambda folder, names: [n for n in names if n in ("3", "export")]
    )
    assert [path.name for path in (tmp_path / "again" / "checkpoints").iterdir() if path.name.isdigit()] == ["2"]
    again = trained(picture, tmp_path / "again", **changes)
    jax.tree.map(np.testing.assert_array_equal, again, whole)


def test_what_cannot_be_used_is_refused_in_one_line(picture, tmp_path, capsys):
    other = shutil.copytree(picture / "a" / "export", tmp_path / "other")
    save_file({name: -value for name, value in load_file(other / "model.safetensors").items()}, other / "model.safetensors")
    file = str(picture / "units")
    for changes, said in (
        ({"init": str(other), "optimizer.frozen_units": file}, "other weights"),
        ({"init": str(picture / "a"), "optimizer.frozen_units": file, "lora.rank": 2}, "an adapter moves every unit"),
        ({"init": str(picture / "a"), "optimizer.frozen_units": str(tmp_path / "none")}, "is no file"),
        ({"init": str(picture / "base"), "init_random": True, "optimizer.only_units": file}, "drawn anew"),
    ):
        with pytest.raises(UserError, match=said):
            sft.run(settings(SFTConfig, "sft", steps=1, **rows(picture) | changes), tmp_path / "out")
        jax.set_mesh(None)
    capsys.readouterr()
    for changes, said in (
        ({"safety": 1.5}, "the share of safety units must be from 0 to 1, got 1.5"),
        ({"complex": 0.5}, "disjoint sets of units cannot have"),
        ({"out": tmp_path}, "is a folder: give a file"),
        ({"safe": tmp_path / "none.parquet"}, "none.parquet"),
        ({"policy": tmp_path / "nobody"}, "nobody"),
    ):
        assert main(asked(picture, **changes)) == 2
        said_here = capsys.readouterr().err.splitlines()
        assert len(said_here) == 1 and said in said_here[0], said_here
