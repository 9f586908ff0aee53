"""SPAR-K Lab's decoder: a prompt becomes speech under a depth schedule, with its cost known.

Knows nothing of the listening test and nothing of the app that shows it.
"""
