"""``python -m fastperm``: the command line without its script."""

from fastperm.cli import main

main(prog_name="fastperm")
