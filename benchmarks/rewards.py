"""A reward and a cost that are functions, as docs/functions.md shows them: short answers, without certain words."""

WORDS = ("knife", "blade")


def brevity(samples):
    """0 for an answer of 12 words, less for longer and shorter ones."""
    return [-abs(len(sample.answer.split()) - 12) / 12 for sample in samples]


def forbidden(samples):
    """Above 0, which means unsafe, where one of WORDS is said."""
    return [1.0 if any(word in sample.answer.lower() for word in WORDS) else -1.0 for sample in samples]
