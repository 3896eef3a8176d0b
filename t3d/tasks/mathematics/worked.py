"""What tasks with worked solutions share."""

from __future__ import annotations

from t3d.tasks.mathematics.extract import extract_answer

INSTRUCTION = r"Please reason step by step, and put your final answer within \boxed{}."


def end_in_box(worked: str, answer: str) -> str:
    """A worked solution as a response to `INSTRUCTION`: if it boxes nothing, a last line does."""
    return worked if extract_answer(worked) else f"{worked}\nThe answer is \\boxed{{{answer}}}."
