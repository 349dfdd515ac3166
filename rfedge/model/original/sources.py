"""Where original files lie: a file, a folder, a folder of the Hugging Face cache, or a repository by its id."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rfedge.errors import ArtifactError, BackendUnavailableError, first_line

_REPOSITORY = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(?:/(?P<file>[^@]+))?(?:@(?P<revision>[^@]+))?")
# A path with one folder looks like an id; these endings tell that a file was meant.
_FILE_SUFFIXES: Final = (".pth", ".pt", ".bin", ".safetensors", ".json")
_DEFAULT_REVISION: Final = "main"
_LISTED: Final = 10


@dataclass(slots=True)
class Source:
    """One place with files."""

    given: str
    names: tuple[str, ...]  # relative to the place; of a repository that cannot be asked, those in the cache
    folder: Path | None  # None before anything of a repository was fetched
    repository: str | None = None
    revision: str = _DEFAULT_REVISION  # branch, tag or commit

    def has(self, name: str) -> bool:
        return name in self.names

    def choose(self, patterns: Sequence[str], *, what: str) -> str:
        """Return the one file that the first fitting pattern names; ArtifactError where none or several fit."""
        for pattern in patterns:
            fitting = [name for name in self.names if fnmatch.fnmatchcase(Path(name).name, pattern)]
            found = [name for name in fitting if "/" not in name] or fitting
            if len(found) == 1:
                return found[0]
            if found:
                named = f"{self.given.split('@')[0]}/FILE" if self.repository else "the file itself"
                got = f"{len(found)} files ({some_of(found)})"
                raise ArtifactError(f"{what} {self.given}", got=got, expected="one", remedy=f"Give {named}.")
        expected, remedy = " or ".join(patterns), "Give the file, its folder or the repository that holds it."
        raise ArtifactError(f"{what} {self.given}", got=some_of(self.names) or "nothing", expected=expected, remedy=remedy)

    def fetch(self, names: Iterable[str]) -> list[Path]:
        """Return the paths of these files; of a repository, whatever the cache lacks is downloaded, and nothing else.

        Raises:
            ArtifactError: the repository lacks a file.
            BackendUnavailableError: it cannot be reached.
        """
        names = list(names)
        if self.repository is not None and not all(self._here(name) for name in names):
            import huggingface_hub

            try:
                self.folder = Path(
                    huggingface_hub.snapshot_download(self.repository, revision=self.revision, allow_patterns=names)
                )
            except Exception as error:  # of the library or of whichever HTTP library it uses
                raise _unreachable(self.repository, self.revision, error) from None
        for name in names:
            if not self._here(name):
                raise ArtifactError(
                    f"{self.given}", got=f"no {name}", expected="a whole repository or folder", remedy="Fetch it again."
                )
        return [(self.folder or Path()) / name for name in names]

    def _here(self, name: str) -> bool:
        return self.folder is not None and (self.folder / name).is_file()


def open_source(given: str, *, what: str) -> Source:
    """Find out which files are at a path or at `organisation/name`, optionally with `/file` and `@revision` after it.

    Of a repository nothing is downloaded yet.

    Raises:
        ArtifactError: it is neither a path nor a repository that can be found.
        BackendUnavailableError: the repository cannot be reached and nothing of it is in the cache.
    """
    path = Path(given).expanduser()
    if path.is_file():
        return Source(given, (path.name,), path.parent)
    if path.is_dir():
        folder = _snapshot(path, _DEFAULT_REVISION) or path
        if (path / "snapshots").is_dir() and folder == path:
            raise ArtifactError(
                f"{what} {given}", got="a cache folder without a snapshot", expected="one", remedy="Download it again."
            )
        return Source(given, _file_names(folder), folder)
    match = _REPOSITORY.fullmatch(given)
    if match is None or given.startswith((".", "~")) or (match["file"] is None and match["id"].endswith(_FILE_SUFFIXES)):
        expected, remedy = "a file, a folder or a Hugging Face id (organisation/name)", "Check the path."
        raise ArtifactError(f"{what} {given}", got="no such file", expected=expected, remedy=remedy)
    revision = match["revision"] or _DEFAULT_REVISION
    names, cached = _look_up(match["id"], revision)
    if match["file"] is not None:
        if match["file"] not in names:
            raise ArtifactError(
                f"{what} {given}", got=some_of(names), expected=match["file"], remedy="Choose a file of this repository."
            )
        names = (match["file"],)
    return Source(given, names, cached, match["id"], revision)


def some_of(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _file_names(folder: Path) -> tuple[str, ...]:
    """Return the files of a folder and of the folders in it, but no deeper: a home directory is also a folder."""
    found = [*folder.glob("*"), *folder.glob("*/*")]
    return tuple(sorted(path.relative_to(folder).as_posix() for path in found if path.is_file()))


def _snapshot(cache: Path, revision: str) -> Path | None:
    """Return the snapshot in a `models--organisation--name` folder of the cache, or None."""
    reference = cache / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    if (cache / "snapshots" / commit).is_dir():
        return cache / "snapshots" / commit
    snapshots = sorted((cache / "snapshots").glob("*")) if revision == _DEFAULT_REVISION else []
    return snapshots[0] if len(snapshots) == 1 else None


def _look_up(repository: str, revision: str) -> tuple[tuple[str, ...], Path | None]:
    """Return the files of a repository and, where nobody can be asked for its present state, its snapshot in the cache."""
    try:
        import huggingface_hub
        from huggingface_hub import constants
    except ModuleNotFoundError as error:
        expected = "the library that reads Hugging Face ids"
        remedy = "Install it: pip install huggingface_hub; or give a file or folder."
        raise BackendUnavailableError(repository, got=f"no {error.name}", expected=expected, remedy=remedy) from None
    cache = Path(constants.HF_HUB_CACHE).expanduser() / f"models--{repository.replace('/', '--')}"
    cached = _snapshot(cache, revision)
    try:
        names = huggingface_hub.HfApi().list_repo_files(repository, revision=revision)
    except Exception as error:  # of the library or of whichever HTTP library it uses
        if cached is not None:
            return _file_names(cached), cached
        raise _unreachable(repository, revision, error) from None
    return tuple(sorted(names)), None


def _unreachable(repository: str, revision: str, error: Exception) -> ArtifactError | BackendUnavailableError:
    from huggingface_hub import errors

    subject = f"Hugging Face repository {repository}"
    if isinstance(error, errors.RevisionNotFoundError):
        return ArtifactError(
            subject, got=f"no revision {revision!r}", expected="a branch, tag or commit of it", remedy="Check it."
        )
    if isinstance(error, errors.GatedRepoError):
        return BackendUnavailableError(
            subject, got="no access", expected="its licence accepted", remedy="Accept it there, then run `hf auth login`."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return ArtifactError(
            subject, got="no such repository, nor a file of this name", expected="one", remedy="Check the name."
        )
    if isinstance(error, errors.HFValidationError):
        return ArtifactError(subject, got=str(error), expected="organisation/name", remedy="Check the name.")
    reason = first_line(error)
    got = f"no connection ({type(error).__name__}: {reason}) and no copy of these files in the cache"
    expected = "one of the two"
    return BackendUnavailableError(subject, got=got, expected=expected, remedy="Go online, or give a file or folder.")
