"""Known vulnerabilities of what is locked: `make audit`. Needs the network.

Exit code 0: every package was looked up, and what is known of them is explained in audit-ignored.toml. 1: something is
not, or is explained and no longer known. 3: packages could not be looked up, which pip-audit itself would call clean.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
LOCKS = ("build.txt", "torch.txt", "dev.txt", "tools.txt")
IGNORED = FOLDER / "audit-ignored.toml"
CLEAN, VULNERABLE, NOT_DONE = 0, 1, 3
SECONDS = 300
SHOWN = 20
"""Lines of each kind."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What an audit came to.

    Attributes:
        num_audited: packages that were looked up.
        unknown: one line for each package that was not.
        vulnerable: one line for each vulnerability that nothing explains.
        explained: one line for each that something does.
        stale: ids that are explained and that no package has.
    """

    num_audited: int
    unknown: tuple[str, ...]
    vulnerable: tuple[str, ...]
    explained: tuple[str, ...]
    stale: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """As the module says."""
        if self.vulnerable:
            return VULNERABLE
        if self.unknown or not self.num_audited:
            return NOT_DONE
        return VULNERABLE if self.stale else CLEAN


def main() -> None:
    """Ask and say."""
    ignored = {each["id"]: each["reason"] for each in tomllib.loads(IGNORED.read_text())["ignored"]}
    try:
        finding = judge([answer for lock in LOCKS for answer in ask(lock)], ignored)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        print(f"audit: the vulnerability service was not reached: {error}", file=sys.stderr)
        sys.exit(NOT_DONE)
    for kind in ("vulnerable", "explained", "stale", "unknown"):
        lines = getattr(finding, kind)
        for line in lines[:SHOWN]:
            print(f"{kind}: {line}")
        if len(lines) > SHOWN:
            print(f"{kind}: and {len(lines) - SHOWN} more")
    counts = {kind: len(getattr(finding, kind)) for kind in ("vulnerable", "explained", "stale", "unknown")}
    print(f"audit: {finding.num_audited} packages looked up; " + ", ".join(f"{n} {kind}" for kind, n in counts.items()))
    sys.exit(finding.exit_code)


def ask(lock: str) -> list[dict[str, Any]]:
    """What pip-audit says of each package of a lock file.

    Raises:
        ValueError: it ended without an answer.
    """
    command = [Path(sys.executable).with_name("pip-audit"), "--disable-pip", "--require-hashes", "-r", FOLDER / lock]
    ran = subprocess.run(
        [*command, "--progress-spinner", "off", "--format", "json"], capture_output=True, text=True, timeout=SECONDS
    )
    if not ran.stdout.strip():
        raise ValueError(ran.stderr.strip().rpartition("\n")[2] or f"pip-audit ended with exit code {ran.returncode}")
    answers: list[dict[str, Any]] = json.loads(ran.stdout)["dependencies"]
    return answers


def judge(answers: list[dict[str, Any]], ignored: dict[str, str]) -> Finding:
    """What pip-audit's answers come to.

    Args:
        answers: {name, version, vulns: [{id, aliases, fix_versions}]} or {name, skip_reason} each.
        ignored: id or alias of a vulnerability -> why it does not matter here.
    """
    vulnerable, explained, met = [], [], set()
    for each in answers:
        for found in each.get("vulns", ()):
            ids = (found["id"], *found["aliases"])
            known = [name for name in ids if name in ignored]
            met.update(known)
            what = f"{each['name']} {each['version']}: {found['id']}"
            if known:
                explained.append(f"{what}: {ignored[known[0]]}")
            else:
                vulnerable.append(f"{what}, mended in {', '.join(found['fix_versions']) or 'no version yet'}")
    unknown = [f"{each['name']}: {each['skip_reason']}" for each in answers if "skip_reason" in each]
    stale = sorted(set(ignored) - met)
    lines = (unknown, dict.fromkeys(vulnerable), dict.fromkeys(explained), stale)
    return Finding(len(answers) - len(unknown), *(tuple(each) for each in lines))


if __name__ == "__main__":
    main()
