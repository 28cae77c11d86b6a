"""Who does the reading: threads of this process, or a Dask cluster.

An engine runs tasks; a stream keeps a bounded number of them going and hands the windows
over in order. Only dask.py and its worker-side twin worker.py load distributed.
"""
