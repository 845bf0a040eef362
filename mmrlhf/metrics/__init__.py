"""Statistics: intervals and paired tests, calibration, diversity."""
