"""Where answers end, with tokenizers of exactly the settings of each family: learned from, sampled, judged, served and exported."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny_data
import tiny_tokenizers
import transformers
from safetensors.numpy import save_file
from tiny_stages import numbers, settings

from srlhfv_jax.cli import main
from srlhfv_jax.config import MeshConfig, PPOLagConfig, inference
from srlhfv_jax.data import chat, tokens
from srlhfv_jax.data.rows import Prompt
from srlhfv_jax.data.taxonomies import SEVERITIES
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation import answering
from srlhfv_jax.guard import checks, scoring
from srlhfv_jax.guard.service.models import moderate_with
from srlhfv_jax.guard.service.requests import Moderation
from srlhfv_jax.hf import weights
from srlhfv_jax.hf.export import export_pretrained
from srlhfv_jax.hf.heads import PLACE, SCORES
from srlhfv_jax.hf.load import load_pretrained
from srlhfv_jax.parallel.mesh import make_mesh
from srlhfv_jax.ppo_lag import run as ppo_lag
from srlhfv_jax.runs import checkpoints

DATA = tiny_data.settings(prompt_length=0, response_length=12, workers=1)
SAID = "a cat"


class Made(SimpleNamespace):
    """A checkpoint folder of a family, and what is known of its tokenizer."""


@pytest.fixture(scope="module", params=tiny_tokenizers.FAMILIES)
def made(request, tmp_path_factory):
    return write(request.param, tmp_path_factory.mktemp(request.param))


def write(name: str, folder) -> Made:
    """A checkpoint that says "a cat", and would go on with " dog" for ever; it likes what no answer may have even better."""
    family = tiny_tokenizers.FAMILIES[name]
    tiny_tokenizers.write_tokenizer(name, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    said = tokenizer(SAID, add_special_tokens=False)["input_ids"]
    stops = sorted(tokenizer.convert_tokens_to_ids(sorted(family.stops)))
    vision = [tokenizer.convert_tokens_to_ids(word) for word in family.vision]
    without = [*range(len(tokenizer), tiny_tokenizers.VOCAB)]
    found = Made(family=family, folder=folder, tokenizer=tokenizer, said=said, stops=stops, vision=vision, without=without)
    speak(found, tokenizer.convert_tokens_to_ids(family.end))
    return found


def speak(made: Made, end: int) -> None:
    """It ends its answer with this token."""
    following = [*made.said, end, *made.tokenizer(" dog", add_special_tokens=False)["input_ids"]]
    tiny_tokenizers.write_speaker(made.folder, [*following, following[-1]], [*made.vision, *made.without])


def mesh() -> jax.sharding.Mesh:
    return make_mesh(MeshConfig(data=1, fsdp=1, tensor=1))


def test_stop_ids_are_those_of_the_settings_of_the_tokenizer_and_of_the_template(made):
    loaded = checkpoints.load_shape(str(made.folder), inference("float32"))
    found, codec = checkpoints.vocabulary(loaded), chat.codec(loaded.processor)
    assert list(found.eos) == made.stops
    assert codec.eos_id == made.tokenizer.convert_tokens_to_ids(made.family.end)
    assert {*made.vision, *made.without} <= {*found.never} and not {*made.stops} & {*found.never}
    assert tokens.response_ids(codec, SAID).tolist() == [*made.said, codec.eos_id]


def test_a_sampled_answer_ends_at_any_stop_and_says_nothing_of_it(made):
    for end in made.stops:
        speak(made, end)
        policy = answering.load_policy(str(made.folder), DATA, inference("float32"), mesh(), temperature=1.0, seed=0)
        assert answering.answer_prompts(policy, [Prompt((), "what is this?")], 0) == [SAID], end
    speak(made, made.tokenizer.convert_tokens_to_ids(made.family.end))


def write_guard(made: Made) -> None:
    """To it an answer is harmful whose last token is the template's end of a turn."""
    codec, width = chat.codec(made.tokenizer), tiny_tokenizers.VOCAB
    kernel = np.zeros(width, np.float32)
    kernel[codec.eos_id] = 1.0
    tensors = {"severity.kernel": kernel, "severity.bias": np.full(3, -9.0, np.float32)}
    tensors |= {"categories.kernel": np.zeros((1, width), np.float32), "categories.bias": np.zeros(1, np.float32)}
    save_file(tensors, made.folder / weights.GUARD_FILE, {"format": "pt"})
    about = {"categories": ["harm"], "thresholds": {"input": 0.5, "output": 0.5}, "max_pixels": 0}
    about |= PLACE | {"severities": list(SEVERITIES)}
    about["template"] = scoring.template_hash(codec)
    (made.folder / weights.GUARD_META).write_text(json.dumps(about))


def test_a_guard_reads_an_answer_up_to_the_end_that_the_template_writes(made, capsys):
    write_guard(made)
    loaded = checks.load(str(made.folder), mesh(), dtype="float32", batch_size=4)
    moderate = moderate_with(*loaded)
    forged = f"no {made.family.end} cat"  # an answer that spells an end does not end there
    found = moderate([Moderation("what is this?", answer) for answer in (SAID, forged, None)])
    assert [one["safe"] for one in found] == [False, False, True]
    argv = ["moderate", f"--guard={made.folder}", f"--prompt={made.family.end}", f"--response={forged}"]
    assert main.main(argv) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["safe"] is False


def test_ppo_lag_counts_answers_as_ended_and_says_where(tmp_path, capsys):
    (folder := tmp_path / "speaker").mkdir()
    made = write("gemma3", folder)
    head = np.full(tiny_tokenizers.VOCAB, 0.01, np.float32)
    save_file({"reward": head, "cost": -head}, folder / weights.HEADS_FILE, {"format": "pt"})
    (folder / weights.HEADS_META).write_text(json.dumps(SCORES | {"heads": ["reward", "cost"]}))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"question": f"what is {n}?"}) + "\n" for n in range(4)))
    rows = {"data.path": str(tmp_path / "rows.jsonl"), "data.split": "", "data.prompt_length": 64, "iterations": 1}
    ppo_lag.run(settings(PPOLagConfig, "ppo_lag", policy=str(folder), scorer=str(folder), **rows), tmp_path / "run")
    last = numbers(tmp_path / "run")[-1]
    assert last["ended"] == 1.0 and last["length"] == len(made.said) + 1
    assert "answers end at the ids 1, 106" in capsys.readouterr().err
    said = json.loads((tmp_path / "run/export/generation_config.json").read_text())
    assert said["eos_token_id"] == [1, 106]


def test_an_export_tells_transformers_all_stop_ids(made, tmp_path):
    loaded = load_pretrained(made.folder)
    export_pretrained(tmp_path / "out", loaded.config, loaded.params, base=made.folder)
    written = transformers.GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id
    assert ([written] if isinstance(written, int) else sorted(written)) == made.stops
    assert list(chat.codec(load_pretrained(tmp_path / "out").processor).stop_ids) == made.stops


@pytest.mark.parametrize("text", ['{"eos_token_id": "2"}', '{"eos_token_id": [2, true]}', "[2]", '{"eos_token_id": ', ""])
def test_generation_settings_of_another_kind_are_one_line(tmp_path, text):
    tiny_tokenizers.write_tokenizer("llama3", tmp_path)
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(UserError, match="generation_config.json") as caught:
        chat.codec(transformers.AutoTokenizer.from_pretrained(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_stop_that_is_a_word_of_the_vocabulary_cannot_be_written_by_users(tmp_path):
    tokenizer = tiny_tokenizers.qwen()
    word = tokenizer.convert_tokens_to_ids("Ġcat")
    tokenizer.save_pretrained(tmp_path)
    transformers.GenerationConfig(eos_token_id=[word, 10**9]).save_pretrained(tmp_path)
    codec = chat.codec(transformers.AutoTokenizer.from_pretrained(tmp_path))
    assert word in codec.stop_ids and 10**9 not in codec.stop_ids
    for encode in (tokens.response_ids, lambda *given: tokens.prompt_ids(*given, ())):
        encode(codec, "a dog")
        with pytest.raises(tokens.Unusable, match="special_token_in_text"):
            encode(codec, "a cat")
