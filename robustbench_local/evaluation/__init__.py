"""From a classifier and a data set to a result: `evaluate`, `doctor` and the evaluation of detectors."""
