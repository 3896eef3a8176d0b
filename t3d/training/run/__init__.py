"""What a run keeps, notices and shows on its way: folder, checkpoints, metrics, evaluations, signals."""
