"""What users say a text should be labelled as: lines of JSON in a local file or in a private dataset on the Hub."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import tempfile
import threading
import uuid
from pathlib import Path

from models import Unusable

MINUTES = 5  # between two commits


class Corrections:
    """Appends corrections, one whole line each, safe for several threads and processes.

    Args:
        where: a file, or `dataset:name/of-it` for a private dataset on the Hub, which is made if it isn't there.

    Raises:
        Unusable: the file can't be written; the dataset is public, or the token is missing or may not write.
    """

    def __init__(self, where: str) -> None:
        self.lock: contextlib.AbstractContextManager = threading.Lock()
        self.where = where
        if where.startswith("dataset:"):
            self._open_dataset(where.removeprefix("dataset:"))
        else:
            self.file = Path(where)
            try:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                self.file.open("a").close()
            except OSError as error:
                raise Unusable(f"corrections: {where} can't be written ({error.strerror}); name another.") from error

    def _open_dataset(self, repo: str) -> None:
        from huggingface_hub import CommitScheduler, HfApi, get_token
        from huggingface_hub.errors import RepositoryNotFoundError

        if get_token() is None:
            raise Unusable(f"corrections: no token for the dataset {repo}; set HF_TOKEN (on a Space: a secret).")
        try:
            with contextlib.suppress(RepositoryNotFoundError):  # then it is made, as a private one
                if not HfApi().dataset_info(repo).private:
                    raise Unusable(f"corrections: the dataset {repo} is public, and users' texts would be too; "
                                   "make it private or name another.")  # fmt: skip
            # each start has a file of its own: the scheduler uploads files whole
            self.file = Path(tempfile.mkdtemp()) / f"corrections-{uuid.uuid4().hex[:12]}.jsonl"
            self.scheduler = CommitScheduler(
                repo_id=repo, repo_type="dataset", private=True, folder_path=self.file.parent, every=MINUTES
            )
        except Unusable:
            raise
        except Exception as error:  # of huggingface_hub or its HTTP client
            raise Unusable(f"corrections: the dataset {repo} can't be used ({type(error).__name__}); check its name "
                           "and that the token may write to it.") from error  # fmt: skip
        self.lock = self.scheduler.lock

    def add(self, *, text: str, label: str, predicted: str, model: str) -> None:
        """Append one correction."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        row = {"text": text, "label": label, "predicted": predicted, "model": model, "time": now}
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
        with self.lock:
            descriptor = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(descriptor, line)  # at once: other processes may append too
            finally:
                os.close(descriptor)
