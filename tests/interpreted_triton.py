"""Triton kernels on the CPU: its interpreter switched on, and mended for NumPy >= 2.4.

The interpreter holds scalars as arrays of shape [1] and turns a loop's bounds into numbers by int(array), which NumPy
2.4 made an error ("only 0-dimensional arrays can be converted to Python scalars").
"""

import os

os.environ["TRITON_INTERPRET"] = "1"

from triton.runtime import interpreter

_patch_tensor = interpreter._patch_lang_tensor


def _patch_tensor_for_numpy(tensor, scope):
    _patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())


interpreter._patch_lang_tensor = _patch_tensor_for_numpy
