"""Messages of libraries and of commands, and the switch for more of them. Before any of those libraries is imported.

Off: advice that users of srlhfv cannot follow, such as "PyTorch was not found" of transformers, whose models are not used here.
`--verbose`, or SRLHFV_VERBOSE=1, brings it back, and lists every parameter of a tree.
"""

import os
import sys
from collections.abc import MutableMapping

VERBOSE = "SRLHFV_VERBOSE"
SILENT = {"TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"}


def take_flag(argv: list[str], environment: MutableMapping[str, str] = os.environ) -> list[str]:
    """The arguments without `--verbose`; it is remembered in the environment, where child processes see it too."""
    if "--verbose" in argv:
        environment[VERBOSE] = "1"
    return [argument for argument in argv if argument != "--verbose"]


def verbose(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Whether everything is to be said."""
    return environment.get(VERBOSE, "") not in ("", "0")


def silence(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set what libraries read when they are imported; what the user has set stays."""
    if not verbose(environment):
        for name, value in SILENT.items():
            environment.setdefault(name, value)


def unraisable(event) -> None:
    """Hook for errors that C++ cannot raise: after a save that failed, which is raised elsewhere, it calls back into event loops that are gone."""
    if str(event.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(event)
