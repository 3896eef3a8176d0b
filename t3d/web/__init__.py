"""Pages for a browser, each one self-contained file that loads nothing from anywhere.

A page `name` is `name.html` (what its body holds), `base.css` and `name.css`, and as scripts `colors.js`, `blocks.js`,
the page's parts `name.*.js` in order of their names, and `name.js`, to which `T3D.data()` gives what `page` was called
with.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any


@dataclass(frozen=True, slots=True)
class Page:
    """What a browser must know of a page.

    Attributes:
        title: of the window.
        may_connect: its scripts may talk to the server that the page came from; to no other, ever.
    """

    title: str
    may_connect: bool = False


PAGES = {
    "playground": Page("T3D playground", may_connect=True),
    "viewer": Page("T3D trajectories"),
}
"""The pages there are."""


def page(name: str, **data: Any) -> str:
    """The page `name` as one HTML document with its styles, scripts and data inside.

    Args:
        name: one of `PAGES`.
        data: what `T3D.data()` shall give; must be JSON, so no NaN.

    Returns:
        the document, to be stored or sent as UTF-8. Its Content-Security-Policy lets run exactly the scripts that it
        holds, and load nothing; text in `data` cannot become markup.
    """
    about = PAGES[name]
    style = "\n".join(map(_read, ("base.css", f"{name}.css")))
    scripts = [_read(file) for file in ("colors.js", "blocks.js", *_parts(name), f"{name}.js")]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_policy(style, scripts, about.may_connect)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{about.title}</title>
<style>{style}</style>
</head>
<body>
{_read(f"{name}.html")}
<script type="application/json" id="data">{_harmless_json(data)}</script>
{"".join(f"<script>{script}</script>" for script in scripts)}
</body>
</html>
"""


def _policy(style: str, scripts: list[str], may_connect: bool) -> str:
    """Nothing but these inline texts; data: is for the empty icon, without which browsers ask the server for one."""
    return "; ".join(
        [
            "default-src 'none'",
            f"style-src {_source_hash(style)}",
            f"script-src {' '.join(map(_source_hash, scripts))}",
            "img-src data:",
            "connect-src 'self'" if may_connect else "connect-src 'none'",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _source_hash(text: str) -> str:
    """How a Content-Security-Policy names an inline text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _harmless_json(data: dict[str, Any]) -> str:
    """JSON in which no character can end the script element around it."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _parts(name: str) -> list[str]:
    """The file names of a page's further scripts."""
    names = (entry.name for entry in files(__name__).iterdir())
    return sorted(
        file for file in names if file.startswith(f"{name}.") and file.endswith(".js") and file.count(".") == 2
    )


def _read(file: str) -> str:
    return (files(__name__) / file).read_text(encoding="utf-8")
