"""The one exception that stands for "the input is wrong, and here is what to do", and the one warning."""

from __future__ import annotations

from os import PathLike, fsdecode


class DefectionError(ValueError):
    """Bad input, told in one sentence that names what and where.

    The command line prints the sentence and exits with status 2; nothing is left half-written.

    Examples:
        >>> try:
        ...     load_probe("nowhere.safetensors")
        ... except DefectionError as error:
        ...     print(error)
        no probe at nowhere.safetensors
    """


class DefectionWarning(UserWarning):
    """What somebody should know of an input that is read all the same; the command line prints it as one line."""


def printable(path: str | bytes | PathLike[str], limit: int = 200) -> str:
    """A path that may be anything, such as what was meant as a prompt, in a sentence."""
    text = fsdecode(path).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= limit else f"{text[:limit]}…"
