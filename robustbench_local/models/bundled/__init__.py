"""The classifiers that come with the package: NAME.safetensors (weights) beside NAME.json (what they are)."""
