"""The comments beside the fields of a settings class, for --help."""

import dataclasses
import inspect
import io
import textwrap
import tokenize


def comments(kind: type) -> dict[str, str]:
    """Field -> what its comments say, in the class that has it: lines of their own above it, then the end of its line."""
    texts = {field.name: "" for field in dataclasses.fields(kind)}
    for base in reversed(kind.__mro__):
        texts |= _own_comments(base) if dataclasses.is_dataclass(base) else {}
    return texts


def _own_comments(kind: type) -> dict[str, str]:
    """Comments of the fields that this class adds."""
    fields = {field.name for field in dataclasses.fields(kind)} & inspect.get_annotations(kind).keys()
    texts: dict[str, str] = {}
    above: list[str] = []
    name, depth, at_start = "", 0, True
    for token in tokenize.generate_tokens(io.StringIO(textwrap.dedent(inspect.getsource(kind))).readline):
        if token.type == tokenize.INDENT:
            depth += 1
        elif token.type == tokenize.DEDENT:
            depth -= 1
        elif depth == 1 and token.type == tokenize.COMMENT:
            text = token.string.lstrip("# ")
            if at_start:
                above.append(text)
            elif name:
                texts[name] = f"{texts[name]} {text}".strip()
        elif depth == 1 and at_start and token.type == tokenize.NAME:
            name, at_start = (token.string if token.string in fields else ""), False
            if name:
                texts[name] = " ".join(above)
            above = []
        elif token.type == tokenize.NEWLINE:
            name, at_start = "", True
        elif token.type not in (tokenize.NL, tokenize.COMMENT):
            at_start = False
    return texts
