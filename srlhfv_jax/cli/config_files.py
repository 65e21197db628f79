"""Config files: named by --config, found, run, and asked for a preset."""

import importlib.util
import os.path
import re
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

import srlhfv_jax.configs
from srlhfv_jax.errors import UserError, reason, short

CONFIGS = Path(srlhfv_jax.configs.__file__).parent
SENTENCE_END = re.compile(r"(?<=\.) (?=[A-Z])")
NO_CONFIGS = ("sections", "recipes")  # files there that only others import


def argument(command: str, argv: list[str]) -> tuple[str, list[str]]:
    """The value of --config (the last one counts; else the file of this command), and the other arguments."""
    name, rest, words = str(CONFIGS / f"{command}.py"), [], iter(argv)
    for word in words:
        if word in ("--config", "-config"):
            name = next(words, "")
        elif word.startswith(("--config=", "-config=")):
            name = word.partition("=")[2]
        else:
            rest.append(word)
    if not name:
        raise UserError("--config needs a value: FILE.py or FILE.py:ARG")
    return name, rest


def load(name: str) -> ConfigDict:
    """The ConfigDict of "file.py" or "file.py:preset". A file that is not there is looked for among the configs of the package.

    Raises:
        UserError: no such file, or one that does not make a config.
    """
    path, (_, colon, preset) = _path(name), name.partition(":")
    module = _module(path)
    if "get_config" not in vars(module):
        raise UserError(f"{path} has no function get_config: it must return a ConfigDict")
    try:
        config = module.get_config(preset) if colon else module.get_config()
    except TypeError as error:
        raise UserError(f"{path}: {reason(error)}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config of {path} must return a ConfigDict, got {type(config).__name__}")
    return config.lock()


def presets(name: str) -> dict[str, str]:
    """Preset -> the first sentence of its docstring, where the file of "file.py:preset" has a table PRESETS."""
    table = vars(_module(_path(name))).get("PRESETS", {})
    return {preset: SENTENCE_END.split(" ".join((make.__doc__ or "").split()))[0] for preset, make in table.items()}


def _path(name: str) -> Path:
    file = name.partition(":")[0]
    path = next((path for path in (Path(file), CONFIGS / Path(file).name) if os.path.isfile(path)), None)
    if path is None:
        known = ", ".join(sorted(path.name for path in CONFIGS.glob("[!_]*.py") if path.stem not in NO_CONFIGS))
        raise UserError(f"there is no config file {short(file)} (the package brings {known}): give a path to a .py file")
    return path


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"srlhfv_config_{path.stem}", path)
    if spec is None:
        raise UserError(f"a config file is a Python file that ends in .py, got {path}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:  # whatever the user's file does
        raise UserError(f"{path} cannot be read as a config file: {type(error).__name__}: {reason(error)}") from error
    return module
