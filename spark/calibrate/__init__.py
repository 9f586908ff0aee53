"""Calibration: where in a chunk a model's speech may leave early, found and then confirmed.

`python -m spark.calibrate --model embedded --out DIR`, then
`python -m spark.calibrate confirm DIR`.
"""
