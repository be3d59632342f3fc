"""Architectures, one file each; `models/catalog.py` names them."""
