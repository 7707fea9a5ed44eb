"""Checkpoints by their hub name, `owner/name[@revision]`: the files that run, each held against its hash.

Names, sizes and hashes come from the hub (through huggingface_hub, imported only here); each file is written
beside the cache's blobs, goes on where a killed download stopped, and takes its name when its SHA-256 (files
in large-file storage) or git hash (small ones) is what the hub says. The cache is the hub's own, so that what
other programs fetched is used and what is fetched here is theirs too. With a warm cache the hub need not
answer, and a name with its whole commit is found there without asking and without importing the library.
Pickles and programs are never fetched.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from haversack import __version__
from haversack.core._files import write_atomically
from haversack.core.errors import DamagedFileError, MissingExtraError, UserError, nearest_name
from haversack.core.progress import progress
from haversack.models._hub_cache import COMMIT, Cache, HubFile, cache_root, fetch_file, need_space, offline
from haversack.models.tokenizers import TOKENIZER_SOURCES

NAME = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*)(@(?P<revision>[\w./-]+))?")
TOKEN_VARIABLE = "HF_TOKEN"
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_ALWAYS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
)
_LICENCE = re.compile(r"(LICEN[CS]E|NOTICE)(\.(txt|md))?", re.IGNORECASE)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5")


def split_name(name: str) -> tuple[str, str]:
    """(owner/name, revision) of a hub name. Raises UserError for a name of another shape."""
    found = NAME.fullmatch(name)
    repository, revision = (found["repository"], found["revision"] or "main") if found else ("", "")
    bad = not found or any(
        ".." in part or "--" in part or part.endswith((".", "-")) or len(part) > 96
        for part in repository.split("/")
    )
    if bad or ".." in revision or revision.startswith("/") or revision.endswith("/"):
        raise UserError(
            f"{name!r} is no hub name; write owner/name or owner/name@revision (letters, digits, '-', '_', "
            "'.').",
            field="model",
            given=name,
        )
    return repository, revision


def fetch(name: str) -> Path:
    """The checkpoint folder of the hub name `name`, fetched as far as it is not there yet.

    Raises UserError, saying what to do, for a name of another shape, one that the hub does not have or does
    not give to this user, a repository without safetensors, a hub that does not answer (and no cached copy),
    a full disk; DamagedFileError for a file that is not what the hub says (it is removed).
    """
    repository, revision = split_name(name)
    cache = Cache.of(repository)
    if offline():
        return _cached(name, cache, revision, "HF_HUB_OFFLINE is set")
    if COMMIT.fullmatch(revision) and (cache.snapshot(revision) / "config.json").is_file():
        return cache.snapshot(revision)  # config.json is fetched last, and a commit never changes
    # Read once, when huggingface_hub is imported: our progress line is the only one, nothing is told.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import huggingface_hub  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(f"fetching {name}", "huggingface_hub", "hub") from error
    try:
        commit, files = _ask(repository, revision)
    except Exception as error:
        if not _unreachable(error):
            raise _explain(name, error) from error
        folder = _cached(name, cache, revision, "the hub does not answer", error)
        print(f"haversack: the hub does not answer; using {name} from the cache", file=sys.stderr)
        return folder
    _refuse_without_weights(name, files)
    try:
        with progress(f"fetching {name}") as bar:
            for part in _in_order(files, lambda file: fetch_file(name, cache, commit, repository, file, bar)):
                need_space(cache, commit, part, name)
                bar.total = (bar.total or 0) + sum(file.size for file in part)
                for file in part:
                    fetch_file(name, cache, commit, repository, file, bar)
            if revision != commit:
                ref = cache.folder / "refs" / revision
                ref.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(ref, commit.encode())
    except UserError:
        raise
    except Exception as error:
        raise _explain(name, error) from error
    return cache.snapshot(commit)


def _ask(repository: str, revision: str) -> tuple[str, dict[str, HubFile]]:
    """The commit of `revision` and the repository's files by name."""
    from huggingface_hub import HfApi, constants

    api = HfApi(library_name="haversack", library_version=__version__)
    said = api.model_info(
        repository, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
    )
    files = {}
    for sibling in said.siblings or ():
        if not _stays_inside(sibling.rfilename):
            continue
        large = sibling.lfs is not None
        digest = sibling.lfs.sha256 if sibling.lfs is not None else sibling.blob_id
        if digest and re.fullmatch(r"[0-9a-f]{40}([0-9a-f]{24})?", digest) and sibling.size is not None:
            files[sibling.rfilename] = HubFile(sibling.rfilename, sibling.size, digest, large)
    commit = str(said.sha or "")
    if not COMMIT.fullmatch(commit):
        raise UserError(f"the hub names no commit for {repository}@{revision}.", field="model")
    return commit, files


def _stays_inside(name: str) -> bool:
    """Whether a file's name cannot lead out of its snapshot."""
    return "\\" not in name and all(part not in ("", ".", "..") for part in name.split("/"))


def _refuse_without_weights(name: str, files: dict[str, HubFile]) -> None:
    if "config.json" in files and (WHOLE in files or INDEX in files):
        return
    lacks = "config.json" if "config.json" not in files else "safetensors"
    pickles = sorted(file for file in files if file.endswith(_PICKLES))
    ggufs = sorted(file for file in files if file.endswith(".gguf"))
    advice = "give another name"
    if pickles:
        advice = (
            f"its weights are pickled ({pickles[0]}), which is refused since reading one can run any code; "
            "look for a revision with safetensors (NAME@refs/pr/N), or convert it on a machine you trust"
        )
    elif ggufs:
        advice = f"it has {ggufs[0]}: download that and give the file"
    elif "adapter_config.json" in files:
        advice = "it is an adapter: pack its base with --adapter"
    raise UserError(f"{name} has no {lacks}; {advice}.", field="model", given=name)


def _in_order(files: dict[str, HubFile], fetched: Any) -> Iterator[list[HubFile]]:
    """What is fetched, in two parts: the index, then what it names and the small files, config.json last.

    So a snapshot with a config.json is whole.
    """
    weights = [WHOLE]
    if WHOLE not in files:
        yield [files[INDEX]]
        path = fetched(files[INDEX])
        try:
            named = json.loads(path.read_bytes())["weight_map"].values()
            weights = list(dict.fromkeys(named))
            missing = [file for file in weights if not isinstance(file, str) or file not in files]
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise DamagedFileError(path, "it is no index of weights") from error
        if missing:
            raise DamagedFileError(path, f"it names {str(missing[0])[:80]!r}, which the repository lacks")
        if any(not file.endswith(".safetensors") for file in weights):
            raise DamagedFileError(path, "it names weights that are no safetensors")
    tokenizer = ["tokenizer.json"] if "tokenizer.json" in files else list(TOKENIZER_SOURCES)
    licences = [file for file in files if _LICENCE.fullmatch(file)]
    wanted = dict.fromkeys((*weights, *tokenizer, *_ALWAYS, *licences, "config.json"))
    yield [files[file] for file in wanted if file in files]


def _cached(name: str, cache: Cache, revision: str, why: str, error: Exception | None = None) -> Path:
    """The snapshot that was fetched before. Raises UserError when there is none."""
    commit = cache.commit(revision)
    folder = cache.snapshot(commit) if commit else None
    if folder is not None and (folder / "config.json").is_file():
        return folder
    said = f" ({_short(error)})" if error is not None else ""
    raise UserError(
        f"{name} is not in the cache ({cache.folder.parent}) and {why}{said}; connect and try again, or give "
        "a folder.",
        field="model",
        given=name,
    ) from error


def _unreachable(error: BaseException) -> bool:
    """Whether nobody answered, or the hub says that it cannot now."""
    library = type(error).__module__.partition(".")[0]
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return bool(status >= 500 or status == 429)
    return library.startswith(("httpx", "httpcore", "requests", "urllib3")) or isinstance(
        error, ConnectionError | TimeoutError
    )


def _explain(name: str, error: Exception) -> UserError:
    """The sentence for what the hub library raised."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    token = f"set {TOKEN_VARIABLE} to a token of an account that may"
    if isinstance(error, errors.GatedRepoError) or status == 403:
        said = f"{name} is gated: accept its terms on the hub's page, then {token} read it."
    elif isinstance(error, errors.RevisionNotFoundError):
        said = f"{name}: the repository has no such revision; leave it out for the newest."
    elif isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
        nearest = nearest_name(name.partition("@")[0], known_names())
        hint = f" Did you mean {nearest}, which is here?" if nearest else ""
        said = (
            f"there is no folder {name} here, and the hub has no such model or keeps it private; for a "
            f"private one {token} read it.{hint}"
        )
        return UserError(said, field="model", given=name, nearest=nearest)
    elif _unreachable(error):
        said = (
            f"the hub stopped answering while {name} was fetched ({_short(error)}); what came is kept: run "
            "the same command again to go on."
        )
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        said = f"the disk is full while {name} is fetched; free some space or set HF_HOME to another disk."
    elif isinstance(error, OSError) and error.errno is not None:
        said = f"{name} cannot be fetched: {error.filename or 'the cache'}: {error.strerror}."
    else:
        said = f"{name} cannot be fetched ({_short(error)})."
    return UserError(said, field="model", given=name)


def known_names() -> list[str]:
    """Names that need no hub: bundled models and what the cache holds."""
    from haversack.models._bundled import bundled_names

    folder = cache_root()
    found = folder.glob("models--*") if folder.is_dir() else ()
    return [*bundled_names(), *(path.name.removeprefix("models--").replace("--", "/", 1) for path in found)]


def _short(error: BaseException | None) -> str:
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= 160 else f"{said[:157]}..."
