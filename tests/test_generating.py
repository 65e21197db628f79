"""Policies that answer prompts as they come: rounding up sizes and filling batches change no answer."""

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest
import tiny_hf
from tiny_data import png, settings

from srlhfv_jax.cli import main
from srlhfv_jax.config import MeshConfig, inference
from srlhfv_jax.data.rows import Prompt
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation import answering
from srlhfv_jax.parallel.mesh import make_mesh

DATA = settings(split="", prompt_length=0, response_length=5, batch_size=4, workers=1)
MODEL = inference("float32")
CONFIGS = {"llava": tiny_hf.llava_config(), "qwen2_5_vl": tiny_hf.qwen2_5_vl_config()}
PROMPTS = [
    Prompt((png(0, (40, 17)),), "w6 w7 w8"),
    Prompt((png(1, (13, 33)),), "w9"),
    Prompt((), "w10 w11"),
    Prompt((png(2, (20, 20)), png(0, (40, 17))), "w12 w13 w14 w15"),
    Prompt((png(1, (13, 33)),), "w16 w17"),
]


@pytest.fixture(scope="module", params=CONFIGS)
def greedy(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    tiny_hf.save(folder, CONFIGS[request.param])
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, tensor=1))
    return answering.load_policy(str(folder), DATA, MODEL, mesh, temperature=0.0, seed=0)


def test_a_greedy_answer_does_not_depend_on_what_else_is_asked_nor_on_the_thread(greedy):
    together = answering.answer_prompts(greedy, PROMPTS, 0)
    with ThreadPoolExecutor(1) as worker:
        alone = [worker.submit(answering.answer_prompts, greedy, [prompt], 7).result()[0] for prompt in PROMPTS]
    assert together == alone
    assert len(set(together)) > 1


def test_a_policy_answers_on_its_own_mesh_whatever_mesh_is_in_force(greedy, eight_devices):
    alone = answering.answer_prompts(greedy, PROMPTS[:2], 3)
    with jax.set_mesh(eight_devices):
        assert answering.answer_prompts(greedy, PROMPTS[:2], 3) == alone


def test_policies_of_one_architecture_share_a_compiled_sampler(greedy):
    other = greedy._replace(
        checkpoint=greedy.checkpoint._replace(params=jax.tree.map(lambda x: x * 1.25, greedy.checkpoint.params))
    )
    first = answering.answer_prompts(greedy, PROMPTS[:2], 0)
    compiled = greedy.sampler._generate._cache_size()
    assert answering.answer_prompts(other, PROMPTS[:2], 0) != first
    assert greedy.sampler._generate._cache_size() == compiled >= 1


def test_rounding_up_lengths_and_pictures_changes_no_answer(greedy, monkeypatch):
    rounded = answering.answer_prompts(greedy, PROMPTS, 0)
    monkeypatch.setattr(answering, "_rounded", lambda prepared: prepared)
    assert answering.answer_prompts(greedy, PROMPTS, 0) == rounded


def test_draws_with_different_numbers_differ_and_with_the_same_number_agree(greedy):
    policy = answering.load_policy(str(greedy.checkpoint.path), DATA, MODEL, greedy.sampler.mesh, temperature=1.0, seed=3)
    first, again, second = (answering.answer_prompts(policy, PROMPTS[:2], draw) for draw in (0, 0, 1))
    assert first == again != second


def test_a_prompt_that_cannot_be_read_is_named_before_and_refused_after(greedy):
    data = dataclasses.replace(DATA, prompt_length=60)
    policy = greedy._replace(sampler=answering.Sampler(greedy.sampler.mesh, data, temperature=0.0))
    prompts = [Prompt((), "w6"), Prompt((), " ".join(["w7"] * 61)), Prompt((), "w8 <image>")]
    found = answering.unreadable(policy, prompts)
    assert [unusable and unusable.reason for unusable in found] == [None, "prompt_too_long", "special_token_in_text"]
    with pytest.raises(UserError, match="prompt 1 cannot be read by .*: prompt_too_long"):
        answering.answer_prompts(policy, prompts, 0)


def test_the_command_answers_one_prompt_or_a_file_of_them_as_the_policy_does(greedy, tmp_path, capsys):
    flags = [f"--policy={greedy.checkpoint.path}", "--temperature=0", "--response_length=5", "--prompt_length=60"]
    (tmp_path / "0.png").write_bytes(PROMPTS[0].images[0])
    assert main.main(["generate", *flags, "--prompt=w6 w7 w8", f"--image={tmp_path / '0.png'}"]) == 0
    wanted = answering.answer_prompts(greedy, PROMPTS[:3], 0)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"answer": wanted[0]}
    rows = [
        {"question": "w6 w7 w8", "image": "0.png", "source": "a"},
        {"question": " ".join(["w7"] * 61)},
        {"question": "w9", "image": "none.png"},
        {"question": "w10 w11"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "answers.jsonl"
    assert main.main(["generate", *flags, "--batch_size=8", f"--data={tmp_path / 'rows.jsonl'}", f"--out={out}"]) == 0
    said = capsys.readouterr().out
    assert "3 of 4 rows used; missing_image 1" in said and "wrote 2 answers" in said and "prompt_too_long 1" in said
    first, long, last = map(json.loads, out.read_text().splitlines())
    assert first == {"question": "w6 w7 w8", "answer": wanted[0], "meta": {"source": "a"}}
    assert long["dropped"].startswith("prompt_too_long: ") and "answer" not in long
    assert last["answer"] == wanted[2]
    (tmp_path / "named.jsonl").write_text(json.dumps({"text": "w6 w7 w8", "shot": "0.png", "source": "a"}) + "\n")
    columns, out = "--columns=question=text,image=shot", tmp_path / "named_answers.jsonl"
    assert main.main(["generate", *flags, "--batch_size=8", columns, f"--data={tmp_path / 'named.jsonl'}", f"--out={out}"]) == 0
    assert json.loads(out.read_text()) == first


@pytest.mark.parametrize("flag", ["--columns=question=text", "--split=train", "--fetch", "--label_means=unsafe", "--image_dir=."])
def test_what_is_about_rows_is_refused_beside_a_prompt(flag, capsys):
    assert main.main(["generate", "--policy=none", "--prompt=w6", flag]) == 2
    assert f"{flag.partition('=')[0]} is about the rows of --data" in capsys.readouterr().err
