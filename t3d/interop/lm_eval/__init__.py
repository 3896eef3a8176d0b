"""lm-evaluation-harness: its generation tasks on a block-diffusion model, `--model t3d`.

Importing this package is enough for the harness to know the name; the model's own module is loaded when it is used.
"""

from t3d.errors import RequestError

try:
    from lm_eval.api.registry import model_registry
except ModuleNotFoundError as error:
    if error.name != "lm_eval":
        raise
    raise RequestError("lm-evaluation-harness is not installed: pip install 't3d[eval]'") from error

model_registry.register("t3d", target="t3d.interop.lm_eval.model:T3DLM")
