"""How a program is asked for."""

INSTRUCTION = (
    "Place your code within a single Python code block ```python ```. Do not include more than one code block."
)
FENCE = "```python\n"
"""How a response begins that is code from its first letter."""
CLOSING_FENCE = "\n```"
