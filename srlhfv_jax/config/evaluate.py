"""Settings of `srlhfv benchmark`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from srlhfv_jax.config.base import DataConfig, MeshConfig, ModelConfig
from srlhfv_jax.config.ranges import Count, CountOrOff, OneOf, Positive, Range, Seed, Weight
from srlhfv_jax.config.unread import Unread


@dataclass(frozen=True)
class EndpointConfig:
    """An OpenAI-compatible server that judges."""

    url: str  # up to and with the version, such as "https://api.openai.com/v1"; "" = none
    model: str  # as the server calls it
    key_variable: str  # environment variable that holds the key; "" = the server wants none
    temperature: Weight  # of its replies
    max_tokens: Count  # of a reply
    workers: Annotated[int, Range(1, 1024)]  # calls under way at once
    requests_per_minute: Weight  # 0 = no limit
    timeout_s: Positive  # seconds for one call
    attempts: Annotated[int, Range(1, 1000)]  # calls for one judgement, the first included
    backoff_s: Weight  # before the second attempt; doubled before each later one


@dataclass(frozen=True)
class EvaluateConfig:
    """`srlhfv benchmark`: policies on published benchmarks."""

    seed: Seed  # of the cases that are drawn and of sampled answers
    root: str  # folder with one folder per benchmark, named as in `benchmarks`
    benchmarks: tuple[str, ...]  # names of test sets, in the order of the report
    limit: CountOrOff  # cases of each benchmark, drawn by `seed` over its subsets and categories; 0 = all
    policies: str  # "name=path,name=path": checkpoints to sample, or .jsonl files of recorded answers; the first is the baseline
    samples: Annotated[int, Range(1, 10**4)]  # answers to each case
    temperature: Weight  # of the answers; 0 = greedy
    reasoning: bool  # answers of reasoning models: judge what follows </think>, score the thoughts apart
    judge: Annotated[str, OneOf("rules", "models", "recorded", "endpoint")]  # what tells refusals and harm from answers
    pairwise: bool  # compare each policy with the baseline, in both orders
    scorer: str  # of judge "models": a checkpoint with the heads reward and cost
    recorded: str  # of judge "recorded": a .jsonl file of judgements
    endpoint: EndpointConfig
    model: ModelConfig
    mesh: MeshConfig
    data: DataConfig  # lengths and batch size; the paths are not read

    def unread(self) -> Iterator[Unread]:
        """Settings that nothing reads in the mode that the others choose."""
        for name in ("path", "image_dir"):
            yield Unread(f"data.{name}", "cases are read from config.root", "")
        yield Unread("data.split", "cases are read from config.root")
        yield Unread("data.chat_template", "each policy has its own", "")
        yield Unread("data.train_on", "nothing is trained", "last")
        for name, judge in (("scorer", "models"), ("recorded", "recorded")):
            if self.judge != judge:
                yield Unread(name, f"config.judge is {self.judge!r}", "")
        if self.judge != "endpoint":
            yield Unread("endpoint", f"config.judge is {self.judge!r}")
