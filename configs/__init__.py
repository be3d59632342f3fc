"""Recipes and gates that ship with the package; each can be named on the command line."""
