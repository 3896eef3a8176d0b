"""Ways of writing an answer that math-verify misreads, put into ways that it reads right.

math-verify 0.9 takes "3 1/2" for 2, "1\\,234" for 235 and "18 dollars" for a product of letters, and cannot read "18.",
"30°" or "½". Each rule here changes how an answer is written and never what it says; both sides of a comparison go
through all of them. Whatever else math-verify is strict or lenient about is left to it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

_CHARACTERS = str.maketrans(
    {
        "–": "-",
        "−": "-",
        "°": r"^\circ ",
        "∞": r"\infty ",
        "·": r"\cdot ",
        "⋅": r"\cdot ",
        "\u00a0": " ",
        "\u2009": " ",
        "\u202f": " ",
        "\u200b": None,
        **dict.fromkeys("€£¥₹"),
    }
)
_NUMBER_WORDS = (
    "alpha and base beta billions? by choose cos cot csc cubed degrees? delta divided dozens? eighths? exp factorial "
    "fifths? fourths? from gamma gcd hal(?:f|ves) hundreds? hundredths? inf infinity lambda lcm ln log max millions? "
    "min minus mod ninths? omega or out over pct percent(?:age)? phi pi plus point quarters? scores? sec sevenths? "
    "sigma sin sixths? sqrt squared tan tenths? theta thirds? thousands? thousandths? times\\s to trillions?"
).replace(" ", "|")
"""Words that change the number before them, or join it to another, and so are no unit of it."""
_WORD = rf"(?!(?:{_NUMBER_WORDS})\b)[A-Za-z]+"
_ABBREVIATION = r"(?:cm|mm|km|ft|in|yd)(?:/[a-z]+|(?=\^))"
_UNIT = rf"{_ABBREVIATION}|(?=[A-Za-z]{{4}})(?=[A-Za-z]*[aeiou]){_WORD}(?:/[A-Za-z]+|(?:\s+{_WORD})*)"
"""Begins with a word of four letters or more, which is hardly a product of variables."""
_QUANTITY = r"[-+]?\s*(?:\\?\$\s*)?(?:\d[\d,]*(?:\.\d+)?(?:/\d+)?|\d*\s*\\[dt]?frac\{\d+\}\{\d+\})"

_RULES: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    # ½ and 3½
    (re.compile(r"[¼-¾⅐-⅞]"), lambda found: r"\frac{{{}}}{{{}}}".format(*_plain(found).split("⁄"))),
    # x²
    (re.compile(r"[⁻⁰¹²³⁴-⁹]+"), lambda found: f"^{{{_plain(found)}}}"),
    (re.compile(r"√\s*(\d+|[a-z])"), r"\\sqrt{\1}"),
    (re.compile(r"\\(?:pounds|euro)(?![A-Za-z])\s*"), ""),
    # "18." at the end; \right. is a bracket
    (re.compile(r"(?<!\\right)[.,;:\s]+$"), ""),
    # 3 1/2 is a mixed number
    (re.compile(r"(?<![\d./])(\d+)\s+(\d+)/(\d+)(?![\d/.])"), r"\1\\frac{\2}{\3}"),
    # 1 234 567, 1\,234\,567 and 1~234~567: digits in groups of three
    (
        re.compile(r"(?<![\d.,/])\d{1,3}(?:(?:\\[,;: ]|[ ~])\d{3})+(?!\d)"),
        lambda found: re.sub(r"\D", "", found[0]),
    ),
    # 1.5e3 is not 1.5 times Euler's number
    (re.compile(r"^([-+]?\d+(?:\.\d+)?)e([-+]?\d+)$"), r"\1\\times 10^{\2}"),
    # \text{18 dollars} is typesetting only
    (re.compile(r"^\\text\{\s*((?:\\?\$\s*)?[-+]?\d[^{}]*)\}$"), r"\1"),
    # 18 dollars per day: math-verify drops a unit that is set as text
    (re.compile(rf"^({_QUANTITY})\s+({_UNIT})(\^\{{?[23]\}}?)?$"), r"\1\\text{ \2}\3"),
)


def normalize(answer: str) -> str:
    """The same answer in a notation that math-verify reads."""
    text = answer.translate(_CHARACTERS).strip("` \t\r\n")
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


def _plain(found: re.Match[str]) -> str:
    """Superscripts and fractions as plain digits: ² as 2, ½ as 1⁄2 (with a fraction slash), ⁻ as -."""
    return unicodedata.normalize("NFKC", found[0]).replace("−", "-")
