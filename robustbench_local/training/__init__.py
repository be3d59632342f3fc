"""Trains classifiers: recipe, set-up, loop, validation, checkpoints, grid search."""
