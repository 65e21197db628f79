"""Configs by name, with changed values."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

NOTHING: Mapping[str, Any] = MappingProxyType({})


def config(name: str, overrides: Mapping[str, Any] = NOTHING) -> Any:
    """The ConfigDict of "STAGE:PRESET" (or "STAGE", or a file), with changed values by dotted keys: {"constraint.budget": 0.1}.

    Raises:
        UserError: no such preset or key, or a value of another type.
    """
    from srlhfv_jax.cli.config_files import load as load_config
    from srlhfv_jax.errors import UserError, reason
    from srlhfv_jax.parsing import check_key

    stage, colon, preset = name.partition(":")
    settings = load_config(f"{stage if stage.endswith('.py') else f'{stage}.py'}{colon}{preset}")
    for key in overrides:
        check_key(settings, key)
    try:
        with settings.unlocked():
            settings.update_from_flattened_dict(dict(overrides))
    except (TypeError, ValueError) as error:
        raise UserError(reason(error)) from error
    return settings
