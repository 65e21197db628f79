"""`srlhfv serve`: from flags to a server that listens: guard, policy and scorer loaded, the programs of all lengths compiled."""

import dataclasses
import functools
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from jax.sharding import Mesh

from srlhfv_jax.config import DataConfig, inference
from srlhfv_jax.data import loader
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.rows import Prompt
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation import by_row, scoring, text_scores
from srlhfv_jax.guard import checks as guard_checks
from srlhfv_jax.guard.judge import Guard
from srlhfv_jax.guard.service import access, app, models, server, warm_up
from srlhfv_jax.guard.service.limits import MIB, Limits
from srlhfv_jax.guard.service.requests import Generate, Score
from srlhfv_jax.guard.service.v1.parse import Names
from srlhfv_jax.parallel.mesh import one_device
from srlhfv_jax.runs import checkpoints, few_shapes

OWN_MORE = 64  # tokens that a policy's answer may grow by when the guard's tokenizer reads it


@dataclasses.dataclass(frozen=True)
class Settings:
    """The flags of `srlhfv serve`, whose help says what each is."""

    guard: str
    policy: str  # "" = no answers
    scorer: str  # "" = the guard, where it has score heads
    host: str
    port: int
    batch_size: int
    wait_ms: float
    queue: int
    body_mb: float  # MiB
    image_mb: float  # MiB
    image_pixels: int
    answer_s: float
    rounds: int
    check_input: bool
    hosts: list[str]
    origins: list[str]
    token_variable: str
    on_unsafe: str
    temperature: float
    prompt_length: int  # tokens
    judged_length: int  # tokens
    response_length: int  # tokens
    lengths: list[str]  # tokens
    max_pixels: int
    system_prompt: str
    seed: int
    dtype: str
    warm_up: bool


def run(settings: Settings) -> None:
    """Load, compile, listen; returns when the server has ended.

    Raises:
        UserError: no such guard, policy, scorer or token, an address that is taken, or a guard that would check nothing.
    """
    limits, allowed, mesh = _limits(settings), _access(settings), one_device()
    usual, lengths = _lengths(settings)
    listening = server.listen(settings.host, settings.port)  # a taken port is known before minutes of loading
    checkpoints.check_checkpoint(settings.guard, "--guard")
    if settings.policy:
        checkpoints.check_policy(settings.policy, "--policy")
    if settings.scorer:
        checkpoints.check_checkpoint(settings.scorer, "--scorer")
        scoring.check_score_heads(settings.scorer, inference(settings.dtype))
    guard = Guard.load(settings.guard, dtype=settings.dtype, batch_size=limits.batch, mesh=mesh, lengths=lengths)
    checks = guard_checks.around(guard, mesh, prompt_length=limits.prompt_tokens, response_length=limits.response_tokens)
    policy = None
    if settings.policy:
        guard_checks.check_acts(settings.guard, checks, settings.check_input)
        policy = by_row.load_policy(settings.policy, _data(settings), inference(settings.dtype), mesh, lengths)
    scorer = _scorer(settings, guard, mesh, lengths)
    if settings.warm_up:
        began = time.monotonic()
        programs = warm_up.compile_all(guard, policy, scorer, usual)
        print(f"serve: compiled {programs} programs in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    built = app.make_app(
        models.moderate_with(*checks),
        None if policy is None else _generate(settings, policy, checks),
        limits,
        allowed,
        score=None if scorer is None else _score(scorer),
        names=_names(settings),
    )
    print(f"listening at http://{settings.host}:{listening.getsockname()[1]}", flush=True)
    server.make_server(built, limits).run(sockets=[listening])


def _generate(settings: Settings, policy: by_row.RowPolicy, checks: guard_checks.Checks) -> Generate:
    """The policy under the guard, as the application calls it."""

    def read(prompts: Sequence[Prompt]) -> list[int | Unusable]:
        by_guard = checks.unreadable([(prompt, None) for prompt in prompts])
        return [theirs or ours for ours, theirs in zip(by_row.read(policy, prompts), by_guard, strict=True)]

    return models.generate_with(
        functools.partial(by_row.answer, policy),
        checks.input if settings.check_input else None,
        checks.output,
        read,
        policy=settings.on_unsafe,
        temperature=settings.temperature,
        seed=settings.seed,
    )


def _scorer(settings: Settings, guard: Guard, mesh: Mesh, lengths: few_shapes.Lengths) -> text_scores.TextScorer | None:
    """The checkpoint of --scorer; without one the guard's, where it has score heads beside its own."""
    data = dataclasses.replace(_data(settings), response_length=settings.judged_length)
    if settings.scorer:
        return text_scores.load_scorer(settings.scorer, data, inference(settings.dtype), mesh, lengths)
    return text_scores.around(guard.pretrained, data, mesh, lengths) if guard.pretrained.heads else None


def _score(scorer: text_scores.TextScorer) -> Score:
    return models.score_with(functools.partial(text_scores.scores, scorer), functools.partial(text_scores.unreadable, scorer))


def _data(settings: Settings) -> DataConfig:
    return loader.single_pass(
        prompt_length=settings.prompt_length,
        response_length=settings.response_length,
        batch_size=settings.batch_size,
        max_pixels=settings.max_pixels,
        system_prompt=settings.system_prompt,
    )


def _lengths(settings: Settings) -> tuple[few_shapes.Lengths, few_shapes.Lengths]:
    """Lengths that are compiled before the first request, and all that rows are padded to: the limits too.

    Raises:
        UserError: --lengths are no positive whole numbers.
    """
    if not all(text.strip().isdecimal() and int(text) for text in settings.lengths):
        raise UserError(f"--lengths must be whole numbers above 0, such as 64,256, got {','.join(settings.lengths)[:80]}")
    steps = {int(text) for text in settings.lengths}
    own = -(-(settings.response_length + OWN_MORE) // OWN_MORE) * OWN_MORE  # holds the policy's own answers
    prompt = {min(step, settings.prompt_length) for step in steps}
    answer = {min(step, own, settings.judged_length) for step in (*steps, own)}
    usual = few_shapes.Lengths(tuple(sorted(prompt)), tuple(sorted(answer)))
    return usual, few_shapes.Lengths(
        tuple(sorted(prompt | {settings.prompt_length})), tuple(sorted(answer | {settings.judged_length}))
    )


def _names(settings: Settings) -> Names:
    """Models, as clients call them: by the names of their folders."""
    called = {name: Path(path).resolve().name for name, path in (("guard", settings.guard), ("policy", settings.policy))}
    return Names(called["guard"], called["policy"], Path(settings.scorer or settings.guard).resolve().name)


def _access(settings: Settings) -> access.Access:
    """The clients that may ask.

    Raises:
        UserError: the variable of the token is empty.
    """
    token = os.environ.get(settings.token_variable, "") if settings.token_variable else ""
    if settings.token_variable and not token:
        raise UserError(f"the environment variable {settings.token_variable} is not set: put the token there")
    return access.Access(access.names(settings.host, tuple(settings.hosts)), tuple(settings.origins), token)


def _limits(settings: Settings) -> Limits:
    return Limits(
        batch=settings.batch_size,
        wait_s=settings.wait_ms / 1e3,
        queue=settings.queue,
        rounds=settings.rounds,
        body_bytes=int(settings.body_mb * MIB),
        image_bytes=int(settings.image_mb * MIB),
        image_pixels=settings.image_pixels,
        answer_tokens=settings.response_length,
        prompt_tokens=settings.prompt_length,
        response_tokens=settings.judged_length,
        answer_s=settings.answer_s,
    )
