"""What went wrong, in one line that names the remedy? The command line prints it and exits with 1."""


class InterpError(ValueError):
    """Report a mistake in a request, or a file that cannot be used, in one line that names the remedy.

    A `ValueError`; whatever the message quotes, it is printed as a single line.

    Example:
        >>> print(interp.InterpError("unknown pool:\\n'ordinry'"))
        unknown pool: 'ordinry'
    """

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())


def first_line(error: BaseException) -> str:
    """The message of a foreign exception, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
