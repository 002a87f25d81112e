"""The history of a run as a CSV file, to which the rows of each checkpoint are added."""

import contextlib
import csv
import math
import os
from pathlib import Path

from fastperm.checkpoints import COLUMNS
from fastperm.files import replacing


class HistoryFile:
    """One row per step: its number, loss, validation loss (empty where nothing was measured) and seconds.

    A file that is as the last `write` left it gets the rows that came since; writing all of them each time would in
    long runs take longer than training. Any other is written whole.

    Parameters
    ----------
    path : str or path-like
        The file.
    """

    def __init__(self, path):
        self.path = Path(path)
        self._rows, self._left = 0, None

    def write(self, records):
        """Bring the file up to date with a history, whose earlier entries are still the same.

        Parameters
        ----------
        records : dict of str to list
            The history: the columns `COLUMNS`, with one entry per step.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        if self._left is not None and self._found() == self._left:
            try:
                with self.path.open("a", newline="") as file:
                    _write_rows(file, records, self._rows)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:  # such as a full disk, which names no file
                with contextlib.suppress(OSError):
                    os.truncate(self.path, self._left[1])  # bytes, as it was
                raise OSError(error.errno, error.strerror, str(self.path)) from error
        else:
            with replacing(self.path) as temporary, temporary.open("w", newline="") as file:
                csv.writer(file).writerow(COLUMNS)
                _write_rows(file, records, 0)
        self._rows, self._left = len(records["step"]), self._found()

    def check(self, begins):
        """Refuse a file that is there already, unless it is the history of a run that goes on.

        Raises
        ------
        FileExistsError
            If ``begins``, or the file is no history.
        """
        if not self.path.is_file():
            return
        name = os.path.realpath(self.path)
        if begins:
            raise FileExistsError(f"{name} is there already, and would become the history of this run; move it away")
        with self.path.open(newline="", errors="replace") as file:
            if next(csv.reader(file), None) != list(COLUMNS):
                raise FileExistsError(f"{name} is there already, and is not the history of a run; move it away")

    def _found(self):
        """Return what tells whether another one has written to the file; None of what is no regular file."""
        if not self.path.is_file():
            return None
        status = self.path.stat()
        return status.st_ino, status.st_size, status.st_mtime_ns


def _write_rows(file, records, first):
    columns = (records[name][first:] for name in COLUMNS)
    csv.writer(file).writerows(
        (step, loss, "" if math.isnan(measured) else measured, f"{seconds:.3f}")
        for step, loss, measured, seconds in zip(*columns, strict=True)
    )
