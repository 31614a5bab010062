"""Files that are on the disk when it is said so, and folders that are gone when they are removed. Texts name no file."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.errors import Unavailable

logger = logging.getLogger(__name__)


@contextmanager
def written() -> Iterator[None]:
    """Tell of a full or failing disk.

    Raises:
        Unavailable: the block met an OSError.
    """
    try:
        yield
    except OSError as error:
        raise Unavailable(f"files cannot be written ({reason(error)}); free space and send it again") from None


def flush(*paths: Path) -> None:
    """See that files, or the names in folders, are on the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def flush_tree(folder: Path) -> None:
    """See that all of a folder is on the disk, its own name too.

    Raises:
        Unavailable: the disk is full or fails.
    """
    with written():
        flush(*folder.rglob("*"), folder, folder.parent)


def remove(folder: Path) -> None:
    """Remove a folder where it is there; one that cannot be removed is logged, without its name."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        logger.warning("files that are no longer needed could not be removed (%s)", reason(error))


def reason(error: OSError) -> str:
    """The name of its number, such as ENOSPC."""
    return errno.errorcode.get(error.errno or 0, "unknown")
