"""Files of weights before they are read: where they are, and which they are.

For a file at hand, without torch.
"""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import file_digest, sha256
from http.client import HTTPException
from pathlib import Path
from urllib.request import url2pathname

from roadmap.files import download
from roadmap.records import RunDir
from roadmap.strict_yaml import ConfigError, Problem, relative

# iteration and digest; a copy under any other name is the user's
CHECKPOINT = re.compile(r"(\d{9,})-([0-9a-f]{16})\.pt")


def refusal(where: str, message: str) -> ConfigError:
    """Bad input in one line."""
    return ConfigError([Problem(where, message)])


def scheme_of(source: str | Path) -> str:
    """The scheme of an address, '' for a path; ConfigError for one that cannot be read."""
    scheme = source.partition("://")[0].lower() if isinstance(source, str) and "://" in source else ""
    if scheme not in ("", "file", "http", "https"):
        raise refusal(
            str(source), f"is no address that can be read: '{scheme}' is not one of http, https, file"
        )
    return scheme


def name_of(source: str | Path) -> str:
    """How messages call it."""
    return str(source) if scheme_of(source) else relative(Path(source))


def checkpoint_files(folder: Path) -> list[Path]:
    """The checkpoints that the suite wrote in `folder`, the one of the latest iteration first; other files
    are not its own.
    """
    named = [(match, path) for path in folder.glob("*.pt") if (match := CHECKPOINT.fullmatch(path.name))]
    return [
        path
        for _, _, path in sorted(((int(match[1]), path.name, path) for match, path in named), reverse=True)
    ]


def located(source: str | Path) -> Path:
    """The file that `source` names: a path, an address, or the directory of a run, for its newest checkpoint.

    What an http or https address holds is downloaded once. ConfigError if there is no such file to be had.
    """
    scheme = scheme_of(source)
    if scheme in ("http", "https"):
        return _download(str(source))
    path = Path(url2pathname(str(source).partition("://")[2].removeprefix("localhost")) if scheme else source)
    run = RunDir(path)
    if not run.config.is_file():
        return path
    checkpoints = checkpoint_files(run.checkpoints)
    if not checkpoints:
        raise refusal(relative(path), "has no checkpoint; train it first")
    return checkpoints[0]


def _download(url: str) -> Path:
    """The file at `url` in torch.hub's cache, fetched if it is not there; torch.hub's own functions take a
    torn download for whole.
    """
    import torch.hub

    name = (
        re.sub(r"[^\w.-]", "_", re.split("[?#]", url)[0].rpartition("/")[2]).lstrip(".")[-100:] or "weights"
    )
    # a folder for each address, because half the world calls its file checkpoint.pth
    path = Path(torch.hub.get_dir(), "checkpoints", sha256(url.encode()).hexdigest()[:16], name)
    if not path.exists():
        try:
            download(url, path)
        except (OSError, HTTPException, ValueError) as error:
            raise refusal(url, f"cannot be downloaded: {str(error).strip('<>')}") from error
    return path


def digest_of(source: str | Path) -> str:
    """The first 16 hex digits of the SHA-256 of the file that `source` names; ConfigError as in `located`."""
    path = located(source)
    try:
        status = path.stat()
        return _digest(path, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise refusal(name_of(source), f"cannot be read: {error.strerror}") from error


@lru_cache
def _digest(path: Path, mtime_ns: int, size: int) -> str:
    with path.open("rb") as file:
        return file_digest(file, sha256).hexdigest()[:16]
