"""`srlhfv evaluate`: several policies on the same prompts, judged by the oracle of the embedded task, by learned models, or by
both. With --config=configs/evaluate.py:SUITE: policies on published benchmarks (cli/benchmarks.py).

    srlhfv evaluate --policies=sft=W/sft,ppo_lag=W/ppo_lag --data=W/data/test.parquet --scorer=W/scores --workdir=E

    srlhfv evaluate --scorer=W/scores --pairs=W/heldout.parquet --workdir=E          the reward and cost models themselves

Writes result.json (POLICY.NUMBER, and POLICY.vs_BASELINE.NUMBER against the baseline), answers.jsonl, samples.jsonl and
score_distributions.json; `srlhfv report --workdir=E` makes a page of them. Prompts longer than the longest that is asked for, and
everything else that cannot be used, are dropped for a named reason.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags as absl_flags

from srlhfv_jax.cli import flags
from srlhfv_jax.config import DataConfig, MeshConfig, ModelConfig, inference
from srlhfv_jax.errors import UserError
from srlhfv_jax.parallel import host_cpu

ANY_LENGTH = 1 << 20


class Sampled(NamedTuple):
    """One policy's answers, and what a scorer needs to read them."""

    answers: Any  # evaluation.answers.Answers
    prompts: Any  # data.loader.Prepared
    rollouts: tuple[Any, ...]  # one per batch, on the host, without features
    vocabulary: dict[str, int]  # token ids of the policy's tokenizer


def main(argv: list[str]) -> None:
    if any(argument.lstrip("-").partition("=")[0].partition(".")[0] == "config" for argument in argv):
        from srlhfv_jax.cli import benchmarks

        benchmarks.main(argv)
        return
    values = _flags()
    flags.read(values, "evaluate", argv, __doc__)
    host_cpu.prepare()
    flags.required(values, "workdir")
    scorers = [path for path in values.scorer.split(",") if path]
    if values.pairs and not scorers:
        raise UserError("--pairs measures reward and cost models: give --scorer=PATH, or REWARD,COST")
    from srlhfv_jax.checkpoint import lock
    from srlhfv_jax.parallel import hosts

    hosts.initialize()
    _check_given(values, scorers)
    with lock.held(Path(values.workdir)):
        _run(values, scorers)


def _check_given(values: absl_flags.FlagValues, scorers: list[str]) -> None:
    """Open all that is to be read before the first weights are: the last of them may be needed hours later."""
    from srlhfv_jax.data import sources
    from srlhfv_jax.runs import checkpoints

    if values.policies or not values.pairs:
        flags.required(values, "policies", "data")
        if values.judge == "models" and not scorers:
            raise UserError(
                "--judge=models needs --scorer=PATH (the workdir of `srlhfv scores`, or REWARD,COST of two separate models)"
            )
    policies = named_paths(values.policies) if values.policies else {}
    _mesh(values)
    for data in filter(None, (values.pairs, values.policies and values.data)):
        sources.open_rows(data, values.split, values.image_dir, values.allow_dir)
    for path in policies.values():
        checkpoints.check_checkpoint(path, "--policies")
    for path in scorers:
        checkpoints.check_checkpoint(path, "--scorer")
        check_heads(path, inference(values.dtype))


def _run(values: absl_flags.FlagValues, scorers: list[str]) -> None:
    began = time.monotonic()
    result = _measure_scorer(values, scorers) if values.pairs else {}
    if values.policies or not values.pairs:
        result |= _compare(values, scorers)
    from srlhfv_jax.training.metrics import write_json, write_result

    workdir = Path(values.workdir)
    write_json(workdir / "config.json", {name: values[name].value for name in values if values[name].help and "." not in name})
    write_result(workdir, result | {"seconds.total": time.monotonic() - began, "seed": values.seed})
    print(f"wrote {workdir / 'result.json'}; `srlhfv report --workdir={workdir}` makes a page of it")


def _compare(values: absl_flags.FlagValues, scorers: list[str]) -> dict[str, float]:
    """Policies on the prompts of --data."""
    policies = named_paths(values.policies)
    judge = values.judge or ("models" if scorers else "oracle")
    return _evaluate(values, policies, scorers, judge)


def named_paths(text: str) -> dict[str, str]:
    """ "a=path,b=path" -> {a: path, b: path}.

    Raises:
        UserError: an item without a name, or a name twice.
    """
    named: dict[str, str] = {}
    for item in text.split(","):
        name, equals, path = item.strip().partition("=")
        if not (name and equals and path):
            raise UserError(f"--policies must be name=path,name=path, got {item!r}")
        if name in named:
            raise UserError(f"--policies names {name!r} twice: give each policy a name of its own")
        named[name] = path
    return named


def _flags() -> absl_flags.FlagValues:
    values = absl_flags.FlagValues()
    text = functools.partial(absl_flags.DEFINE_string, flag_values=values)
    whole = functools.partial(absl_flags.DEFINE_integer, flag_values=values)
    text("workdir", None, "folder to write to")
    text("policies", None, "name=path,name=path: workdirs of stages, exports or Hugging Face folders; the first is the baseline")
    text("baseline", "", "name of the policy that the others are compared against; empty: the first")
    text("data", None, "rows with a question (and picture): a TFDS folder, .parquet or .jsonl file, or a folder of them")
    text("split", "", 'split of a TFDS data set, or a slice such as "[:500]"')
    text("pairs", "", "labelled pairs: measures the scorer itself, with its own pictures, with shuffled and with grey ones")
    text("image_dir", "", "where images named by relative paths lie; empty: beside the file")
    text("allow_dir", "", "a second folder that links of images may lead to; empty: none")
    whole("max_pixels", 0, "most pixels of a picture; 0: the checkpoint's own limit", lower_bound=0)
    text("scorer", "", "workdir or export with the heads reward and cost, or REWARD,COST: two with one each")
    absl_flags.DEFINE_enum(
        "judge", "", ["", "oracle", "models"], "empty: models with --scorer, else the oracle", flag_values=values
    )
    absl_flags.DEFINE_float("temperature", 1.0, "of the answers; 0 = greedy", lower_bound=0.0, flag_values=values)
    absl_flags.DEFINE_float("budget", None, "largest feasible mean cost, drawn in the report", flag_values=values)
    whole("prompt_length", 0, "longest prompt in tokens (P); 0: that of the data", lower_bound=0)
    whole("response_length", 256, "longest answer in tokens (R)", lower_bound=1)
    whole("batch_size", 32, "prompts answered at once", lower_bound=1)
    whole("seed", 0, "of the sampling", lower_bound=0, upper_bound=flags.SEEDS)
    whole("samples", 24, "rows of samples.jsonl, with pictures", lower_bound=0)
    absl_flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of weights and activations", flag_values=values)
    return values


def _evaluate(values: absl_flags.FlagValues, policies: dict[str, str], scorers: list[str], judge: str) -> dict[str, float]:
    """Sample every policy, then score, then compare: one model in memory at a time."""
    import jax

    from srlhfv_jax.evaluation import compare, records
    from srlhfv_jax.evaluation.judging import choose as judges
    from srlhfv_jax.parallel import hosts
    from srlhfv_jax.rollout.generate import generate

    mesh, data, model = _mesh(values), _data(values, values.data), inference(values.dtype)
    # one jitted function: policies of one architecture share its compilation
    draw = jax.jit(generate, static_argnames=("config", "response_length", "vocabulary", "sampling"))
    sampled = {name: _sample(name, path, data, model, mesh, draw, values) for name, path in policies.items()}
    scores: dict[str, dict[str, Any]] = {name: {} for name in policies}
    for path in scorers:
        for name, found in _score(path, sampled, data, model, mesh).items():
            scores[name] |= found
    examples = next(iter(sampled.values())).prompts.examples
    judged = {}
    for name, policy in sampled.items():
        if judge == "oracle":
            judged[name] = compare.by_oracle(examples, policy.answers)
            judged[name].metrics.update(judges.judge_metrics(scores[name]))
        else:
            judged[name] = compare.by_models(policy.answers, scores[name], budget=values.budget)
    result = compare.compare(judged, values.baseline or None)
    if values.budget is not None:
        result["oracle_budget" if judge == "oracle" else "controller_budget"] = values.budget
    if hosts.process_index():
        return result
    workdir = Path(values.workdir)
    records.write_samples(workdir / records.SAMPLES, examples, judged, count=values.samples, seed=values.seed)
    records.write_answers(workdir / records.ANSWERS, examples, judged)
    records.write_distributions(workdir / records.DISTRIBUTIONS, judged)
    return result


def _measure_scorer(values: absl_flags.FlagValues, scorers: list[str]) -> dict[str, float]:
    """Reward and cost models on labelled pairs; lengths are those of the pairs."""
    from srlhfv_jax.supervised import measure as measured

    mesh, model = _mesh(values), inference(values.dtype)
    data = dataclasses.replace(_data(values, values.pairs), prompt_length=0, response_length=0)
    return measured.measure(scorers, data, model, mesh, seed=values.seed)


def _mesh(values: absl_flags.FlagValues) -> Any:
    import jax

    from srlhfv_jax.parallel import hosts
    from srlhfv_jax.parallel.mesh import make_mesh

    mesh = make_mesh(MeshConfig(data=-1, fsdp=1, tensor=1))
    jax.set_mesh(mesh)
    hosts.check_batch(values.batch_size, mesh, "--batch_size of")
    return mesh


def _data(values: absl_flags.FlagValues, path: str) -> DataConfig:
    return DataConfig(
        path=path,
        split=values.split,
        image_dir=values.image_dir,
        allow_dir=values.allow_dir,
        prompt_length=values.prompt_length,
        response_length=values.response_length,
        batch_size=values.batch_size,
        workers=1,
        max_pixels=values.max_pixels,
        picture_buckets=1,
    )


def _sample(name: str, path: str, data: DataConfig, model: ModelConfig, mesh, draw, values: absl_flags.FlagValues) -> Sampled:
    """Load one policy and answer every prompt once."""
    from srlhfv_jax.evaluation.policies import sample_answers
    from srlhfv_jax.parallel import hosts
    from srlhfv_jax.rollout.sampling import Sampling
    from srlhfv_jax.runs import checkpoints, inputs
    from srlhfv_jax.training import state as states

    loaded = checkpoints.load(path, model, mesh)
    prompts = _prompts(data, loaded)
    settings = dict(
        response_length=data.response_length,
        vocabulary=checkpoints.vocabulary(loaded),
        sampling=Sampling(values.temperature),
    )
    rollouts = []

    def answer(batch, index: int):
        key = states.key(values.seed, index, "evaluation")
        rollout = draw(loaded.config, loaded.params, batch, key, **settings)
        rollouts.append(hosts.to_host(rollout._replace(features=None)))
        return rollouts[-1]

    answers, _ = sample_answers(
        answer,
        inputs.in_order(prompts, data, mesh),
        [row.row for row in prompts.rows],
        prompts.codec.spoken,
        temperature=values.temperature,
        progress=_progress(name, len(prompts.rows)),
    )
    return Sampled(answers, prompts, tuple(rollouts), prompts.codec.tokenizer.get_vocab())


def _prompts(data: DataConfig, loaded: Any):
    """Rows to answer; P is that of the longest prompt unless it was given."""
    from srlhfv_jax.runs import inputs

    if data.prompt_length:
        return inputs.prepare("prompts", data, loaded)
    prompts = inputs.prepare("prompts", dataclasses.replace(data, prompt_length=ANY_LENGTH, batch_size=1), loaded)
    longest = max(len(row.prompt) for row in prompts.rows)
    return prompts._replace(frame=prompts.frame._replace(prompt_length=longest))


def check_heads(path: str, model: ModelConfig) -> None:
    """Raise UserError, before any answer is sampled, unless the checkpoint has score heads."""
    from srlhfv_jax.hf.heads import load_heads
    from srlhfv_jax.hf.load import checkpoint_folder
    from srlhfv_jax.runs import checkpoints

    if not load_heads(checkpoints.load_shape(path, model).config, checkpoint_folder(path), mesh=None):
        raise UserError(f"--scorer={path} has no score heads: give the workdir of `srlhfv scores`, `reward` or `cost`")


def _score(path: str, sampled: dict[str, Sampled], data: DataConfig, model: ModelConfig, mesh) -> dict[str, dict[str, Any]]:
    """{policy: {head: scores_B}} of every answer, as sampled token by token.

    Raises:
        UserError: tokens mean something else to the scorer than to a policy.
    """
    import jax

    from srlhfv_jax.data.chat import codec
    from srlhfv_jax.evaluation.judging.choose import model_scores
    from srlhfv_jax.models import sequences
    from srlhfv_jax.parallel import hosts
    from srlhfv_jax.runs import checkpoints, inputs

    loaded = checkpoints.load(path, model, mesh)
    vocabulary = codec(loaded.processor).tokenizer.get_vocab()
    tree = {"backbone": loaded.params, "heads": loaded.heads}

    @jax.jit
    def ends(tree, rollout, images):
        return sequences.end_scores(loaded.config, tree, rollout, sequences.encode(loaded.config, tree, images))

    own = hosts.own_rows(data.batch_size, mesh)

    def score(pair):
        batch, rollout = pair
        placed = hosts.global_batch(jax.tree.map(lambda values: values[own], rollout), mesh)
        return hosts.to_host(ends(tree, placed, batch.images))

    found = {}
    for name, policy in sampled.items():
        if policy.vocabulary != vocabulary:
            raise UserError(
                f"--scorer={path} and policy {name!r} have different tokenizers: scores of its tokens would mean nothing"
            )
        batches = inputs.in_order(policy.prompts, data, mesh)
        pairs = (((batch, rollout), real_B) for (batch, real_B), rollout in zip(batches, policy.rollouts, strict=True))
        found[name] = model_scores(score, pairs)
    return found


def _progress(name: str, total: int) -> Callable[[int], None]:
    from srlhfv_jax.parallel import hosts

    hosts.say(f"{name}: compiling, then {total} answers")
    return lambda done: hosts.say(f"{name}: {done} of {total} answers")
