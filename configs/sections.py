"""Sections that several config files share: plain functions of what differs, every value in sight."""

from srlhfv_jax.errors import UserError, shown


def choose(arg: str, *known: str) -> str:
    """Check the argument of get_config."""
    if arg not in known:
        raise UserError(f"this config knows the arguments {', '.join(known)}, got {shown(arg)}")
    return arg


def model(tiny: bool) -> dict:
    """bfloat16 activations over float32 masters: an Adam step of 1e-6 changes only 2 % of bfloat16 weights."""
    return dict(
        dtype="float32" if tiny else "bfloat16",
        param_dtype="float32",
        remat="none" if tiny else "layer",
        scan_unroll=0 if tiny else 1,
        attention="auto",
        logp_chunk=0,
    )


def lora() -> dict:
    """Off. A rank (16, say) trains an adapter over the frozen decoder instead of the model."""
    return dict(rank=0, alpha=32.0, targets=("text/layers/.*_proj",), int8=False, activated=False)


def mesh() -> dict:
    """Everything over fsdp: parameters and optimizer states are split, rows too."""
    return dict(data=1, fsdp=-1, tensor=1)


def rollout() -> dict:
    """Sampled from the distribution that ratios are computed with; all rows at once."""
    return dict(
        temperature=1.0,
        old_logp="behaviour",
        layout="gathered",
        offload="none",
        microbatches=1,
        score_microbatches=1,
    )


def data(*, batch: int, prompt: int, response: int) -> dict:
    return dict(
        path="",  # --config.data.path=...
        split="train",
        image_dir="",
        allow_dir="",
        max_pixels=0,
        picture_buckets=1,
        prompt_length=prompt,
        response_length=response,
        batch_size=batch,
        workers=4,
    )


def optimizer(rate: float, *, schedule: str, weight_decay: float, freeze: tuple[str, ...], heads: float = 0.0) -> dict:
    return dict(
        algorithm="adamw",
        learning_rate=rate,
        head_learning_rate=heads,
        schedule=schedule,
        warmup_fraction=0.03,
        weight_decay=weight_decay,
        b1=0.9,
        b2=0.95,
        eps=1e-8,
        clip_norm=1.0,
        freeze=freeze,
    )


def checkpoint(every: int) -> dict:
    return dict(every_steps=every, keep=2)


def log(every: int) -> dict:
    return dict(every_steps=every, tensorboard=True)
