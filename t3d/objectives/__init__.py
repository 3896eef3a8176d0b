"""Objectives: pure functions of per-token scores. A new one is a file here and a line in `OBJECTIVES`."""

from t3d.errors import RequestError
from t3d.objectives.base import Objective, Scores
from t3d.objectives.d3llm import D3LLM
from t3d.objectives.ddo import DDO
from t3d.objectives.dparallel import DParallel
from t3d.objectives.redi import ReDi
from t3d.objectives.sft import SFT
from t3d.objectives.t3d import T3D
from t3d.objectives.tad import TAD
from t3d.objectives.trajectory_ce import TrajectoryCE

OBJECTIVES: dict[str, type[Objective]] = {
    "t3d": T3D,
    "ddo": DDO,
    "trajectory_ce": TrajectoryCE,
    "sft": SFT,
    "redi": ReDi,
    "dparallel": DParallel,
    "d3llm": D3LLM,
    "tad": TAD,
}
"""Name in a recipe -> the objective; its fields are its options."""


def build_objective(name: str, **options: object) -> Objective:
    """An objective from its name and options.

    Raises:
        RequestError: unknown name or option, or a value out of range.
    """
    if name not in OBJECTIVES:
        raise RequestError(f"objective {name!r} is unknown: use one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name].from_options(name, options)


__all__ = [
    "D3LLM",
    "DDO",
    "OBJECTIVES",
    "SFT",
    "T3D",
    "TAD",
    "DParallel",
    "Objective",
    "ReDi",
    "Scores",
    "TrajectoryCE",
    "build_objective",
]
