"""Published files: found where people keep them, else downloaded and checked by their MD5."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from training.errors import DataError

__all__ = ["cache_dir", "fetch", "first_file", "roots"]

TIMEOUT_SECONDS = 60


def cache_dir() -> Path | None:
    """Where data sets are kept for a user who names no directory; None where nobody is at home."""
    import pooch  # lazy: only needed where no file was given

    try:
        return Path(pooch.os_cache("iafvae"))
    except RuntimeError:  # no HOME, and no such user
        return None


def roots(data_dir: Path | None) -> list[Path]:
    """Where to look: `data_dir` if given, then the cache; the first is where to download to.

    Raises `DataError` where `data_dir` is no directory, or there is neither.
    """
    if data_dir is not None and not data_dir.is_dir():
        raise DataError(
            f"The data directory {data_dir} does not exist: create it, or leave --data-dir out."
        )
    found = [place for place in (data_dir, cache_dir()) if place is not None]
    if not found:
        raise DataError("This user has no home directory: say where data sets lie (--data-dir).")
    return found


def first_file(paths: Iterable[Path]) -> Path | None:
    """The first of `paths` that is a file."""
    return next((path for path in paths if path.is_file()), None)


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
    inner = getattr(error, "reason", None) or next(iter(error.args), None)
    return _reason(inner) if isinstance(inner, BaseException) else str(error)
