"""The winner of a pair, for objectives that read nothing else of its preferences: by an axis, and what a transform makes of it.

    none          the winner of the axis
    safe_winner   pairs whose winner is unsafe are left out (DPO-SafeBetter)
    safedpo       they are turned round where the other response is safe, and left out where it is not (SafeDPO, arXiv 2505.20065)

Of axis "each" nobody wins: answers are not compared with each other, and one of them must be labelled safe or unsafe (KTO).

A pair that takes no part is left out before step 0, for a named reason.
"""

from typing import NamedTuple

from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.rows import Example

AXES = ("helpful", "safer", "scores", "each")
TRANSFORMS = ("none", "safe_winner", "safedpo")


class Choice(NamedTuple):
    """Rule by which one response of a pair wins."""

    axis: str  # of AXES; of "scores": later, by numbers of models: until then, and of "each", it is side 0
    transform: str  # of TRANSFORMS
    flags: bool  # both responses must be labelled safe or unsafe


def decided(example: Example, choice: Choice) -> Example:
    """The example with its winner as `chosen`, and no other preference.

    Raises:
        Unusable: it takes no part.
    """
    if len(example.responses) != 2:
        raise Unusable("missing_response", f"a pair needs two responses, the row has {len(example.responses)}")
    winner = _winner(example, choice.axis)
    unsafe = example.unsafe or (None, None)
    if choice.axis == "each" and unsafe == (None, None):
        raise Unusable("missing_safety_label", "neither response is labelled safe or unsafe")
    if (choice.flags or choice.transform == "safedpo") and None in unsafe:
        raise Unusable("missing_safety_label", f"labels of the two responses: {unsafe[0]}, {unsafe[1]} (unsafe or not)")
    if choice.transform != "none" and unsafe[winner] is None:
        raise Unusable("missing_safety_label", f"response {winner} wins and is not labelled safe or unsafe")
    if choice.transform != "none" and unsafe[winner]:
        if choice.transform == "safe_winner":
            raise Unusable("unsafe_winner", f"response {winner} wins and is labelled unsafe")
        if unsafe[1 - winner]:
            raise Unusable("both_unsafe", "both responses are labelled unsafe")
        winner = 1 - winner
    return example._replace(chosen=winner, safer=None, helpful_tie=False, safety_tie=False, severity=())


def _winner(example: Example, axis: str) -> int:
    if axis in ("scores", "each"):
        return 0
    side, tie = {"helpful": (example.chosen, example.helpful_tie), "safer": (example.safer, example.safety_tie)}[axis]
    if tie:
        raise Unusable(f"{'helpful' if axis == 'helpful' else 'safety'}_tie", f"the responses are labelled as equally {axis}")
    if side is None:
        raise Unusable("missing_label", f"no label says which response is {'more helpful' if axis == 'helpful' else 'safer'}")
    return side
