"""`srlhfv serve`: from flags to a server that listens: guard and policy loaded, the programs of short questions compiled."""

import dataclasses
import functools
import io
import os
import sys
import time

from jax.sharding import Mesh
from PIL import Image

from srlhfv_jax.config import inference
from srlhfv_jax.data import loader
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.rows import Prompt
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation import answering
from srlhfv_jax.guard import checks as guard_checks
from srlhfv_jax.guard.service import access, app, models, server
from srlhfv_jax.guard.service.limits import MIB, Limits
from srlhfv_jax.guard.service.requests import Generate
from srlhfv_jax.parallel.mesh import one_device
from srlhfv_jax.runs import checkpoints


@dataclasses.dataclass(frozen=True)
class Settings:
    """The flags of `srlhfv serve`, whose help says what each is."""

    guard: str
    policy: str  # "" = /moderate only
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
    max_pixels: int
    system_prompt: str
    seed: int
    dtype: str
    warm_up: bool


def run(settings: Settings) -> None:
    """Load, compile, listen; returns when the server has ended.

    Raises:
        UserError: no such guard, policy or token, an address that is taken, or a guard that would check nothing.
    """
    limits, allowed, mesh = _limits(settings), _access(settings), one_device()
    listening = server.listen(settings.host, settings.port)  # a taken port is known before minutes of loading
    checkpoints.check_checkpoint(settings.guard, "--guard")
    if settings.policy:
        checkpoints.check_checkpoint(settings.policy, "--policy")
    checks = guard_checks.load(
        settings.guard,
        mesh,
        dtype=settings.dtype,
        batch_size=limits.batch,
        prompt_length=limits.prompt_tokens,
        response_length=limits.response_tokens,
    )
    if settings.policy:
        guard_checks.check_acts(settings.guard, checks, settings.check_input)
    generate = _generate(settings, limits, mesh, checks) if settings.policy else None
    moderate = models.moderate_with(*checks)
    if settings.warm_up:
        began = time.monotonic()
        models.warm_up(moderate, generate, _grey_square())
        print(f"serve: warmed up in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    built = app.make_app(moderate, generate, limits, allowed)
    print(f"listening at http://{settings.host}:{listening.getsockname()[1]}", flush=True)
    server.make_server(built, limits).run(sockets=[listening])


def _generate(settings: Settings, limits: Limits, mesh: Mesh, checks: guard_checks.Checks) -> Generate:
    """The policy under the guard, as the application calls it."""
    data = loader.single_pass(
        prompt_length=limits.prompt_tokens,
        response_length=settings.response_length,
        batch_size=limits.batch,
        max_pixels=settings.max_pixels,
        system_prompt=settings.system_prompt,
    )
    model = inference(settings.dtype)
    policy = answering.load_policy(settings.policy, data, model, mesh, temperature=settings.temperature, seed=settings.seed)

    def unreadable(texts: list[tuple[Prompt, str | None]]) -> list[Unusable | None]:
        by_policy = answering.unreadable(policy, [prompt for prompt, _ in texts])
        return [ours or theirs for ours, theirs in zip(by_policy, checks.unreadable(texts), strict=True)]

    draw = functools.partial(answering.answer_prompts, policy)
    check_input = checks.input if settings.check_input else None
    return models.generate_with(draw, check_input, checks.output, unreadable, policy=settings.on_unsafe)


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
        prompt_tokens=settings.prompt_length,
        response_tokens=settings.judged_length,
        answer_s=settings.answer_s,
    )


def _grey_square() -> bytes:
    """An encoded picture."""
    out = io.BytesIO()
    Image.new("RGB", (224, 224), "grey").save(out, format="PNG")
    return out.getvalue()
