"""Tables in plain text and numbers in them."""

import math


def table(header, rows):
    """Return a table of strings as text, right-aligned, one line per row."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def column(values):
    """Return numbers as strings with their decimal points in one place: four decimals, or the exponential form."""
    values = list(values)
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0)
    form = ".4f" if largest == 0 or 0.01 <= largest < 1e6 else ".3e"
    return [format(value, form) if math.isfinite(value) else "-" for value in values]


def span(value):
    """Return a number, or a range of two, as an option takes it: ``512`` or ``64:512``."""
    return ":".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
