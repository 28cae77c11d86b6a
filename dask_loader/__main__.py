"""`python -m dask_loader`: the same commands as `dask loader`."""

from dask_loader.cli import main

if __name__ == "__main__":
    main(prog_name="python -m dask_loader")
