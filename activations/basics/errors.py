"""The one exception that stands for "the input is wrong, and here is what to do", and the one warning."""


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
