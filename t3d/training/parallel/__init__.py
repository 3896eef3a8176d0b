"""Several processes train one student: each holds it whole (DDP), or a part of every weight (FSDP2)."""
