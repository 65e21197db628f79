"""`srlhfv serve`: a guard, and a policy under it, as an HTTP service (extra `serve`).

    srlhfv serve --guard=W/guard --policy=W/ppo_lag --port=8000

    curl localhost:8000/moderate -d '{"prompt": "What is this for?", "response": "For bread.", "image": "<base64>"}'
    curl localhost:8000/generate -d '{"prompt": "What is this for?", "rounds": 5}'
    curl localhost:8000/health

/moderate judges the response, or without one the question: {"safe", "severity", "categories", "scores"}. /generate filters and
regenerates: {"answer", "blocked", "verdict", "input", "rounds"}; questions themselves are answered, as in the published numbers,
and with --check_input unsafe ones are refused. A refusal is {"error": one line}; its statuses are in
guard/service/app.py. Who may ask: any program that reaches the port, or with --token_variable=NAME those that send the token in
that environment variable (Authorization: Bearer TOKEN); pages in a browser only from --origins. SIGTERM stops new requests,
answers those under way, and ends with exit code 143. Before it listens it compiles what short questions need, with a picture and
without (--nowarm_up: it does not); another length of prompts or size of pictures compiles once, while its requests wait.
"""

import dataclasses
import functools
import io
import os
import sys
import time
from typing import Any

from absl import flags as absl_flags
from PIL import Image

from srlhfv_jax.cli import flags
from srlhfv_jax.cli.generate import one_device
from srlhfv_jax.config import DataConfig, inference
from srlhfv_jax.errors import UserError
from srlhfv_jax.guard.service.limits import MIB, Limits
from srlhfv_jax.parallel import host_cpu


def main(argv: list[str]) -> None:
    values = _flags()
    flags.read(values, "serve", argv, __doc__)
    flags.required(values, "guard")
    host_cpu.prepare()
    try:
        from srlhfv_jax.guard.service import app, models, server
    except ImportError as error:
        raise UserError(f"the server needs {error.name}: pip install 'srlhfv-jax[serve]'") from error
    from srlhfv_jax.guard import checks as moderating
    from srlhfv_jax.runs import checkpoints

    limits, access = _limits(values), _access(values)
    mesh = one_device()
    listening = server.listen(values.host, values.port)  # a taken port is known before minutes of loading
    checkpoints.check_checkpoint(values.guard, "--guard")
    if values.policy:
        checkpoints.check_checkpoint(values.policy, "--policy")
    checks = moderating.load(
        values.guard,
        mesh,
        dtype=values.dtype,
        batch_size=limits.batch,
        prompt_length=limits.prompt_tokens,
        response_length=limits.response_tokens,
    )
    if values.policy:
        moderating.check_acts(values.guard, checks, values.check_input)
    generate = _generate(values, limits, mesh, checks) if values.policy else None
    moderate = models.moderate_with(*checks)
    if values.warm_up:
        began = time.monotonic()
        models.warm_up(moderate, generate, _picture())
        print(f"serve: warmed up in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    built = app.make_app(moderate, generate, limits, access)
    print(f"listening at http://{values.host}:{listening.getsockname()[1]}", flush=True)
    server.make_server(built, limits).run(sockets=[listening])


def _generate(values: absl_flags.FlagValues, limits: Limits, mesh: Any, checks: Any) -> Any:
    """The policy under the guard, as the application calls it."""
    from srlhfv_jax.evaluation import generating
    from srlhfv_jax.guard.service import models

    data = DataConfig(
        path="",
        split="",
        image_dir="",
        allow_dir="",
        prompt_length=limits.prompt_tokens,
        response_length=values.response_length,
        batch_size=limits.batch,
        workers=1,
        max_pixels=values.max_pixels,
        picture_buckets=1,
    )
    policy = generating.load(values.policy, data, inference(values.dtype), mesh, temperature=values.temperature, seed=values.seed)

    def unreadable(asked):
        theirs = generating.unreadable(policy, [prompt for prompt, _ in asked])
        return [one or other for one, other in zip(theirs, checks.unreadable(asked), strict=True)]

    answers = functools.partial(generating.answers, policy)
    check_input = checks.input if values.check_input else None
    return models.generate_with(answers, check_input, checks.output, unreadable, policy=values.on_unsafe)


def _access(values: absl_flags.FlagValues) -> Any:
    """
    Raises:
        UserError: the variable of the token is empty.
    """
    from srlhfv_jax.guard.service import access

    token = os.environ.get(values.token_variable, "") if values.token_variable else ""
    if values.token_variable and not token:
        raise UserError(f"the environment variable {values.token_variable} is not set: put the token there")
    return access.Access(access.names(values.host, tuple(values.hosts)), tuple(values.origins), token)


def _picture() -> bytes:
    """A grey square."""
    out = io.BytesIO()
    Image.new("RGB", (224, 224), "grey").save(out, format="PNG")
    return out.getvalue()


def _limits(values: absl_flags.FlagValues) -> Limits:
    return dataclasses.replace(
        Limits(),
        batch=values.batch_size,
        wait_s=values.wait_ms / 1e3,
        queue=values.queue,
        rounds=values.rounds,
        body_bytes=int(values.body_mb * MIB),
        image_bytes=int(values.image_mb * MIB),
        image_pixels=values.image_pixels,
        prompt_tokens=values.prompt_length,
        response_tokens=values.judged_length,
        answer_s=values.answer_s,
    )


def _flags() -> absl_flags.FlagValues:
    values, usual = absl_flags.FlagValues(), Limits()
    text = functools.partial(absl_flags.DEFINE_string, flag_values=values)
    whole = functools.partial(absl_flags.DEFINE_integer, flag_values=values)
    real = functools.partial(absl_flags.DEFINE_float, flag_values=values)
    names = functools.partial(absl_flags.DEFINE_list, flag_values=values)
    choice = functools.partial(absl_flags.DEFINE_enum, flag_values=values)
    text("guard", None, "workdir of `srlhfv guard`, or its export")
    text("policy", "", "workdir of a stage, export or Hugging Face folder; empty: /moderate only")
    text("host", "127.0.0.1", "address to listen at; 0.0.0.0 is every address of this machine")
    whole("port", 8000, "port to listen at; 0: a free one", lower_bound=0, upper_bound=65535)
    whole("batch_size", usual.batch, "requests that a model sees at once", lower_bound=1)
    real("wait_ms", usual.wait_s * 1e3, "how long the first request of a batch waits for others", lower_bound=0.0)
    whole("queue", usual.queue, "requests of each kind that may wait", lower_bound=1)
    real("body_mb", usual.body_bytes / MIB, "largest body, in MiB", lower_bound=0.001)
    real("image_mb", usual.image_bytes / MIB, "largest picture as it is encoded, in MiB", lower_bound=0.001)
    whole("image_pixels", usual.image_pixels, "largest picture in pixels", lower_bound=1)
    real("answer_s", usual.answer_s, "longest time to an answer, in seconds", lower_bound=0.001)
    whole(
        "rounds", usual.rounds, "most regenerations that a request may ask for, and those of one that does not say", lower_bound=0
    )
    absl_flags.DEFINE_bool("check_input", False, "an unsafe question is refused before it is answered", flag_values=values)
    names("hosts", [], "further names that clients call this server by (its --host is one)")
    names("origins", [], 'pages that may ask from a browser, such as https://example.org; "*": any')
    text("token_variable", "", "environment variable with the token that requests must bring; empty: none")
    choice("on_unsafe", "regenerate", ["block", "regenerate", "warn"], "what becomes of an unsafe answer")
    real("temperature", 1.0, "of the answers; 0 = greedy", lower_bound=0.0)
    whole("prompt_length", usual.prompt_tokens, "longest question in tokens, with its picture (P)", lower_bound=1)
    whole("judged_length", usual.response_tokens, "longest answer that is judged, in tokens", lower_bound=1)
    whole("response_length", 256, "longest answer in tokens (R)", lower_bound=1)
    whole("max_pixels", 0, "pixels that the policy shrinks pictures to; 0: the checkpoint's own limit", lower_bound=0)
    whole("seed", 0, "of the sampling", lower_bound=0, upper_bound=flags.SEEDS)
    choice("dtype", "float32", ["float32", "bfloat16"], "of weights and activations")
    absl_flags.DEFINE_boolean("warm_up", True, "compile before listening", flag_values=values)
    return values
