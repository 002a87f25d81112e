"""The sources that compiled code follows from: what is kept on disk is known by their hash."""

import hashlib
from pathlib import Path


def stamp_of(folder):
    """Return the hash of all sources of a backend, whose folder this is.

    Those of the reference are among them: numbers that are written there become part of compiled code.
    """
    stamp = hashlib.sha256()
    for own in (Path(folder), Path(__file__).parent / "reference"):
        for path in sorted(own.glob("*.py")):
            stamp.update(path.name.encode() + b"\0" + path.read_bytes())
    return stamp.hexdigest()
