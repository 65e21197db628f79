"""One policy's answers to the cases of benchmarks: recorded ones from a file, or a checkpoint's, sampled once and cached."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from srlhfv_jax.config import EvaluateConfig
from srlhfv_jax.data.rows import Example
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation.answering import Sampler, answer_batches, keys
from srlhfv_jax.evaluation.suites.answers import AnswerCache, PolicyAnswers, recorded_answers
from srlhfv_jax.evaluation.suites.case import Case, picture
from srlhfv_jax.hf.load import Pretrained, checkpoint_folder
from srlhfv_jax.parallel import hosts
from srlhfv_jax.parallel.mesh import use_mesh
from srlhfv_jax.runs import checkpoints, inputs

ANSWERS = "answers"
BATCHES = 1 << 20  # more than any benchmark fills: keeps the keys of several answers to one case apart

Cases = Mapping[str, Sequence[Case]]  # benchmark -> its cases


class CaseRows(Sequence[Example]):
    """Cases as the rows that a loader reads; pictures are fetched anew at every access."""

    def __init__(self, cases: Sequence[Case], responses: Sequence[str] | None = None):
        self._cases, self._responses = cases, responses

    def __len__(self) -> int:
        return len(self._cases)

    def __getitem__(self, index: int) -> Example:
        encoded = picture(self._cases[index])
        images = () if encoded is None else (encoded,)
        asked = Example(images, self._cases[index].prompt, (), history=self._cases[index].history)
        if self._responses is None:
            return asked
        return asked._replace(responses=(self._responses[index],), unsafe=(None,), severity=(None,))


def recorded(path: str) -> bool:
    """Whether a policy is a file of answers; else it is a checkpoint."""
    return path.endswith(".jsonl")


def check_policies(policies: Mapping[str, str]) -> None:
    """Open every policy (name -> path) before benchmarks are read and before the first one answers.

    Raises:
        UserError: no such file of answers, or a checkpoint that cannot be read.
    """
    for path in policies.values():
        if not recorded(path):
            checkpoints.check_policy(path, "config.policies")
        elif not Path(path).is_file():
            raise UserError(f"{path} is no file: a policy is a checkpoint, or a .jsonl file of recorded answers")


def all_recorded(policies: Mapping[str, str], samples: int, whole: Cases, cases: Cases) -> dict[str, PolicyAnswers]:
    """The answers of the policies that are files, with a warning of what they lack, and of what in them nobody reads.

    Args:
        whole, cases: the benchmarks, and the part of them that is asked for.
    """
    answers = {name: recorded_answers(Path(path), whole, samples=samples) for name, path in policies.items() if recorded(path)}
    for name, said in answers.items():
        _describe(name, policies[name], said, samples, cases)
    return answers


def _describe(name: str, path: str, answers: PolicyAnswers, samples: int, cases: Cases) -> None:
    places = [(benchmark, case.id, sample) for benchmark in cases for case in cases[benchmark] for sample in range(samples)]
    missing = sum(place not in answers.texts for place in places)
    if missing or answers.unknown or answers.unread.total():
        print(
            f"warning: {name}: {missing} of {len(places)} answers are not in {path}; {answers.unknown.total()} of its lines are about no "
            f"case of these benchmarks, and {answers.unread.total()} are a case's answers beyond config.samples={samples} or said anew",
            file=sys.stderr,
            flush=True,
        )


def sampled_answers(name: str, path: str, settings: EvaluateConfig, workdir: Path, cases: Cases) -> PolicyAnswers:
    """The answers of the checkpoint at `path`, which is loaded only if some are not in the workdir yet."""
    cache = AnswerCache(workdir / ANSWERS / f"{name}.jsonl", _identity(path, settings))
    hosts.barrier(f"{name}'s answers are read")  # by all processes, before the first one writes more of them
    missing = {
        (benchmark, sample): [case for case in benchmark_cases if cache.get(case, sample) is None]
        for benchmark, benchmark_cases in cases.items()
        for sample in range(settings.samples)
    }
    if any(missing.values()):
        mesh = use_mesh(settings.mesh)
        hosts.check_batch(settings.data.batch_size, mesh, "config.data.batch_size of")
        policy = checkpoints.load(path, settings.model, mesh)
        sampler = Sampler(mesh, settings.data, temperature=settings.temperature)
        for (benchmark, sample), unanswered in missing.items():
            if unanswered:
                print(f"{name}: {benchmark}, answer {sample + 1} of {settings.samples}: {len(unanswered)} cases", flush=True)
                _sample(policy, sampler, settings.seed, benchmark, unanswered, sample, cache)
    texts = {}
    for benchmark, benchmark_cases in cases.items():
        for case in benchmark_cases:
            for sample in range(settings.samples):
                text = cache.get(case, sample)["answer"]
                if text is not None:  # else the policy cannot read the case
                    texts[benchmark, case.id, sample] = text
    cache.close()
    return PolicyAnswers(texts, Counter(), Counter())


def _identity(path: str, settings: EvaluateConfig) -> list[Any]:
    """All that an answer depends on besides its case; a checkpoint that was written anew is another one."""
    files = sorted(checkpoint_folder(path).glob("*.safetensors"))
    written = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    data = settings.data
    system_prompt = [data.system_prompt] if data.system_prompt else []  # without one, the identity of before
    return [
        path,
        written,
        settings.seed,
        settings.temperature,
        settings.model.dtype,
        data.response_length,
        data.max_pixels,
        *system_prompt,
    ]


def _sample(
    policy: Pretrained, sampler: Sampler, seed: int, benchmark: str, cases: Sequence[Case], sample: int, cache: AnswerCache
) -> None:
    """Put one more answer to each case into the cache, as soon as its batch is done.

    Args:
        sample: the number of this answer to its case; seeds the sampling.

    Raises:
        UserError: the policy can read none of the cases.
    """
    prompts = inputs.fit_loosely("prompts", CaseRows(cases), sampler.data, policy)
    for dropped in prompts.dropped:
        cache.put(benchmark, cases[dropped.row], sample, None, reason=dropped.reason)
    readable = [cases[row.row] for row in prompts.rows]
    draw, done = sampler.draw(policy, keys(seed, sample * BATCHES)), 0
    for batch in answer_batches(draw, sampler.batches(prompts), prompts.codec.spoken):
        for case, text, ended in zip(readable[done:], batch.texts, batch.ended):
            cache.put(benchmark, case, sample, text, ended=ended)
        done += len(batch.texts)
        hosts.say(f"  {done} of {len(readable)} answers")
