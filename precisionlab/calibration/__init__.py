"""INT8 ranges: found from data, kept in a calibration table."""
