"""Reads classifiers from files, hubs and user code."""
