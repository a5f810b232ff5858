"""Share a run: card, files, Space; verified in a fresh process before anything is pushed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_transfer.base import Base, fetch_base, find_base
from hf_transfer.card import render_card
from hf_transfer.errors import UserError
from hf_transfer.hub import (
    CARD,
    Pushed,
    check_account,
    check_card,
    check_place,
    check_repo_id,
    check_revision,
    push,
    seal,
)
from hf_transfer.privacy import check_private, public_run
from hf_transfer.results import Run, load_run, longest_text
from hf_transfer.verify import verify

if TYPE_CHECKING:
    from hf_transfer.arguments import Arguments

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
             "vocab.json", "merges.txt", "*.model", "*.jinja")  # fmt: skip
MERGED = ("config.json", "model*.safetensors", "model.safetensors.index.json", *TOKENIZER)
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
SHOWN = ("domain.safetensors", "report.png")
SENT = (*MERGED, *ADAPTER, *(f"adapter/{name}" for name in ADAPTER), *SHOWN)


def publish(
    run_folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    space: bool = False,
    adapter_only: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    dry_run: bool = False,
    license: str | None = None,
    against: list[str] | None = None,
    examples: bool = True,
    quiet: bool = False,
) -> str:
    """Publish a run as a model repository, and with `space` a Space that shows it.

    Args:
        run_folder: a finished run.
        repo_id: owner/name, of both.
        private: nobody else sees them.
        space: make the Space too.
        adapter_only: send the adapter without the merged model.
        revision: branch, made if there is none.
        create_pr: propose the commit instead.
        dry_run: push nothing; say what would be.
        license: of the model, for the card.
        against: other runs on the same test rows, for the card's table.
        examples: the Space shows four of the test texts.
        quiet: no progress bars.

    Returns:
        What was verified, and where it is now.

    Raises:
        UserError: the run doesn't pass, or the Hub refuses; then nothing new can be seen there.
    """
    run = load_run(run_folder)
    check_repo_id(repo_id)
    check_revision(revision)
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", license):
        raise UserError(f"--license is '{license}'; give the Hub's name for it, such as apache-2.0, mit or cc-by-4.0, "
                        "or 'other'.")  # fmt: skip
    _check_parts(run)
    if create_pr and (space or revision):
        raise UserError("--create_pr proposes one commit to a model's main branch; leave --space and --revision out.")
    if adapter_only and space:
        raise UserError("--space needs the merged model; leave --adapter_only out.")
    if adapter_only and not (run.folder / "adapter").is_dir():
        raise UserError(f"--adapter_only: {run.folder} was trained with '{run.method}', which has no adapter; leave it "
                        "out.")  # fmt: skip
    api = None if dry_run else check_account(repo_id, create_pr=create_pr)
    hidden = private
    if api:
        place = check_place(api, repo_id, repo_type="model", private=private, revision=revision, create_pr=create_pr)
        hidden = place.private if place else private
        if space:  # a public Space could not read a private model
            check_place(api, repo_id, repo_type="space", private=hidden)
    if api and quiet:
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
    base = find_base(run, offline=dry_run)
    if adapter_only and base.revision is None:
        raise UserError(f"--adapter_only: nobody could find the base model {base.name} ({base.reason}); leave it out, "
                        "to send the merged model.")  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="hf-transfer-") as scratch:
        model, app = Path(scratch, "model"), Path(scratch, "space")
        shown = public_run(run)
        passed = _stage(shown, model, base, adapter_only=adapter_only)
        card = render_card(
            shown,
            repo_id=repo_id,
            base=base,
            files="adapter" if adapter_only else "merged",
            has_adapter=(model / "adapter").is_dir(),
            license=license,
            revision=revision,
            others=[public_run(load_run(folder)) for folder in against or []],
        )
        (model / CARD).write_text(seal(card), encoding="utf-8")
        check_private(model, repo_id, base.name)
        if any("auto_map" in json.loads(file.read_text(encoding="utf-8")) for file in model.rglob("*config.json")):
            raise UserError(f"{run.folder} names code of its own (auto_map), which is never shared; make the run "
                            "again.")  # fmt: skip
        settings: dict[str, Any] = {"license": license, "examples": examples, "bundled": model if hidden else None}
        if space:
            _stage_space(shown, app, repo_id, base, None, **settings)
        if api:
            check_card(model, repo_id, repo_type="model")
            if space:
                check_card(app, repo_id, repo_type="space")
        adapter = model if adapter_only else model / "adapter"
        passed += verify(
            run,
            merged=None if adapter_only else model,
            adapter=adapter if (adapter / ADAPTER[0]).is_file() else None,
            base=fetch_base(base) if (adapter / ADAPTER[0]).is_file() else None,
        )
        if api is None:
            return _dry(passed, model, app if space else None, card, repo_id)
        options: dict[str, Any] = {"private": hidden, "message": f"{run.method} run of {run.created}"}
        pushed = push(
            api, model, repo_id, repo_type="model", revision=revision, create_pr=create_pr, own=SENT, **options
        )
        lines = [f"verified: {line}" for line in passed] + _said("model", pushed)
        if space:
            try:
                _stage_space(shown, app, repo_id, base, pushed.commit, **settings)
                shown_at = push(
                    api, app, repo_id, repo_type="space", revision=None, create_pr=False, own=("model/*",), **options
                )
            except UserError as error:
                raise UserError(f"the model is published ({pushed.url}), its Space is not: {error}") from error
            lines += _said("Space", shown_at)
            if examples:
                lines.append("note: the Space shows four of the test texts as examples; --no_examples leaves them out")
    return "\n".join(lines)


def _check_parts(run: Run) -> None:
    longest_text(run)
    folder = run.folder / "adapter"
    try:
        if folder.is_dir():
            json.loads((folder / ADAPTER[0]).read_text(encoding="utf-8"))
            (folder / ADAPTER[1]).stat()
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} can't be read as an adapter ({str(error)[:100]}); make the run again.") from error


def _stage(run: Run, folder: Path, base: Base, *, adapter_only: bool) -> list[str]:
    """Copy what is shared into `folder`; returns what was found good."""
    folder.mkdir()
    if adapter_only:
        _copy(run.folder / "adapter", folder, ADAPTER)  # the tokenizer is the base model's
    else:
        _copy(run.folder, folder, MERGED)
        if not list(folder.glob("model*.safetensors")):
            raise UserError(f"{run.folder} has no model.safetensors, and weights in other formats are never shared; "
                            "make the run again.")  # fmt: skip
        if (run.folder / "adapter").is_dir() and base.revision:
            (folder / "adapter").mkdir()
            _copy(run.folder / "adapter", folder / "adapter", ADAPTER)
    _copy(run.folder, folder, SHOWN)
    run.save(folder)
    for file in folder.rglob("adapter_config.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        content |= {"base_model_name_or_path": base.name, "revision": base.revision}
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if base.revision:
        return [f"base model {base.name} is on the Hub at {base.revision[:8]}"]
    left = ", its adapter is left out" if (run.folder / "adapter").is_dir() else ""
    return [f"base model {base.name} could not be confirmed on the Hub ({base.reason.rstrip('.')}): the merged model "
            f"is sent{left}"]  # fmt: skip


def _copy(source: Path, folder: Path, kinds: tuple[str, ...]) -> None:
    for kind in kinds:
        for file in sorted(source.glob(kind)):
            shutil.copyfile(file, folder / file.name)


def _stage_space(
    run: Run,
    folder: Path,
    repo_id: str,
    base: Base,
    revision: str | None,
    *,
    license: str | None,
    examples: bool,
    bundled: Path | None,
) -> None:
    """Write the Space's files; a private model is bundled, for a Space could not read it without somebody's token."""
    from hf_transfer.space import build_space

    shutil.rmtree(folder, ignore_errors=True)
    build_space(
        run, folder, repo_id=repo_id, revision=revision, bundle=bundled is not None, license=license, examples=examples
    )
    if bundled:
        shutil.copytree(bundled, folder / "model", ignore=shutil.ignore_patterns("adapter", CARD))
    (folder / CARD).write_text(seal((folder / CARD).read_text(encoding="utf-8")), encoding="utf-8")
    check_private(folder, repo_id, base.name)


def _said(what: str, pushed: Pushed) -> list[str]:
    state = f"published as commit {pushed.commit[:8]}" if pushed.changed else "unchanged, nothing to commit"
    return [f"{what}: {pushed.url} ({state})", *([f"note: {pushed.note}"] if pushed.note else [])]


def _dry(passed: list[str], model: Path, app: Path | None, card: str, repo_id: str) -> str:
    """Say what would be pushed: every file, its size, and the card."""
    lines = [f"verified: {line}" for line in passed]
    for what, folder in (("model", model), ("Space", app)):
        if folder:
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            total = sum(file.stat().st_size for file in files)
            lines += ["", f"{what} {repo_id}: {len(files)} files, {total:,} bytes"]
            lines += [f"{file.stat().st_size:>14,}  {file.relative_to(folder).as_posix()}" for file in files]
    return "\n".join([*lines, "", "README.md:", "", card, "", "dry run: nothing was pushed"])


def check_push(arguments: Arguments) -> None:
    """Check before training that its result can be pushed afterwards.

    Raises:
        UserError: no repository or token, other work is there, or flags that mean pushing unverified checkpoints.
    """
    train = arguments.train
    if train.hub_token:
        raise UserError("--hub_token would be seen by other users of this machine; set HF_TOKEN, or `hf auth login`.")
    if not train.push_to_hub:
        return
    if (
        str(getattr(train.hub_strategy, "value", train.hub_strategy)) not in ("every_save", "end")
        or train.hub_always_push
    ):
        raise UserError("--push_to_hub pushes the verified run when it is finished, never checkpoints; leave "
                        "--hub_strategy and --hub_always_push out.")  # fmt: skip
    check_repo_id(train.hub_model_id, "--hub_model_id")
    check_revision(train.hub_revision, "--hub_revision")
    if train.process_index == 0:
        api = check_account(train.hub_model_id)
        place: dict[str, Any] = {"private": bool(train.hub_private_repo), "revision": train.hub_revision}
        check_place(api, train.hub_model_id, repo_type="model", **place)


def push_run(arguments: Arguments, run: Run) -> str | None:
    """Publish the finished `run` if --push_to_hub was given, on the main process; returns what `publish` says.

    Raises:
        UserError: as `publish`; tells how to try again without training again.
    """
    train = arguments.train
    if not train.push_to_hub or train.process_index > 0:
        return None
    try:
        return publish(
            run.folder,
            train.hub_model_id,
            private=bool(train.hub_private_repo),
            revision=train.hub_revision,
            quiet=train.quiet,
        )
    except UserError as error:
        flags = ["--private"] if train.hub_private_repo else []
        flags += ["--revision", train.hub_revision] if train.hub_revision else []
        again = shlex.join(["hf-transfer", "publish", str(run.folder), train.hub_model_id, *flags])
        raise UserError(f"{error}\nthe run is finished; publish it with: {again}") from error
