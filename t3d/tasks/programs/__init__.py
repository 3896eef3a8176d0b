"""Programs as answers, shared by the tasks that ask for one: asked for, found in a response, graded."""

from t3d.tasks.programs.extract import extract_program
from t3d.tasks.programs.grader import ProgramGrader
from t3d.tasks.programs.instruction import INSTRUCTION

__all__ = ["INSTRUCTION", "ProgramGrader", "extract_program"]
