"""Python in README and docs/functions.md runs as it stands there: with small models, and local stand-ins for what it calls."""

import json
import re
from pathlib import Path

import pytest
import tiny_hf
import transformers
from stub_judge import Answered, completion, serving

import srlhfv_jax as sv
from srlhfv_jax.data.rows import Example
from srlhfv_jax.functions.sample import sample

ROOT = Path(__file__).parent.parent
CODE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
URL = "http://127.0.0.1:8000/v1"
SAMPLES = [sample(Example((), "Which one?", ()), answer, True, row) for row, answer in enumerate(("w7 w8", "w9", "w6 w5 w14"))]
SMALL = {"data.batch_size": 4, "data.response_length": 5, "mesh.fsdp": 1, "model.scan_unroll": 1}


def block(page: str, name: str) -> str:
    """The one block of a page that defines or calls `name`."""
    (found,) = (code for code in CODE.findall((ROOT / page).read_text()) if f"{name}(" in code)
    return found


def ran(code: str) -> dict:
    names: dict = {}
    exec(compile(code, "docs", "exec"), names)
    return names


def test_the_example_of_the_readme_trains_and_answers_in_under_20_lines(tmp_path, monkeypatch, capsys):
    code = block("README.md", "sv.ppo_lag")
    assert len(code.splitlines()) < 20
    monkeypatch.chdir(tmp_path)
    tiny_hf.save(tmp_path / "W" / "sft", tiny_hf.llama_config())
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"w{7 + row}"}) + "\n" for row in range(6)))
    train = sv.ppo_lag

    def small(*given, overrides, **named):
        return train(*given, preset="tiny", iterations=1, overrides=SMALL | overrides, **named)

    monkeypatch.setattr(sv, "ppo_lag", small)
    result = ran(code)["result"]
    lengths = result.metrics()[0]["reward.brevity"]
    assert -1 <= lengths < 0 and result.numbers["cost.forbidden"] == -1.0 and result.numbers["budget"] == pytest.approx(0.1)
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{result.numbers['cost']} [")


def test_a_function_calls_an_endpoint():
    replies = {"w7 w8": "7", "w9": "2.5", "w6 w5 w14": "10"}

    def rated(number, body):
        (message,) = body["messages"]
        return Answered(
            completion(next(rate for text, rate in replies.items() if message["content"].endswith(f"Answer: {text}")))
        )

    with serving(rated) as stub:
        helpfulness = ran(block("docs/functions.md", "def helpfulness").replace(URL, stub.url))["helpfulness"]
        assert helpfulness(SAMPLES) == [0.7, 0.25, 1.0]
        with pytest.raises(ValueError, match="could not convert"):
            replies["w9"] = "good"
            helpfulness(SAMPLES[1:2])


def test_a_function_calls_a_classifier(tmp_path):
    labels = {0: "toxic", 1: "insult"}
    config = tiny_hf.llama_config(num_labels=2, id2label=labels, problem_type="multi_label_classification", pad_token_id=0)
    transformers.set_seed(4)
    model = transformers.LlamaForSequenceClassification(config)
    model.save_pretrained(tmp_path / "toxic")
    tokenizer = tiny_hf.processor("llama")
    tokenizer.save_pretrained(tmp_path / "toxic")
    toxicity = ran(block("docs/functions.md", "def toxicity").replace("unitary/toxic-bert", str(tmp_path / "toxic")))["toxicity"]
    scores = toxicity(SAMPLES)
    for one, score in zip(SAMPLES, scores, strict=True):
        logits = model(**tokenizer(one.answer, return_tensors="pt")).logits[0]
        assert score == pytest.approx(2 * logits.sigmoid()[0].item() - 1, abs=1e-5)


def test_a_function_calls_a_moderation_model():
    replies = ["Safety: Safe\nCategories: None", "Safety: Controversial\nCategories: PII", "Safety: Unsafe\nCategories: Violent"]

    def judged(number, body):
        answer = body["messages"][-1]["content"]
        return Answered(completion(replies[[one.answer for one in SAMPLES].index(answer)] + "\nRefusal: No"))

    with serving(judged) as stub:
        harm = ran(block("docs/functions.md", "def harm").replace(URL, stub.url))["harm"]
        assert harm(SAMPLES) == [-1.0, 0.0, 1.0]
    assert {body["model"] for body in stub.seen} == {"Qwen/Qwen3Guard-Gen-0.6B"}


def test_the_terms_of_the_first_example_are_those_of_the_file_that_the_page_names():
    shown = block("docs/functions.md", "def brevity")
    first, file = ran(shown), ran((ROOT / "benchmarks" / "rewards.py").read_text())
    for name in ("brevity", "forbidden"):
        assert first[name](SAMPLES) == file[name](SAMPLES)
