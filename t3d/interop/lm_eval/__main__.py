"""`python -m t3d.interop.lm_eval ARGUMENTS`: `lm_eval ARGUMENTS` that knows `--model t3d`."""

import sys

from t3d.errors import RequestError, WorkError
from t3d.interop.lm_eval.command import run

try:
    run(sys.argv[1:])
except (RequestError, WorkError) as error:
    print(f"t3d: {error}", file=sys.stderr)
    sys.exit(2 if isinstance(error, RequestError) else 1)
