"""How good a model is: figures with intervals, splits that refuse to leak, calibration, thresholds and the report."""
