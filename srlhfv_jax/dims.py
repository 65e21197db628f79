"""The letters that name array dimensions, defined here and nowhere else.

An array's name ends in one letter per axis: `logits_BTV` is [batch, positions, vocabulary]. The same letters are the axis
names of the jaxtyping annotations on public signatures (`Float[Array, "B T V"]`).
"""

LETTERS = {
    "B": "batch rows (prompts, or prompt and response)",
    "Q": "what a guard judges of a row: the question, its answer",
    "S": "the two sides (responses) of a preference pair",
    "P": "prompt positions, left-padded",
    "R": "response positions, right-padded",
    "T": "positions of the whole sequence, T = P + R",
    "I": "images",
    "N": "patches of one row's images, or what a vision tower makes of them",
    "M": "image placeholders of one row, and the features that fill them",
    "C": "image channels, or all values of a patch",
    "Y": "image height in pixels",
    "X": "image width in pixels",
    "D": "width of the decoder's residual stream",
    "E": "width of the vision tower's residual stream",
    "F": "width of the feed-forward layer",
    "H": "query heads",
    "K": "key and value heads",
    "G": "query heads per key-value head, G = H / K",
    "h": "width of one head",
    "V": "vocabulary",
    "L": "layers",
    "A": "yes-or-no questions of a guard: harm categories, or severity thresholds",
    "J": "severity thresholds: more than safe, than minor, than moderate",
    "U": "functions that a reward and a cost are summed from",
    "W": "slots of the cost window of the multiplier",
}
