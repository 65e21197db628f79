"""Good rows of each layout, and pictures, for `fault_inputs.py` to damage."""

import io
import random
from typing import Any

import numpy as np
from PIL import Image


def picture(draw: random.Random, *, shape: tuple[int, int] | None = None, mode: str = "RGB", kind: str = "PNG") -> bytes:
    width, height = shape or (draw.randrange(1, 60), draw.randrange(1, 60))
    shades = np.frombuffer(draw.randbytes(width * height * 3), np.uint8).reshape(height, width, 3)
    out = io.BytesIO()
    Image.fromarray(shades).convert(mode).save(out, kind)
    return out.getvalue()


def layouts(draw: random.Random) -> dict[str, dict[str, Any]]:
    """A good row of each layout; pictures are files in the folder of the rows."""
    return {
        "plain": {"question": "what is this ?", "response": "it is a knife .", "image": "a.png"},
        "plain pairs": {
            "question": "what is this ?",
            "responses": ["a knife .", "no ."],
            "chosen": draw.randrange(2),
            "safer": draw.randrange(2),
            "unsafe": [True, False],
            "severity": [1.0, -1.0],
            "image": "a.png",
        },
        "plain pictures": {"question": "<image> what is this ?", "images": ["a.png"], "responses": ["a knife ."]},
        "BeaverTails-V": {
            "image": "a.png",
            "question": "what is this ?",
            "category": "violence_and_physical_harm",
            "image_severity": 2,
            "response_1": "use a knife .",
            "response_2": "no .",
            "response_1_from": "a",
            "response_2_from": "b",
            "more_helpful_response_id": "1",
            "safer_response_id": "2",
            "is_response_1_safe": "no",
            "is_response_2_safe": "yes",
            "response_1_harmless_rate": -2,
            "response_2_harmless_rate": 1,
            "response_1_helpful_rate": 3,
            "response_2_helpful_rate": 1,
        },
        "BeaverTails-V answers": {
            "image": "a.png",
            "question": "what is this ?",
            "category": "animal_abuse",
            "image_severity": 1,
            "response": "a knife .",
            "is_response_safe": "yes",
        },
        "PKU-SafeRLHF": {
            "prompt": "what is this ?",
            "response_0": "use a knife .",
            "response_1": "no .",
            "prompt_source": "p",
            "response_0_source": "a",
            "response_1_source": "b",
            "is_response_0_safe": False,
            "is_response_1_safe": True,
            "response_0_harm_category": {"Violence": True, "Drugs": False},
            "response_1_harm_category": {"Violence": False, "Drugs": False},
            "response_0_severity_level": 3,
            "response_1_severity_level": 0,
            "better_response_id": 0,
            "safer_response_id": 1,
            "response_0_sha256": "x",
            "response_1_sha256": "y",
        },
        "BeaverTails": {
            "prompt": "what is this ?",
            "response": "no .",
            "category": {"animal_abuse": False, "privacy_violation": True},
            "is_safe": False,
        },
    }
