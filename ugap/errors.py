"""The one exception that stands for bad input."""


class InputError(ValueError):
    """Bad input that a person can mend: one line that names the file, the row and the cause.

    The command line prints the message and ends with status 2; library users catch it as a `ValueError`.
    """
