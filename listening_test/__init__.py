"""Listening tests: people judge WAV files blind, and their scores become evidence.

This half of the project knows sound files, raters and statistics. It does not know how speech
is generated: `spark` is imported in one place only (`decode.py`), to make stimuli beforehand.
"""
