"""Reports of sweeps: result files in, tables, plots, one HTML page and one Markdown page out."""
