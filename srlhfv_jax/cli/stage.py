"""What a command asks of its config before it runs."""

from srlhfv_jax.errors import UserError


def given(value: str, path: str, what: str) -> None:
    """Raise UserError where a config leaves a path empty that this command cannot do without."""
    if not value:
        raise UserError(f"{path} is empty: give {what} (--{path}=...)")
