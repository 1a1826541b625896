"""One PremoeError line for whatever an object store or the operating system raises."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from obstore import exceptions as failures

from premoe_runtime.formats.errors import Conflict, CorruptData, Exhausted, InvalidInput, NotFound, Unavailable

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_TEXT = ("No space left", "QuotaExceeded", "InsufficientStorage", "StorageFull", "Disk quota")
_READ_ONLY_TEXT = "Read-only file system"
_REFUSED_TEXT = (
    *("Permission denied (os error", "Operation not permitted (os error"),
    *("401 Unauthorized", "403 Forbidden"),  # what a listing says, where a read says PermissionDeniedError
)
_METADATA_HOST = "169.254.169.254"  # where the AWS client looks for credentials when no variable gives any
_ABSENT_TEXT = ("404 Not Found", "Not a directory (os error", "Is a directory (os error")
_LOOP_TEXT = "Too many levels of symbolic links"
_RANGE_TEXT = ("InvalidRange", "Invalid range", "Requested range was invalid", "416 Range Not Satisfiable")


@contextmanager
def mapped_errors(where: str) -> Iterator[None]:
    """Turn what obstore and the operating system raise into one PremoeError line about ``where``."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise NotFound(f"{where}: no such object", reason="OBJECT_NOT_FOUND") from error
    except (failures.AlreadyExistsError, FileExistsError) as error:
        raise Conflict(f"{where}: exists already", reason="OBJECT_EXISTS") from error
    except (failures.PermissionDeniedError, failures.UnauthenticatedError, PermissionError) as error:
        raise _refused(where) from error
    except ValueError as error:
        raise InvalidInput(f"{where}: {_first_line(error)}", reason="OBJECT_PATH") from error
    except (OSError, failures.BaseError) as error:  # obstore's writers raise OSError with the server's answer in it
        text = str(error)
        if getattr(error, "errno", None) == errno.ELOOP or _LOOP_TEXT in text:
            raise NotFound(f"{where}: a link leads to itself; remove it", reason="OBJECT_NOT_FOUND") from error
        if getattr(error, "errno", None) in _FULL or any(mark in text for mark in _FULL_TEXT):
            raise _full(where) from error
        if getattr(error, "errno", None) == errno.EROFS or _READ_ONLY_TEXT in text:
            raise InvalidInput(
                f"{where} is on a read-only file system; choose another place", reason="READ_ONLY"
            ) from error
        if any(mark in text for mark in _RANGE_TEXT):
            raise CorruptData(f"{where} is too short; write the object again", reason="OBJECT_TRUNCATED") from error
        if any(mark in text for mark in _ABSENT_TEXT):
            raise NotFound(f"{where}: no such bucket or object", reason="OBJECT_NOT_FOUND") from error
        if any(mark in text for mark in _REFUSED_TEXT):
            raise _refused(where) from error
        if _METADATA_HOST in text:
            raise InvalidInput(
                f"{where}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
                reason="ACCESS_REFUSED",
            ) from error
        raise Unavailable(f"{where}: {_first_line(error)}", reason="STORE_FAILED") from error


def _refused(where: str) -> InvalidInput:
    return InvalidInput(f"{where}: access refused; check credentials and rights", reason="ACCESS_REFUSED")


def _full(where: str) -> Exhausted:
    return Exhausted(f"no space left while writing {where}; free some room and run again", reason="DISK_FULL")


def _first_line(error: BaseException) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or str(error).strip() or type(error).__name__
    return text.splitlines()[0]
