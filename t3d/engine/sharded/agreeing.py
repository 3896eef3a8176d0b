"""What the processes that hold a model must have alike, bit for bit, to take the same decisions at every step."""

from __future__ import annotations

import torch

from t3d.engine.sampling import Candidates
from t3d.models.sharding import Sharding


def agreed_candidates(candidates: Candidates, sharding: Sharding | None) -> Candidates:
    """Those of the first of the processes that hold the model, in all of them; as they are where one holds it alone.

    Sums over processes come out alike everywhere with NCCL and gloo as they are today, but neither promises it, and
    what each process computes for itself (norms, drawing) is alike only on devices of one kind. From here on a step
    depends on these candidates and on whole numbers alone, so that 12 bytes a position make all decisions the same.
    """
    if sharding is None:
        return candidates
    floats = (candidates.confidence, candidates.entropy)
    packed = torch.stack([candidates.token_ids.to(torch.int32), *(each.view(torch.int32) for each in floats)])
    sharding.take_first_(packed)
    token_ids, confidence, entropy = packed.unbind()
    return Candidates(token_ids.long(), confidence.view(torch.float32), entropy.view(torch.float32))


def agreed_limit(number: int, sharding: Sharding | None) -> int:
    """The least of what the processes that hold the model found room for: free memory differs."""
    return number if sharding is None else sharding.least(number)
