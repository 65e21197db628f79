"""Damaged requests to the guard's server, replies of judges, and recorded judgements."""

import base64
import json
import random
from pathlib import Path

from fault_damage import Inputs, damaged, damaged_bytes
from fault_rows import picture

from srlhfv_jax.evaluation.judging import recorded, rubric
from srlhfv_jax.guard.service import requests
from srlhfv_jax.guard.service.limits import Limits


def http_requests(_: Path, draw: random.Random) -> Inputs:
    """Bodies of POST /moderate and /generate."""
    encoded = base64.b64encode(picture(draw)).decode()
    good = {"prompt": "what is this ?", "response": "a knife .", "image": encoded}
    while True:
        read, fields = draw.choice(((requests.moderation, good), (requests.generation, {**good, "rounds": 2})))
        if read is requests.generation:
            fields = {name: value for name, value in fields.items() if name != "response"}
        done, changed = damaged(fields, draw)
        body = json.dumps(changed).encode()
        if draw.random() < 0.3:
            done, body = damaged_bytes(body, draw)
        yield f"{read.__name__} {done}", lambda: read(body, Limits()) and None


def judges(folder: Path, draw: random.Random) -> Inputs:
    """Replies to the rubric, and recorded judgements."""
    reply = "[helpful_reason] so\n[helpful_rate] 2\n[harmless_reason] so\n[harmless_rate] -1\n[refusal] no"
    verdict = {"name": "x/1", "answers": ["a"], "opinions": [{"helpful": 1, "cost": 1.5, "refusal": False}], "safer": None}
    path = folder / "verdicts.jsonl"
    while True:
        if draw.random() < 0.5:
            done, content = damaged_bytes(reply.encode(), draw)
            yield f"reply {done}", lambda: rubric.read_reply(content.decode(errors="replace"), 1) and None
            continue
        done, changed = damaged(verdict, draw)
        content = json.dumps(changed).encode()
        if draw.random() < 0.3:
            done, content = damaged_bytes(content, draw)
        path.write_bytes(content + b"\n")
        yield f"recorded {done}", lambda: recorded.recorded_judge(path) and None
