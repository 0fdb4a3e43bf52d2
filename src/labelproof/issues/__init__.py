"""Which labels are wrong: from labels and predicted probabilities to a table, worst first.

NumPy and pandas only, and nothing else of labelproof: it works on anyone's probabilities. `find_issues` for classes,
`find_target_issues` for regression, `estimate_noise` and `estimate_target_noise` for how much of it is wrong,
`save_issues` for a file, `summarise` to measure a table where the truth is known. The mathematics is in `posterior`.
"""

from labelproof.issues.export import save_issues
from labelproof.issues.noise_estimate import NoiseEstimate, estimate_noise
from labelproof.issues.regression import find_target_issues
from labelproof.issues.scores import average_precision, calibration_error, summarise
from labelproof.issues.table import find_issues
from labelproof.issues.target_noise import TargetNoiseEstimate, estimate_target_noise

__all__ = [
    "NoiseEstimate",
    "TargetNoiseEstimate",
    "average_precision",
    "calibration_error",
    "estimate_noise",
    "estimate_target_noise",
    "find_issues",
    "find_target_issues",
    "save_issues",
    "summarise",
]
