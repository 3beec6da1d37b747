"""The one error that a user is meant to read: `cli` prints its text as a single line, without a traceback."""

_LONGEST = 1500  # characters; libraries and files put whole lines, or a page, into what they say


class UserError(Exception):
    """Something outside the program is wrong; the text says what, where, and what to do.

    The text may quote a file, so it is made one line, of characters that a terminal shows and does not obey.
    """

    def __init__(self, text: str):
        super().__init__(one_line(text))


class EchoedError(UserError):
    """The error of another rank, which has said it already: ends this process too, silently."""


def one_line(text: str, longest: int = _LONGEST) -> str:
    """White space as single spaces, what cannot be printed as an escape, the middle left out of a long text."""
    if len(text) > 2 * longest:
        text = f"{text[:longest]} ... {text[-longest:]}"
    line = " ".join(text.split())
    if not line.isprintable():
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return line if len(line) <= longest else f"{line[: longest * 2 // 3]} ... {line[-longest // 4 :]}"
