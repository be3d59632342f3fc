"""The datasets of the catalog, one file each. Imports nothing heavy before a set is loaded."""
