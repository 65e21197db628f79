"""`srlhfv serve`: a guard, and a policy under it, as an HTTP service (extra `serve`).

    srlhfv serve --guard=W/guard --policy=W/ppo_lag --port=8000

Clients of OpenAI's API find /v1/chat/completions, /v1/moderations and /v1/models there, and /v1/score: reward and cost of an answer.
A browser finds a page at / . /moderate and /generate are simpler, /health and /metrics are for watchers. docs/serve.md has them all.

    curl localhost:8000/v1/chat/completions -d '{"model": "ppo_lag", "messages": [{"role": "user", "content": "What is this for?"}]}'
    curl localhost:8000/moderate -d '{"prompt": "What is this for?", "response": "For bread.", "image": "<base64>"}'

An unsafe answer is drawn again (--on_unsafe, --rounds); questions themselves are answered, as in the published numbers, and with
--check_input unsafe ones are refused. Who may ask: any program that reaches the port, or with --token_variable=NAME those that send
the token in that environment variable (Authorization: Bearer TOKEN); pages in a browser: the server's own, and those of --origins.
SIGTERM stops new requests, answers those under way, and ends with exit code 143. Before it listens it compiles what prompts and
answers of --lengths need, without pictures and with pictures of any size (--nowarm_up: it does not); what is longer compiles once,
while its requests wait.
"""

from absl import flags as absl_flags

from srlhfv_jax.cli import define, switches
from srlhfv_jax.errors import UserError
from srlhfv_jax.parallel import host_cpu

LENGTHS = ["64", "256", "1024"]  # tokens


def main(argv: list[str]) -> None:
    values = _flags()
    switches.read(values, "serve", argv, __doc__)
    switches.required(values, "guard")
    host_cpu.prepare()
    try:
        from srlhfv_jax.guard.service import run
    except ImportError as error:
        raise UserError(f"the server needs {error.name}: pip install 'srlhfv-jax[serve]'") from error
    run.run(define.settings(run.Settings, values))


def _flags() -> absl_flags.FlagValues:
    from srlhfv_jax.guard.service.limits import MIB, Limits

    command, usual = define.define(), Limits()
    command.text("guard", None, "workdir of `srlhfv guard`, or its export")
    command.text("policy", "", "workdir of a stage, export or Hugging Face folder; empty: no answers, only verdicts")
    command.text("scorer", "", "checkpoint with score heads, for /v1/score; empty: the guard, where it has some beside its own")
    command.text("host", "127.0.0.1", "address to listen at; 0.0.0.0 is every address of this machine")
    command.whole("port", 8000, "port to listen at; 0: a free one", most=65535)
    command.whole("batch_size", usual.batch, "requests that a model sees at once", 1)
    command.real("wait_ms", usual.wait_s * 1e3, "how long the first request of a batch waits for others", 0.0)
    command.whole("queue", usual.queue, "requests of each kind that may wait", 1)
    command.real("body_mb", usual.body_bytes / MIB, "largest body, in MiB", 0.001)
    command.real("image_mb", usual.image_bytes / MIB, "largest picture as it is encoded, in MiB", 0.001)
    command.whole("image_pixels", usual.image_pixels, "largest picture in pixels", 1)
    command.real("answer_s", usual.answer_s, "longest time to an answer, in seconds", 0.001)
    command.whole("rounds", usual.rounds, "most regenerations that a request may ask for, and those of one that does not say")
    command.switch("check_input", False, "an unsafe question is refused before it is answered")
    command.texts("hosts", [], "further names that clients call this server by (its --host is one)")
    command.texts("origins", [], 'pages that may ask from a browser, such as https://example.org; "*": any')
    command.text("token_variable", "", "environment variable with the token that requests must bring; empty: none")
    command.choice("on_unsafe", "regenerate", ["block", "regenerate", "warn"], "what becomes of an unsafe answer")
    command.whole("prompt_length", usual.prompt_tokens, "longest question in tokens, with its picture (P)", 1)
    command.whole("judged_length", usual.response_tokens, "longest answer that is judged, in tokens", 1)
    command.texts(
        "lengths",
        LENGTHS,
        "prompts, with room for pictures as long, and judged answers are padded to the least of these (and the limits) that holds them",
    )
    command.whole("max_pixels", 0, "pixels that the policy shrinks pictures to; 0: the checkpoint's own limit")
    command.switch("warm_up", True, "compile before listening")
    define.system_prompt(command)
    define.sampling(command)
    return command.values
