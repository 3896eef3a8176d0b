"""Coming from the public T3D code: its rollouts become trajectories, its training config a recipe of ours.

What is said here of the public code was read in Tyrion58/T3D (`sample/sdar_sample.py`, `sample/jetengine_ext/engine/`,
`data/rename_key.py`, `train/self_ddo_sdar_full.py`, `train/prepare.py`, `configs/`); docs/differences.md has the rest.
"""
