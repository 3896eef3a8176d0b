"""Grading of answers in mathematics, shared by the tasks that ask for one."""

from t3d.tasks.mathematics.extract import extract_answer
from t3d.tasks.mathematics.grader import MathGrader
from t3d.tasks.mathematics.worked import INSTRUCTION

__all__ = ["INSTRUCTION", "MathGrader", "extract_answer"]
