"""The one exception for a user's mistake; the command line prints it as one line and exits with code 2."""


class UserError(ValueError):
    """Something the user gave is wrong. The message is one line: what was expected, what came, what to do."""
