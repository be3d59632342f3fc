"""Confidence intervals and tests for counts, with fixed sample size and anytime-valid."""
