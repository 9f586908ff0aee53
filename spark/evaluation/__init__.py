"""Evaluation: a model's answers under several policies, judged by text, by ear and by cost.

`python -m spark.evaluation --model embedded --suite builtin --limit N --out DIR`
"""
