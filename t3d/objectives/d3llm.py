"""d3LLM: dParallel's loss on states of the teacher, of which more and more is hidden.

Source: d3LLM (public code `d3llm_llada_train.py`). The share hidden is drawn evenly from between a floor and `rho_max`;
the floor rises over the run (`t3d.corruption.hiding.hide_more_and_more`). The cross-entropy of the complementary mask,
which it adds, is left out: such a mask hides what the teacher revealed first and shows what came last, a state that no
decoding passes through. So are its growing blocks (16 to 32 tokens: a block here is the model's own) and its labels
from another data set (ours are the trajectory's own tokens).
"""

from __future__ import annotations

from typing import ClassVar

from t3d.objectives.dparallel import DParallel


class D3LLM(DParallel):
    """`mean_i CE_i + entropy_weight * mean_{i right} H_i` an example, as `DParallel`, without the complement."""

    hider: ClassVar[str] = "more_and_more"
    with_complement: ClassVar[bool] = False
