"""Where a change of weights lies, by construction; separation by hand; and `srlhfv weights diagnose` from two policies to a page."""

import json

import jax
import numpy as np
import pytest
from tiny_stages import picture_task, rows, settings

from srlhfv_jax.cli.main import main
from srlhfv_jax.config import SFTConfig
from srlhfv_jax.hf.load import load_pretrained
from srlhfv_jax.supervised import sft
from srlhfv_jax.weights.diagnose import outside, separation

TALL, WIDE = (7, 4), (4, 7)


def kernel(shape: tuple[int, int], values: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """A kernel with these singular values, and a whole basis of its outputs that begins with its left singular vectors."""
    rng = np.random.default_rng(sum(shape) + shape[0])
    left, right = (np.linalg.qr(rng.normal(size=(side, side)))[0] for side in shape)
    return left[:, : len(values)] * values @ right[:, : len(values)].T, left


@pytest.mark.parametrize("shape", [TALL, WIDE], ids=["tall", "wide"])
def test_a_change_inside_has_no_energy_outside_and_an_orthogonal_one_all_of_it(shape):
    """Squares 9, 4, 1.44, 0.25 of 14.69: the first two hold 88.5 %, three hold 98.3 %, so three are kept."""
    w, left = kernel(shape, [3.0, 2.0, 1.2, 0.5])
    across = np.random.default_rng(1).normal(size=(3, shape[1]))
    inside = outside(w, w + left[:, :3] @ across)
    assert inside.directions == 3 and inside.share < 1e-12
    beyond = outside(w, w + left[:, 3:4] @ across[:1])
    np.testing.assert_allclose((beyond.share, beyond.random), (1, 1 - 3 / shape[0]), rtol=1e-12)
    mixed = outside(w, w + 0.6 * left[:, :1] @ np.eye(1, shape[1]) + 0.8 * left[:, 3:4] @ np.eye(1, shape[1], 2))
    np.testing.assert_allclose((mixed.share, mixed.change), (0.64, 1 / np.sqrt(14.69)), rtol=1e-9)


def test_as_many_directions_are_kept_as_the_energy_needs():
    w, _ = kernel(TALL, [3.0, 2.0, 1.2, 0.5])
    kept = {energy: outside(w, 2 * w, energy).directions for energy in (0.6, 9 / 14.69, 0.88, 0.89, 0.99, 1.0)}
    assert list(kept.values()) == [1, 1, 2, 3, 4, 4]
    assert outside(w, 2 * w, 1.0).share < 1e-12


@pytest.mark.parametrize("shape", [TALL, WIDE], ids=["tall", "wide"])
def test_a_random_change_is_outside_as_chance_has_it(shape):
    w, _ = kernel(shape, [3.0, 2.0, 1.2, 0.5])
    rng = np.random.default_rng(2)
    found = [outside(w, w + rng.normal(size=shape)) for _ in range(2000)]
    assert abs(np.mean([of.share for of in found]) - found[0].random) < 0.01


def test_of_no_change_there_is_no_share():
    w, _ = kernel(WIDE, [3.0, 2.0])
    assert np.isnan(outside(w, w).share) and outside(w, w).change == 0


def test_separation_by_hand():
    """Means 3 and 4 apart, squares about them 2 x 0.5^2 and 2 x 1.5^2, four rows: 5 / sqrt(5 / 4). Layer 1 has no spread."""
    safe = np.array([[[0.5, 0.0], [-0.5, 0.0]], [[1.0, 1.0], [1.0, 1.0]]])
    unsafe = np.array([[[3.0, 5.5], [3.0, 2.5]], [[2.0, 1.0], [2.0, 1.0]]])
    found = separation(safe, unsafe)
    np.testing.assert_allclose(found[0], 5 / np.sqrt(1.25))
    assert np.isnan(found[1])
    np.testing.assert_allclose(separation(7 * safe, 7 * unsafe)[0], found[0])


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A picture task with `a`, a policy, and `b`, which went on from it."""
    folder = picture_task(tmp_path_factory.mktemp("picture"))
    given = dict(steps=1) | rows(folder)
    sft.run(settings(SFTConfig, "sft", init=str(folder / "base"), init_random=True, **given), folder / "a")
    sft.run(settings(SFTConfig, "sft", init=str(folder / "a"), **given | {"steps": 2}), folder / "b")
    jax.set_mesh(None)
    return folder


def asked(folder, out, **changes) -> list[str]:
    data = f"{folder / 'sft.parquet'}"
    flags = dict(before=folder / "a", after=folder / "b", safe=data, unsafe=data, workdir=out, batch_size=16) | changes
    return ["weights", "diagnose", *(f"--{name}={value}" for name, value in flags.items())]


@pytest.mark.slow
def test_from_two_policies_to_a_table_and_a_page(picture, tmp_path, capsys):
    assert main(asked(picture, tmp_path / "out")) == 0
    jax.set_mesh(None)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    a, b = (load_pretrained(picture / name).params["text"]["layers"]["mlp"]["up_proj"]["kernel"] for name in "ab")
    w, moved = np.asarray(a[1], np.float64), np.asarray(b[1] - a[1], np.float64)
    left, values, _ = np.linalg.svd(w, full_matrices=False)
    kept = int(np.argmax(np.cumsum(values**2) >= 0.9 * np.sum(values**2))) + 1
    share = 1 - np.sum((left[:, :kept].T @ moved) ** 2) / np.sum(moved**2)
    np.testing.assert_allclose(result["outside"]["up_proj"][1], share, rtol=1e-4)
    assert result["directions"]["up_proj"][1] == kept
    assert result["separation"]["before"] == [0.0, 0.0]  # the same rows
    assert result["loss"]["after.safe"] < result["loss"]["before.safe"] == result["loss"]["before.unsafe"]
    said = capsys.readouterr().out
    assert f"{share:.4f}" in said and "separation after" in said
    page = (tmp_path / "out" / "report.html").read_text()
    assert "up_proj, random" in page and page.count("<figure>") == 2


@pytest.mark.slow
def test_the_norm_of_the_gradient_is_that_of_the_mean_loss_whatever_the_batch(picture, tmp_path):
    """Batches of 16 and of 40, whose last one is filled up, say the same."""
    numbers = []
    for size in (16, 40):
        assert main(asked(picture, tmp_path / str(size), batch_size=size)) == 0
        numbers.append(json.loads((tmp_path / str(size) / "result.json").read_text()))
    np.testing.assert_allclose(numbers[0]["gradient_norm"]["before.safe"], numbers[1]["gradient_norm"]["before.safe"], rtol=1e-4)
    np.testing.assert_allclose(numbers[0]["loss"]["before.safe"], numbers[1]["loss"]["before.safe"], rtol=1e-5)


def test_what_cannot_be_compared_is_refused_in_one_line(picture, tmp_path, capsys):
    capsys.readouterr()
    for changes, said in (
        ({"after": picture / "a"}, "are one checkpoint"),
        ({"after": tmp_path / "nobody"}, "nobody"),
        ({"unsafe": tmp_path / "none.parquet"}, "none.parquet"),
    ):
        assert main(asked(picture, tmp_path / "out", **changes)) == 2
        told = capsys.readouterr().err.splitlines()
        assert len(told) == 1 and said in told[0], told
    assert not (tmp_path / "out").exists()
