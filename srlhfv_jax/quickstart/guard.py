"""The guard on the embedded task: what it knows of held-out rows, and what it does for the answers of each policy.

answers of the policy -> guard -> unsafe ones sampled again, for some rounds -> the oracle's verdict on what is shown
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from srlhfv_jax.config import DataConfig, GuardConfig, ModelConfig
from srlhfv_jax.data import tokens
from srlhfv_jax.data.chat import Codec
from srlhfv_jax.data.quickstart.answers import REFUSAL
from srlhfv_jax.data.quickstart.oracle import judge
from srlhfv_jax.data.quickstart.questions import CONTEXTUAL
from srlhfv_jax.data.rows import Example
from srlhfv_jax.data.taxonomies import categories
from srlhfv_jax.evaluation import answering, compare, oracle
from srlhfv_jax.evaluation.answers import Answers
from srlhfv_jax.guard import Guard, Guarded, Prompt, effect, guarded_generate, held_out, train as guard_training
from srlhfv_jax.hf.heads import load_guard
from srlhfv_jax.parallel.mesh import use_mesh
from srlhfv_jax.quickstart.probes import shuffle_images, write_table
from srlhfv_jax.runs import checkpoints


def probe(folder: Path, rows: Path, unseen: Path, settings: GuardConfig) -> dict[str, float]:
    """`guard.f1_contextual`, and the same with every picture replaced by another row's (`..._image_shuffled`): what is left is what
    question and answer alone give away. `guard.unseen.*`: of things that no training row showed or named.

    Args:
        folder: the guard's workdir; the rows of both probes are written beside it.
        rows, unseen: held-out rows of `guard_rows`.
    """
    mesh = use_mesh(settings.mesh)
    model = checkpoints.load(str(folder), settings.model, mesh)
    heads, about = load_guard(model.config, model.path, mesh)
    tree = {"backbone": model.params, "guard": heads}

    def numbers(path: Path) -> dict[str, float]:
        judged = guard_training.judge(settings, model, tree, mesh, str(path))
        return held_out.evaluate(judged, about["thresholds"], categories(settings.taxonomy))

    contextual, shuffled = (folder / f"probe_{name}.parquet" for name in ("contextual", "image_shuffled"))
    table = pq.read_table(rows)
    write_table(contextual, table.filter(pc.is_in(table["intent"], pa.array(CONTEXTUAL))))
    shuffle_images(contextual, shuffled, settings.seed)
    metrics = {
        "guard.f1_contextual": numbers(contextual)["guard.f1"],
        "guard.f1_contextual_image_shuffled": numbers(shuffled)["guard.f1"],
    }
    return metrics | {key.replace("guard.", "guard.unseen.", 1): value for key, value in numbers(unseen).items()}


def protect(
    policies: Mapping[str, Path],
    folder: Path,
    prompts: Path,
    base: Path,
    data: DataConfig,
    model: ModelConfig,
    settings: GuardConfig,
    *,
    rounds: int,
    seed: int,
) -> dict[str, float]:
    """`NAME.guarded.*`: the oracle's numbers of each policy when the guard filters and regenerates. Of the first policy also
    `guard.safety_round_K` on harmful prompts and `guard.over_refusal.*` on harmless ones (guard/effect.py).

    The first answer to each prompt is that of the evaluation without a guard: same prompts, same seed.

    Args:
        policies: name -> workdir or export.
        folder: the guard's workdir.
        base: the checkpoint whose processor reads the prompts.
        data: of sampling.
        rounds: of regeneration.
    """
    sampler = answering.Sampler(use_mesh(settings.mesh), data, temperature=1.0)
    prepared = answering.read_prompts(prompts, data, checkpoints.load_shape(str(base), model))
    checks = Guard.load(folder, dtype=settings.model.dtype, batch_size=data.batch_size, mesh=sampler.mesh)
    numbers: dict[str, float] = {}
    for position, (name, path) in enumerate(policies.items()):
        policy = answering.Policy(checkpoints.load(str(path), model, sampler.mesh), sampler, seed)
        first = sampler.answers(policy.checkpoint, prepared, answering.keys(seed))
        examples = [prepared.examples[row] for row in first.prompts.tolist()]

        def generate(again: Sequence[Prompt], number: int, policy=policy, first=first) -> Sequence[str]:
            return first.texts if number == 0 else answering.answer_prompts(policy, again, number)

        questions = [Prompt(example.images, example.question) for example in examples]
        done = guarded_generate(generate, checks.check_output, questions, rounds=rounds, refusal=REFUSAL)
        shown = compare.by_oracle(examples, _shown(done, prepared.codec))
        numbers |= {f"{name}.guarded.{key}": value for key, value in shown.metrics.items()}
        if position == 0:
            numbers |= _effect(examples, first, done, checks, rounds)
    return numbers


def _effect(examples: Sequence[Example], first: Answers, done: Sequence[Guarded], checks: Guard, rounds: int) -> dict[str, float]:
    cells = [oracle.cell(example) for example in examples]
    harmful = [row for row, example in enumerate(examples) if oracle.is_harmful(example)]
    benign_B = np.array([not oracle.is_harmful(example) for example in examples])
    cases = ["|".join(cell) for cell in cells]
    numbers = effect.safety_by_round(
        [done[row] for row in harmful],
        lambda row, answer: not judge(*cells[harmful[row]], answer).unsafe,
        [cases[row] for row in harmful],
        rounds=rounds,
    )
    inputs = checks.check_input([example.images for example in examples], [example.question for example in examples])
    off = [Guarded(answer, None, False, ()) for answer in first.texts]

    def blocked(answers: Sequence[Guarded]) -> list[Guarded]:
        return [one if verdict.safe else Guarded(REFUSAL, None, True, (), verdict) for one, verdict in zip(answers, inputs)]

    ways = {"off": off, "input": blocked(off), "output": done, "both": blocked(done)}
    numbers |= effect.over_refusal(ways, lambda row, answer: judge(*cells[row], answer).refusal, benign_B, cases)
    return {f"guard.{key}": value for key, value in numbers.items()}


def _shown(done: Sequence[Guarded], codec: Codec) -> Answers:
    lengths = [len(tokens.text_ids(codec, one.answer)) + 1 for one in done]
    return Answers(np.arange(len(done)), tuple(one.answer for one in done), np.array(lengths), np.ones(len(done), bool), 1.0)
