"""The one error that a user is meant to read: `cli` prints its text as a single line, without a traceback."""


class UserError(Exception):
    """Something outside the program is wrong; the text says what, where, and what to do."""


class EchoedError(UserError):
    """The error of another rank, which has said it already: ends this process too, silently."""
