"""`python -m cluster`: the same commands as `dask loader cluster`."""

from cluster.cli import main

if __name__ == "__main__":
    main(prog_name="python -m cluster")
