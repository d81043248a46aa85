"""The one exception that stands for "the input is wrong, and here is what to do"."""


class DefectionError(ValueError):
    """Bad input, told in one sentence that names what and where.

    The command line prints the sentence and exits with status 2; nothing is left half-written.
    """
