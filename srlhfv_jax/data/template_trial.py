"""Render a chat template once where it can do no harm: run as a program, with little time and memory. JSON on stdin; see `templates`.

It exits with 0 when the template ended, in whatever way: what it rendered, or raised, is found out by the caller, who then knows that
rendering ends. Imports nothing of the package, which would take longer than what it does.
"""

import json
import sys

SECONDS, BYTES, CHARACTERS = 2, 1 << 30, 1 << 20
TOO_LONG = 3  # exit code


def environment():
    """As that of transformers, which only refuses more."""
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def fails(message):
        raise ValueError(message)

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = lambda value, **how: json.dumps(value)
    made.globals |= {"raise_exception": fails, "strftime_now": lambda how: how}
    return made


def main() -> None:
    given = json.load(sys.stdin)
    import resource  # not on Windows, where nothing of this package runs

    env = environment()
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    try:
        template = env.from_string(given["template"])
        for variables in given["renderings"]:
            render(template, variables)
    except MemoryError:
        sys.exit(TOO_LONG)
    except Exception:
        pass  # it is no template


def render(template, variables) -> None:
    """End with the exit code, or in whatever way the template ends."""
    length = 0
    try:
        for piece in template.generate(**variables):
            length += len(piece)
            if length > CHARACTERS:
                sys.exit(TOO_LONG)
    except MemoryError:
        raise
    except Exception:
        pass  # it ended


if __name__ == "__main__":
    main()
