"""From a classifier and a dataset to a result: `evaluate`, `doctor` and the evaluation of detectors."""
