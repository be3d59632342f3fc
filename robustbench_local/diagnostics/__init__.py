"""Whether a robust accuracy can be trusted: preflight checks, gradient-masking checks and adaptive attacks."""
