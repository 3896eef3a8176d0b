"""What an engine has done, in numbers that a roofline can be made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Counters:
    """What a core has done; facts of the host, exact.

    Attributes:
        num_steps: denoising forwards of the model.
        num_rows: requests that took part, summed over the steps.
        num_commits: finished blocks that rode along.
        num_masked: masked positions that went through the LM head.
        num_context: positions that the rows' queries saw, summed over rows and steps.
        num_prefills: prefill forwards, and num_prefill_tokens in them.
        num_shared_tokens: prompt tokens that another request had prefilled.
        num_preemptions: requests swapped out.
    """

    num_steps: int = 0
    num_rows: int = 0
    num_commits: int = 0
    num_masked: int = 0
    num_context: int = 0
    num_prefills: int = 0
    num_prefill_tokens: int = 0
    num_shared_tokens: int = 0
    num_preemptions: int = 0
