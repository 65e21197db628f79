"""Bounds of the service: how much it takes on, and how long it waits."""

from dataclasses import dataclass

from srlhfv_jax.errors import UserError

MIB = 1024 * 1024


@dataclass(frozen=True)
class Limits:
    """Bounds of one server. Requests hold at most `held_bytes`, and while a body is read also its text, its picture, and that
    picture's pixels, in `readers` threads.
    """

    body_bytes: int = 16 * MIB  # of one request
    held_bytes: int = 256 * MIB  # of all bodies that are being received or answered
    text_chars: int = 32 * 1024  # of a prompt or a response
    prompt_tokens: int = 4096  # of a question with its picture and the chat template
    response_tokens: int = 2048  # of an answer to be judged
    image_bytes: int = 8 * MIB  # of a picture as it is encoded
    image_pixels: int = 16 * MIB  # of a picture when it is decoded
    pictures: int = 16  # of one request
    messages: int = 256  # turns of a conversation
    inputs: int = 64  # texts of one request to judge
    choices: int = 8  # answers that one request may ask for
    answer_tokens: int = 256  # of an answer that is drawn
    rounds: int = 5  # most rounds that a request may ask for
    batch: int = 8  # requests that the model sees at once
    wait_s: float = 0.01  # how long the first request of a batch waits for others
    queue: int = 256  # requests that wait, for each endpoint
    readers: int = 2  # threads that parse bodies and check pictures
    connections: int = 1024
    head_s: float = 5.0  # to send the next request line and headers
    body_s: float = 10.0  # to send the body
    answer_s: float = 60.0  # from the whole body to the answer
    shutdown_s: float = 30.0  # for requests under way when SIGTERM comes

    def __post_init__(self) -> None:
        """Raises UserError for a bound that lets nothing through."""
        for name, value in vars(self).items():
            least = 0 if name in ("rounds", "wait_s") else 1 if isinstance(value, int) else 1e-3
            if value < least:
                raise UserError(f"the limit {name} must be at least {least}, got {value}")
