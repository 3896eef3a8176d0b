"""Keys, tokens and passwords: what is shown or written down leaves them out."""

from __future__ import annotations

import logging
import os
import re
import shlex
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType

LEFT_OUT = "[left out]"
SHORTEST = 8
"""Characters of a secret; a shorter value, such as KEY=1, may be anything."""
KEY_OPTION = "--api-key"
_SECRET_VARIABLE = re.compile(
    r"(TOKEN|KEYS?|SECRETS?|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|_PASS|_PAT)$", re.IGNORECASE
)
_URL = re.compile(r"[A-Za-z][\w+.-]*://\S+")
_IN_AUTHORITY = re.compile(r"(:/{1,2})[^/?#\s'\"]+(?=@)")
"""user:password of https://user:password@host/, after the slashes, of which a path keeps one."""
_IN_QUERY = re.compile(r"(?<=[?&])([\w.-]*(?:token|key|secret|password|signature)[\w.-]*=)[^&#\s'\"]+", re.IGNORECASE)
"""The value of https://host/?access_token=value, after its name."""


def without_secrets(
    text: str, environment: Mapping[str, str] | None = None, arguments: Sequence[str] | None = None
) -> str:
    """A text without the secrets of this process, and without credentials in URLs.

    Args:
        text: a message, a log line, a command.
        environment: values of variables whose names end as those of secrets do are secret; None is this process's.
        arguments: values of `--api-key` are secret; None is this process's.
    """
    variables = os.environ if environment is None else environment
    secrets = {*_of_environment(variables), *_of_arguments(sys.argv if arguments is None else arguments)}
    for secret in sorted(secrets - {""}, key=len, reverse=True):
        text = text.replace(secret, LEFT_OUT)
    return _IN_QUERY.sub(rf"\1{LEFT_OUT}", _IN_AUTHORITY.sub(rf"\1{LEFT_OUT}", text))


def typed_command() -> str:
    """What was typed, for records: `t3d` and its arguments."""
    return without_secrets(shlex.join(["t3d", *sys.argv[1:]]))


def holds_credentials(text: str) -> bool:
    """Whether a text is a URL with a user name, a password or a key in it; prose around one is no source."""
    return bool(_URL.fullmatch(text) and (_IN_AUTHORITY.search(text) or _IN_QUERY.search(text)))


def _of_environment(variables: Mapping[str, str]) -> Iterator[str]:
    for name, value in variables.items():
        if _SECRET_VARIABLE.search(name):
            yield from (part for part in (value.strip(), *value.split()) if len(part) >= SHORTEST)


def _of_arguments(arguments: Sequence[str]) -> Iterator[str]:
    for place, argument in enumerate(arguments):
        if argument.startswith(f"{KEY_OPTION}="):
            yield argument.partition("=")[2]
        elif argument == KEY_OPTION and place + 1 < len(arguments):
            yield arguments[place + 1]


class Formatter(logging.Formatter):
    """Log lines and their tracebacks, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """As its base does."""
        return without_secrets(super().format(record))


def print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """`sys.excepthook`, without secrets."""
    sys.stderr.write(without_secrets("".join(traceback.format_exception(kind, error, trace))))
