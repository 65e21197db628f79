"""Random damage to values, to files and to folders, for the kinds of `fault_inputs.py`."""

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

NASTY = (
    *(None, True, False, 0, -1, 1.5, 10**30, -(2**63), float("nan"), float("inf"), [], {}, [[[]]], [1, "a"], {"a": 1}),
    *("", " ", "no", "false", "tie", "2.7", "None", "x" * 5000, "\0", "\ud800", "\u202e", "a\u0300" * 200, "<image>", "</s>"),
    *("../../../etc/passwd", "/etc/passwd", "file:///etc/passwd", "gs://b/c", "data:image/png;base64,AAAA", "{{ 1 / 0 }}"),
)
Call = Callable[[], None]
Inputs = Iterator[tuple[str, Call]]  # (the input in words, what uses it)


def damaged(value: Any, draw: random.Random) -> tuple[str, Any]:
    """(what was done, a copy of JSON-like `value` with one to three changes)."""
    value, done = copy.deepcopy(value), []
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        places = list(_places(value))
        if not places or draw.random() < 0.02:
            value = draw.choice(NASTY)
            done.append(f"all -> {value!r:.60}")
            continue
        holder, key = draw.choice(places)
        if draw.random() < 0.15:
            del holder[key]
            done.append(f"without {key!r:.40}")
        else:
            holder[key] = copy.deepcopy(draw.choice(NASTY))
            done.append(f"{key!r:.40} -> {holder[key]!r:.60}")
    return "; ".join(done), value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def damaged_bytes(content: bytes, draw: random.Random) -> tuple[str, bytes]:
    """(what was done, the bytes cut, changed, repeated or in another encoding)."""
    way = draw.choice(("cut", "flip", "insert", "empty", "twice", "utf-16", "latin", "bom", "nul"))
    at = draw.randrange(max(1, len(content)))
    match way:
        case "cut":
            changed = content[:at]
        case "flip":
            changed = bytearray(content)
            for _ in range(draw.choice((1, 3, 30))):
                if changed:
                    changed[draw.randrange(len(changed))] = draw.randrange(256)
            changed = bytes(changed)
        case "insert":
            changed = content[:at] + draw.randbytes(draw.choice((1, 9, 300))) + content[at:]
        case "empty":
            changed = b""
        case "twice":
            changed = content + content
        case "utf-16":
            changed = content.decode("latin-1").encode("utf-16")
        case "latin":
            changed = content[:at] + "é".encode("latin-1") + content[at:]
        case "bom":
            changed = b"\xef\xbb\xbf" + content
        case "nul":
            changed = content[:at] + b"\0" * 9 + content[at:]
    return f"{way} at {at}", changed


def damaged_tensors(tensors: dict[str, np.ndarray], draw: random.Random) -> tuple[str, dict[str, np.ndarray]]:
    """(what was done, the tensors with one of them away, renamed, of another shape or dtype, or with odd numbers in it)."""
    name = draw.choice(sorted(tensors))
    tensor, others = tensors[name], {key: value for key, value in tensors.items() if key != name}
    way = draw.choice(("gone", "renamed", "twice", "cut", "longer", "axis", "turned", "empty", "dtype", "number", "all gone"))
    match way:
        case "gone":
            changed = others
        case "all gone":
            changed = {}
        case "renamed":
            changed = others | {draw.choice(("x", f"{name}.default", name.upper(), "a.b.c", "")): tensor}
        case "twice":
            changed = tensors | {f"{name}.again": tensor}
        case "cut":
            changed = others | {name: tensor[:-1].copy()}
        case "longer":
            changed = others | {name: np.concatenate([tensor, tensor[:1]])}
        case "axis":
            changed = others | {name: tensor[None]}
        case "turned":
            changed = others | {name: np.ascontiguousarray(tensor.T)}
        case "empty":
            changed = others | {name: np.zeros((0, *tensor.shape[1:]), tensor.dtype)}
        case "dtype":
            way = draw.choice(("int8", "int64", "float64", "float16", "bool", "uint8"))
            changed = others | {name: tensor.astype(way)}
        case "number":
            odd = draw.choice((np.nan, np.inf, -np.inf, 3e38))
            changed = others | {name: tensor.copy()}
            changed[name].flat[draw.randrange(tensor.size)] = odd
            way = f"one {odd}"
    return f"{name} {way}", changed
