"""Silences what libraries report whenever they are imported: which of their own parts this machine cannot use.

transformers and peft import torchao and bitsandbytes where they are installed, wanted or not; this comes before them.
"""

from __future__ import annotations

import logging

for _name in ("torchao", "bitsandbytes", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
