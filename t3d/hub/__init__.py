"""Models for others: the files of a folder that go to the Hugging Face hub, and the card that comes with them.

`files` knows what of a folder goes up and refuses one that is not whole, `origin` what its run says of its training,
`card` writes all that down for readers, `push` uploads.
"""

from t3d.hub.card import Subject, model_card
from t3d.hub.files import CARD_FILE, ModelFiles, read_model_files
from t3d.hub.origin import Origin, read_origin
from t3d.hub.push import describe, own_results, require_card_of, require_repo, upload

__all__ = [
    "CARD_FILE",
    "ModelFiles",
    "Origin",
    "Subject",
    "describe",
    "model_card",
    "own_results",
    "read_model_files",
    "read_origin",
    "require_card_of",
    "require_repo",
    "upload",
]
