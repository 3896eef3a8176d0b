"""The journal of an evaluation: what is finished, on disk at once, so that a run that was killed can go on.

    {"header": {"identity": {...}, "started": ..., "command": ..., "version": 2}}
    {"setting": 0, "place": 3, "response": {...}}
    {"setting": 0, "place": 3, "verdict": {...}}

Each line holds its checksum, too. Lines are only ever added. A kill tears the last one at most; the next part of the
run cuts it off. One run at a time holds the file.
"""

from __future__ import annotations

import fcntl
import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import TypeAdapter

from t3d.checksums import sealed, unsealed
from t3d.errors import RequestError, WorkError
from t3d.types import FinishReason, Verdict

JOURNAL_FILE = "journal.jsonl"
JOURNAL_VERSION = 2
"""Of what lines hold; the first had no number."""

Key = tuple[int, int]
"""A response's setting and its item, by their places among those of the evaluation."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a run is.

    Attributes:
        identity: name -> value of all that a resumed run must share with it; JSON.
        started: UTC time of its first part, ISO 8601.
        command: that started it.
        version: of the journal's lines.
    """

    identity: dict[str, Any]
    started: str
    command: str
    version: int = JOURNAL_VERSION


@dataclass(frozen=True, slots=True)
class Response:
    """A decoded response, as far as figures and graders need it.

    Attributes:
        part: 0-based number of the part of the run that decoded it.
        elapsed: wall seconds from the start of the part's decoding at this setting until it was finished.
        text: of the response.
        num_tokens, num_forwards, seconds, finish_reason, error: as in `Generation`.
        steps: denoising steps up to the last that revealed one of its tokens.
        surprisal: nats, as in `t3d.evaluation.diversity`; None of a response that ended by an error.
    """

    part: int
    elapsed: float
    text: str
    num_tokens: int
    num_forwards: int
    steps: int
    seconds: float
    finish_reason: FinishReason
    error: str | None
    surprisal: float | None


_KEY = TypeAdapter(Key)
_HEADER = TypeAdapter(Header)
_RESPONSE = TypeAdapter(Response)
_VERDICT = TypeAdapter(Verdict)
"""What makes them of the fields that JSON holds, or raises `ValueError`."""


class Journal:
    """Responses and verdicts, in memory and in a file.

    To be closed. `WorkError` from any method: the disk refuses.

    Args:
        file: it is written to; None keeps all in memory.
        stream: that file, open, which the journal closes.
        header: of this run.
        lines: that the file holds already, parsed.

    Attributes:
        header: of the run's first part.
        part: 0-based number of this part of the run.
        responses: those that are decoded.
        verdicts: on those of them that are graded.
    """

    def __init__(self, file: Path | None, stream: BinaryIO | None, header: Header, lines: list[dict[str, Any]]) -> None:
        self.header = _HEADER.validate_python(lines[0]["header"]) if lines else header
        entries = [(_KEY.validate_python((line["setting"], line["place"])), line) for line in lines[1:]]
        responses = ((key, line["response"]) for key, line in entries if "response" in line)
        self.responses = {key: _RESPONSE.validate_python(response) for key, response in responses}
        self.verdicts = {key: _VERDICT.validate_python(line["verdict"]) for key, line in entries if "verdict" in line}
        self.part = 1 + max((response.part for response in self.responses.values()), default=-1)
        self._file, self._stream = file, stream
        if not lines:
            self._write({"header": asdict(header)})

    def add_response(self, key: Key, response: Response) -> None:
        """A response is decoded."""
        self.responses[key] = response
        self._write({"setting": key[0], "place": key[1], "response": asdict(response)})

    def add_verdict(self, key: Key, verdict: Verdict) -> None:
        """A response is graded."""
        self.verdicts[key] = verdict
        self._write({"setting": key[0], "place": key[1], "verdict": asdict(verdict)})

    def decoding_seconds(self, setting: int) -> float:
        """Wall seconds of decoding at a setting: in each part until its last response."""
        elapsed: dict[int, float] = defaultdict(float)
        for (own, _), response in self.responses.items():
            if own == setting:
                elapsed[response.part] = max(elapsed[response.part], response.elapsed)
        return sum(elapsed.values())

    def remove(self) -> None:
        """The run is over and its results are written."""
        if self._file is not None:
            self._file.unlink()
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()

    def _write(self, line: dict[str, Any]) -> None:
        if self._stream is None:
            return
        try:
            rest = json.dumps(sealed(line)).encode() + b"\n"
            while rest:
                rest = rest[self._stream.write(rest) :]
        except OSError as error:
            raise WorkError(f"cannot write {self._file}: {error.strerror or error}") from error


def open_journal(folder: Path | None, header: Header, resume: bool) -> Journal:
    """The journal of a run, new or gone on with.

    Args:
        folder: None is a journal in memory.
        header: of this run, should it be the first part.
        resume: go on with the journal that is there, if there is one.

    Raises:
        RequestError: it is of another run, or damaged, or another process is writing it.
        WorkError: the disk refuses.
    """
    if folder is None:
        return Journal(None, None, header, [])
    file = folder / JOURNAL_FILE
    stream = _open_alone(file)
    try:
        return Journal(file, stream, header, _lines_of(file, stream, header) if resume else [])
    except RequestError:
        stream.close()
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        stream.close()
        raise RequestError(f"{file}: not a journal of t3d eval; choose another folder") from error
    except BaseException:
        stream.close()
        raise


def _open_alone(file: Path) -> BinaryIO:
    """The file, to read and to add to, for no other process to open so."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        stream = file.open("ab+", buffering=0)  # a kill loses nothing that was written
    except OSError as error:
        raise WorkError(f"cannot write {file}: {error.strerror or error}") from error
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        stream.close()
        raise RequestError(f"{file.parent}: another t3d eval is at work there; wait for its end") from error
    except OSError:  # a file system without locks
        pass
    return stream


def _lines_of(file: Path, stream: BinaryIO, header: Header) -> list[dict[str, Any]]:
    """What the journal holds, parsed, of a run with this header's identity; a torn last line is cut off."""
    try:
        stream.seek(0)
        content = stream.read()
        whole = content[: content.rfind(b"\n") + 1]
        lines = _parse(whole, file)
        if lines:  # else killed before the header was there
            _require_this_version(file, lines[0]["header"])
            require_same(file.parent, _HEADER.validate_python(lines[0]["header"]).identity, header.identity)
        stream.truncate(len(whole))
    except OSError as error:
        raise WorkError(f"cannot read {file}: {error.strerror or error}") from error
    return lines


def _require_this_version(file: Path, header: dict[str, Any]) -> None:
    if "identity" in header and header.get("version") != JOURNAL_VERSION:
        raise RequestError(
            f"{file}: begun by another version of t3d, which kept other figures; finish it with that one, or choose "
            "another folder"
        )


def require_same(folder: Path, begun: dict[str, Any], asked: dict[str, Any]) -> None:
    """Refuse to go on with an evaluation of another identity.

    Raises:
        RequestError: it says what differs.
    """
    asked = json.loads(json.dumps(asked))
    differences = [
        f"{name} {begun.get(name)!r}, not {value!r}" for name, value in asked.items() if begun.get(name) != value
    ]
    if differences:
        raise RequestError(
            f"{folder}: holds an evaluation with {', '.join(differences)}; "
            "resume it with the options that it was begun with, or choose another folder"
        )


def _parse(content: bytes, file: Path) -> list[dict[str, Any]]:
    lines = []
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            lines.append(unsealed(line))
        except ValueError as error:
            raise RequestError(f"{file}, line {number}: damaged; choose another folder") from error
    return lines
