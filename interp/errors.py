"""What went wrong, in one line that names the remedy? The command line prints it and exits with 1."""


class InterpError(ValueError):
    """A mistake in what was asked for, or a file that cannot be used. Said in one line, whatever it quotes."""

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())


def first_line(error: BaseException) -> str:
    """The message of a foreign exception, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
