"""All figures of `spark`, and all of it that knows Plotly: comparison, evaluation, calibration.

Empty, so that who only puts figures into a page (`standalone`) loads no model code.
"""
