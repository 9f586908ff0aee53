"""Measurements that print a table for people and one JSON line, the last, for scripts."""
