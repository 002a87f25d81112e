"""Write the results of the benchmarks into the README and the documents of docs/, between their markers.

    python bench/table.py
    python bench/table.py --results FOLDER --show  # print all blocks, write nothing

A block stands between ``<!-- bench:NAME -->`` and ``<!-- /bench -->``; `blocks` has a function of that name for each.
Every figure comes from the JSON files.
"""

import argparse
import re
from pathlib import Path

import results
from blocks import BLOCKS

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "performance.md", ROOT / "docs" / "power-spectrum.md")
BEGIN, END = "<!-- bench:", "<!-- /bench -->"
BLOCK = re.compile(rf"^({BEGIN}(\w+) -->\n).*?^({END})$", re.DOTALL | re.MULTILINE)


def rewritten(text, found):
    """Return ``text`` with all blocks replaced by those of the results in ``found``.

    Raises
    ------
    ValueError
        If there is no block, if a marker has no counterpart, or if a block cannot be made.
    """

    def replacement(match):
        begin, name, end = match.groups()
        if name not in BLOCKS:
            raise ValueError(f"there is no block called {name!r}; there are {', '.join(BLOCKS)}")
        return f"{begin}{_made(name, found)}\n{end}"

    text, replaced = BLOCK.subn(replacement, text)
    begins, ends = text.count(BEGIN), text.count(END)
    if not replaced == begins == ends > 0:
        raise ValueError(
            f"expected blocks from {BEGIN}NAME --> to {END}, each on a line of its own; found {begins} beginnings and "
            f"{ends} ends that make {replaced} blocks"
        )
    return text


def _made(name, found):
    try:
        return BLOCKS[name](found)
    except KeyError as missing:
        raise ValueError(f"the results lack {missing} for the block {name!r}") from None


def main():
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=results.FOLDER, help="folder (default bench/results)")
    parser.add_argument("--documents", nargs="+", type=Path, default=DOCUMENTS)
    parser.add_argument("--show", action="store_true", help="print all blocks and write nothing")
    options = parser.parse_args()
    found = results.read(options.results)
    try:
        if options.show:
            print("\n\n".join(f"## {name}\n\n{_made(name, found)}" for name in BLOCKS))
            return
        texts = {path: rewritten(path.read_text(), found) for path in options.documents}
    except ValueError as error:
        parser.error(str(error))
    for path, text in texts.items():
        path.write_text(text)


if __name__ == "__main__":
    main()
