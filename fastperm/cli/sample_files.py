"""Reading samples of a function from a text file, with errors that name the line."""

import re
import sys
from pathlib import Path

# What float() reads, less 1_000 and the digits of other scripts: in a file of samples they are slips.
_NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan|inf|infinity)", re.ASCII | re.IGNORECASE)


def read_samples(path, *, largest):
    """Return the two columns of a text file.

    Parameters
    ----------
    path : str or path-like
        The file; ``-`` is standard input.
    largest : float
        Numbers beyond this size are refused.

    Returns
    -------
    x, y : list of float

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is empty, or a line is not two finite numbers; the message names file and line.
    """
    name = "standard input" if str(path) == "-" else str(path)
    content = sys.stdin.buffer.read() if str(path) == "-" else Path(path).read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{name} is not a text file in UTF-8") from None
    rows: list[list[float]] = []
    header_may_come = True
    for number, line in enumerate(text.splitlines(), start=1):
        fields = _fields(line.partition("#")[0].strip())
        if not fields:
            continue
        if header_may_come and all(map(_is_name, fields)):
            header_may_come = False
            continue
        header_may_come = False
        rows.append(_row(fields, f"{name}, line {number}", largest))
    if not rows:
        raise ValueError(f"{name} has no samples: expected lines of two numbers, x and y")
    x, y = zip(*rows, strict=True)
    return list(x), list(y)


def _fields(line):
    for separator in (";", ","):
        if separator in line:
            return [field.strip().strip('"') for field in line.split(separator)]
    return [field.strip('"') for field in line.split()]


def _row(fields, place, largest):
    if len(fields) != 2:
        raise ValueError(f"{place}: expected two columns, x and y, got {len(fields)}")
    for field, column in zip(fields, "xy", strict=True):
        if not _is_number(field):
            raise ValueError(f"{place}: {column} must be a number, got {field!r}")
        if not abs(float(field)) <= largest:
            raise ValueError(f"{place}: {column} must be finite and at most {largest:.2g} in size, got {field!r}")
    return [float(field) for field in fields]


def _is_name(field):
    # Not just anything that is no number: 1,5;2,5 are samples, though not in a form that is read.
    return any(map(str.isalpha, field)) and not _is_number(field)


def _is_number(field):
    return _NUMBER.fullmatch(field) is not None
