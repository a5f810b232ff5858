"""Metrics as `evaluate.Metric` modules: offline, scikit-learn inside; `evaluate.load(file)` takes each file too."""
