"""Uploading a model with its card to the hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError

from t3d.credentials import without_secrets
from t3d.errors import RequestError, WorkError
from t3d.evaluation import EvalResult
from t3d.hub.files import CARD_FILE, ModelFiles
from t3d.models.servers import CONFIG_CODE_FILE, is_served

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

_REPO = re.compile(r"[A-Za-z0-9][\w-]*/[A-Za-z0-9][\w.-]{0,95}")
_REFUSED = (401, 403)
"""HTTP states that say that this token may not do this."""


def require_repo(repo: str) -> None:
    """Refuse a name that no repository can have.

    Raises:
        RequestError: it is not owner/name.
    """
    if not _REPO.fullmatch(repo) or ".." in repo or "--" in repo:
        raise RequestError(f"repository {repo!r}: write OWNER/NAME, of letters, digits, - _ and .")


def own_results(results: Mapping[str, EvalResult], folder: Path) -> list[EvalResult]:
    """Those results that were measured on the model in this folder.

    Where none says so and all are of the same weights, it is all of them: the model was moved, or comes from the hub.

    Raises:
        RequestError: of several models, none of which is this one.
    """
    own = [each for each in results.values() if Path(each.model).resolve() == folder.resolve()]
    models = {each.model_fingerprint: each.name for each in results.values()}
    if own or len(models) <= 1:
        return own or list(results.values())
    raise RequestError(
        f"--results: of {', '.join(sorted(models.values()))}, none measured on {folder}; evaluate it, or name results "
        "of this model alone"
    )


def upload(
    files: ModelFiles, card: bytes, repo: str, message: str, *, private: bool, revision: str | None, api: Any = None
) -> str:
    """Put a model and its card into one commit.

    Args:
        files: of the model.
        card: content of README.md.
        repo: owner/name; it is made if it is not there.
        message: of the commit.
        private: whether a repository that is made is seen by its owner only.
        revision: branch to commit to, made if it is not there; None is the main one.
        api: in place of the hub's, for tests.

    Returns:
        where it is to be seen.

    Raises:
        RequestError: no token, or one that may not do this.
        WorkError: the hub cannot be reached, or refuses.
    """
    if api is None and get_token() is None:
        raise RequestError("push: no token of the hub here; run hf auth login, or set HF_TOKEN")
    hub = api or HfApi()
    operations = [CommitOperationAdd(name, str(files.folder / name)) for name in files.upload]
    operations.append(CommitOperationAdd(CARD_FILE, card))
    try:
        hub.create_repo(repo, private=private, exist_ok=True)
        if revision is not None:
            hub.create_branch(repo, branch=revision, exist_ok=True)
        done: CommitInfo = hub.create_commit(repo, operations, commit_message=message, revision=revision)
    except HfHubHTTPError as error:
        raise _refusal(repo, error) from error
    except Exception as error:  # no network, a proxy, a broken connection: each library below has types of its own
        raise WorkError(f"push to {repo}: {_one_line(error)}; the hub confirmed no commit; try again") from error
    return str(done.commit_url)


def _refusal(repo: str, error: HfHubHTTPError) -> Exception:
    status = getattr(error.response, "status_code", None)
    if status in _REFUSED:
        return RequestError(f"push to {repo}: the hub refuses this token ({status}); use one that may write there")
    return WorkError(f"push to {repo}: {_one_line(error)}; the hub confirmed no commit")


def _one_line(error: Exception) -> str:
    return without_secrets(" ".join(str(error).split())[:200] or type(error).__name__)


def describe(files: ModelFiles, card_size: int, keeps_card: bool) -> Iterator[str]:
    """What will be uploaded, a line a file with its size, and what will not."""
    sizes = {name: files.size(name) for name in files.upload}
    for name, size in {**sizes, CARD_FILE: card_size}.items():
        kept = " (as it is in the folder; --new-card writes it anew)" if keeps_card and name == CARD_FILE else ""
        yield f"{_human(size):>9}  {name}{kept}"
    yield f"{_human(sum(sizes.values()) + card_size):>9}  in all"
    if files.left:
        yield f"left out: {', '.join(files.left)}"
    if str(files.config.dtype).endswith("float32"):
        yield "the weights are float32, which servers round anyway: t3d export writes them in bfloat16, half the size"
    if is_served(files.config.model_type, files.config.mask_token_id) and CONFIG_CODE_FILE not in files.upload:
        yield "an earlier version saved this folder, which LMDeploy and SGLang cannot read: t3d export mends that"


def _human(size: float) -> str:
    """Bytes for people: "1.2 GB"."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
