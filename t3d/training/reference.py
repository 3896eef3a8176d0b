"""The frozen model inside DDO: a full copy of the student, replaced every so many optimizer steps."""

from __future__ import annotations

import copy

import torch

from t3d.models import SDARForCausalLM
from t3d.training.scorer import Scorer


class Reference:
    """Starts as the teacher; `after_step` replaces it by the student every `refresh_every` steps (0: never)."""

    def __init__(self, student: SDARForCausalLM, refresh_every: int) -> None:
        self.scorer = Scorer(copy.deepcopy(student)).eval().requires_grad_(False)
        self._refresh_every = refresh_every

    @property
    def model(self) -> SDARForCausalLM:
        """The frozen model."""
        return self.scorer.model

    def after_step(self, step: int, student: SDARForCausalLM) -> None:
        """Call after optimizer step `step` (1-based)."""
        if self._refresh_every and step % self._refresh_every == 0:
            self.load(student)

    @torch.no_grad()
    def load(self, source: SDARForCausalLM) -> None:
        """Take over another model's weights."""
        for mine, theirs in zip(self.model.parameters(), source.parameters(), strict=True):
            mine.copy_(theirs)
