"""``python -m fastperm``: the command line without its script."""

from fastperm.cli import main

if __name__ == "__main__":  # workers of an MPI pool import this, too
    main(prog_name="fastperm")
