"""Where the pretrained weights of a run are to be had: a commit on the Hub with the very same, or a folder here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hf_transfer.errors import UserError
from hf_transfer.hub import hub_errors

if TYPE_CHECKING:
    from hf_transfer.results import Run

COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class Base:
    """Where the pretrained weights can be had.

    Attributes:
        name: Hub id, or the bare folder name of a local model.
        revision: 40-hex commit on the Hub; None when it isn't to be had there.
        license: as its card on the Hub says.
        folder: a folder here that holds the same weights, or None.
        reason: why there is no revision.
    """

    name: str
    revision: str | None = None
    license: str | None = None
    folder: str | None = None
    reason: str = ""


def find_base(run: Run, *, offline: bool = False) -> Base:
    """Return where the base model of `run` is to be had: a commit on the Hub with the very weights that were trained.

    Args:
        run: whose model, revision and weights' SHA-256 are looked for.
        offline: a Hub that can't be reached is no error but the reason why there is no revision.

    Raises:
        UserError: the Hub can't be asked.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    from hf_transfer.models import DEFAULT_ID, default_model

    local = default_model() if run.model == DEFAULT_ID and run.weights_sha256 else run.model
    folder = local if Path(local).expanduser().is_dir() else None
    if folder == run.model or run.model.startswith(("/", ".", "~")) or run.model.count("/") > 1:
        return Base(Path(run.model).name, folder=folder, reason="it is a folder of this machine")
    if not run.weights_sha256 and not COMMIT.fullmatch(run.model_revision):
        return Base(run.model, reason="its commit was not known when it was trained")
    try:
        with hub_errors(f"base model {run.model}", RepositoryNotFoundError, RevisionNotFoundError):
            info = HfApi().model_info(run.model, revision=run.model_revision, files_metadata=True)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return Base(run.model, folder=folder, reason=f"the Hub has no {run.model} at {run.model_revision}")
    except UserError as error:
        if not offline:
            raise
        return Base(run.model, folder=folder, reason=str(error))
    license = getattr(info.card_data, "license", None)
    there = {file.rfilename: file.lfs.sha256 for file in info.siblings or [] if file.lfs}
    if any(there.get(name) != sha for name, sha in run.weights_sha256.items()):
        return Base(run.model, license=license, folder=folder, reason="the Hub holds other weights of that name")
    return Base(run.model, revision=info.sha, license=license, folder=folder)


def fetch_base(base: Base) -> str:
    """Return a folder with the base model's weights, from the Hub's cache or the Hub itself if it isn't here.

    Raises:
        UserError: the Hub can't be asked.
    """
    from huggingface_hub import snapshot_download

    if base.folder:
        return base.folder
    with hub_errors(f"base model {base.name}"):
        return snapshot_download(
            base.name, revision=base.revision, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"]
        )
