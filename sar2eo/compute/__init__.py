"""Where work runs: clusters, Dask runs, devices."""
