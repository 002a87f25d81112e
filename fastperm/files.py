"""Files are written whole or not at all."""

import contextlib
import errno
import os
import shutil
import tempfile
from pathlib import Path

# Asking for the umask means setting it: done once, before there are threads that could see the other one.
_UMASK = os.umask(0o077)
os.umask(_UMASK)


def is_special(path):
    """Return whether there is something at a path that is neither a file nor a folder: a device, or a pipe."""
    return path.exists() and not path.is_file() and not path.is_dir()


@contextlib.contextmanager
def replacing(path):
    """Give a temporary name; what is written there takes the place of ``path`` if the block ends without error.

    Of a symbolic link the target is replaced, and the link stays. Into what is no regular file, such as a device or a
    FIFO, the finished content is copied.

    Parameters
    ----------
    path : str or path-like
        The file to write. Its folder is made if need be.

    Yields
    ------
    pathlib.Path
        The temporary name, with the suffix of ``path``.

    Raises
    ------
    IsADirectoryError
        If ``path`` is a folder.
    OSError
        If the file cannot be written: it names ``path``, not the temporary file.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    special = is_special(path)
    target = Path(os.path.realpath(path))
    if special:
        folder = Path(tempfile.gettempdir())
    else:
        folder = target.parent
        folder.mkdir(parents=True, exist_ok=True)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=folder)
    except OSError as error:
        # Name the file that was asked for, not the temporary one.
        raise type(error)(error.errno, error.strerror, str(path)) from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        if special:
            with temporary.open("rb") as content, path.open("wb") as sink:
                shutil.copyfileobj(content, sink)
            return
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner can read; a result is for everybody the umask lets in.
        temporary.chmod(0o666 & ~_UMASK)
        temporary.replace(target)
    except OSError as error:
        if error.errno is None or (error.filename is not None and str(error.filename) != name):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error  # a full disk names no file
    finally:
        temporary.unlink(missing_ok=True)
