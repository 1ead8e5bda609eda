"""Everything on disk or in object storage: FITS, Zarr tiles, Parquet, ledger, queries, WCS and units."""
