"""The two ways in which a command refuses or fails; the command line turns them into exit codes."""


class RequestError(ValueError):
    """The request is wrong (exit code 2): one line that names the argument and the cure."""


class WorkError(RuntimeError):
    """The request was fine but the work failed (exit code 1): one line that says what happened."""
