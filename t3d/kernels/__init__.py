"""Triton kernels of decoding, each beside plain torch that means the same."""
