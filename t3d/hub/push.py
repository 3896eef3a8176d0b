"""Uploading a model with its card to the hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError

from t3d.credentials import without_secrets
from t3d.errors import RequestError, WorkError, one_line
from t3d.evaluation import EvalResult
from t3d.hub.card import weights_named
from t3d.hub.files import CARD_FILE, ModelFiles
from t3d.models import load_model, model_fingerprint
from t3d.models.servers import CONFIG_CODE_FILE, is_served

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, ModelInfo

_REPO = re.compile(r"[A-Za-z0-9][\w-]*/[A-Za-z0-9][\w.-]{0,95}")
_WEIGHTS = re.compile(r"model[^/]*\.safetensors(\.index\.json)?")
"""What is read as a model's weights."""
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
    """Those results that were measured on the weights in this folder, wherever these lay then.

    A fingerprint is that of the weights as they were computed with, so that the folder's are read in the same dtype.

    Args:
        results: file -> what it holds.
        folder: a model's.

    Raises:
        RequestError: one was measured on this folder when it held other weights, or none on these.
    """
    now = {dtype: _fingerprint(folder, dtype) for dtype in {each.dtype for each in results.values()}}
    own = [each for each in results.values() if each.model_fingerprint == now[each.dtype]]
    for file, each in results.items():
        if each not in own and Path(each.model).resolve() == folder.resolve():
            raise RequestError(
                f"--results {file}: {folder} held weights {each.model_fingerprint} then, and {now[each.dtype]} now; "
                "evaluate it again"
            )
    if results and not own:
        names = ", ".join(sorted({each.name for each in results.values()}))
        raise RequestError(f"--results: of {names}, none measured on the weights in {folder}; evaluate it as it is")
    return own


def require_card_of(folder: Path, card: str) -> None:
    """Refuse a card that was written for other weights than the folder's, as far as it says.

    Raises:
        RequestError: its results were measured on others.
    """
    for dtype, then in sorted(weights_named(card)):
        if (now := _fingerprint(folder, dtype)) != then:
            raise RequestError(
                f"{folder / CARD_FILE}: its results are of weights {then}, and the folder's are {now}; evaluate these, "
                "and write it anew (--new-card --results)"
            )


def _fingerprint(folder: Path, dtype: str) -> str:
    """Of a model's weights, in the dtype that they are computed with."""
    return model_fingerprint(load_model(folder, dtype, "cpu"))


def upload(
    files: ModelFiles,
    card: bytes,
    repo: str,
    message: str,
    *,
    private: bool,
    revision: str | None,
    replaces_card: bool,
    api: Any = None,
) -> str:
    """Put a model and its card into one commit.

    Args:
        files: of the model.
        card: content of README.md.
        repo: owner/name; it is made if it is not there.
        message: of the commit.
        private: whether a repository that is made is seen by its owner only; one that is there must be so already.
        revision: branch to commit to, made if it is not there; None is the main one.
        replaces_card: whether the card may take the place of one that is there.
        api: in place of the hub's, for tests.

    Returns:
        where it is to be seen.

    Raises:
        RequestError: no token, or one that may not do this; the repository holds what would be lost, or would not go
            with this model.
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
        clash = _clash(hub.model_info(repo, revision=revision), files, private, replaces_card)
        if clash is None:
            done: CommitInfo = hub.create_commit(repo, operations, commit_message=message, revision=revision)
            return str(done.commit_url)
    except HfHubHTTPError as error:
        raise _refusal(repo, error) from error
    except Exception as error:  # no network, a proxy, a broken connection: each library below has types of its own
        raise WorkError(f"push to {repo}: {_one_line(error)}; the hub confirmed no commit; try again") from error
    raise RequestError(f"push to {repo}: {clash}")


def _clash(there: ModelInfo, files: ModelFiles, private: bool, replaces_card: bool) -> str | None:
    """Why a model is not to be put into a repository as it is; None if it may."""
    names = [each.rfilename for each in there.siblings or ()]
    if private and not there.private:
        return "it is public already; make it private on the hub first, or leave out --private"
    if CARD_FILE in names and not replaces_card:
        fetch = f"hf download {there.id} {CARD_FILE} --local-dir {files.folder}"
        return f"it has a card, which the folder has not; {fetch} keeps that one, --new-card replaces it"
    others = [name for name in names if _WEIGHTS.fullmatch(name) and name not in files.upload]
    if others:
        return f"it holds other weights too ({others[0]}), which may be read in place of these; delete them there"
    return None


def _refusal(repo: str, error: HfHubHTTPError) -> Exception:
    status = getattr(error.response, "status_code", None)
    if status in _REFUSED:
        return RequestError(f"push to {repo}: the hub refuses this token ({status}); use one that may write there")
    return WorkError(f"push to {repo}: {_one_line(error)}; the hub confirmed no commit")


def _one_line(error: Exception) -> str:
    return one_line(without_secrets(str(error))) or type(error).__name__  # half a secret would not be known as one


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
