"""Comparisons with peers, one script each."""
