"""Published files from the network: each checked by its published MD5 before it gets its name."""

from collections.abc import Sequence
from pathlib import Path

from training.errors import DataError

__all__ = ["cache_dir", "fetch"]

TIMEOUT_SECONDS = 60


def cache_dir() -> Path:
    """Where data sets are kept for a user who names no directory."""
    import pooch  # lazy: only needed where no file was given

    return Path(pooch.os_cache("iafvae"))


def fetch(name: str, mirrors: Sequence[str], md5: str, folder: Path) -> Path:
    """Download `name` into `folder` from the first mirror that has it; gives its path.

    Raises `DataError` naming every mirror's fault where none gives a file of that MD5.
    """
    import pooch

    faults = []
    for mirror in mirrors:
        try:
            path = pooch.retrieve(
                url=mirror + name,
                known_hash=f"md5:{md5}",
                fname=name,
                path=folder,
                downloader=pooch.HTTPDownloader(timeout=TIMEOUT_SECONDS),
            )
            return Path(path)
        # requests' own errors are OSErrors, a wrong checksum is a ValueError
        except (OSError, ValueError) as error:
            faults.append(f"{mirror}{name} ({_reason(error)})")
    raise DataError(
        f"{name} could not be downloaded to {folder} from {', nor from '.join(faults)}. "
        f"Fetch it by other means and pass its folder as --data-dir."
    )


def _reason(error: BaseException) -> str:
    """The innermost cause in a few words: a failed connection wraps it three times."""
    while isinstance(inner := getattr(error, "reason", None) or _first(error), BaseException):
        error = inner
    return str(error)


def _first(error: BaseException) -> object:
    return error.args[0] if error.args else None
