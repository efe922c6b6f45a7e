"""Rasters with a georeference: read, and written back on the finer grid."""
