"""ReDi: the NELBO on the teacher's own responses, again and again with each student as the next teacher.

Source: ReDi (public code `Ugness/ReDi_discrete`, `text/algo.py`) trains a diffusion model on pairs that a model
sampled, noise x_T and its response x_0, and shows the paired x_T in place of hidden tokens. Where decoding starts from
[MASK] everywhere, as here, x_T is the same for all, and what is left is the NELBO on x_0 (our inference; T3D's settings
for it were not found). Repeating it is what a recipe's `rounds` do.
"""

from __future__ import annotations

from typing import ClassVar

from t3d.objectives.sft import SFT


class ReDi(SFT):
    """`sum_i CE_i / (t_i L)` an example, as `SFT`, on responses that a model rolled out."""

    needs_trajectories: ClassVar[bool] = True
