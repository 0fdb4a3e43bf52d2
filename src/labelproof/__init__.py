"""labelproof: train models that survive wrong labels, and find out which labels are wrong.

>>> import labelproof as lp
>>> lp.available_methods()
['backward', 'bootstrap', 'cauchy', 'ce', 'co-prl-g', 'co-prl-l', 'co-teaching', 'co-teaching+', 'd2l', 'decoupling',
'dividemix', 'elr', 'elr+', 'forward', 'gce', 'huber', 'incv', 'mae', 'mentornet', 'mentornet-dd', 'mse', 'mw-net',
'prl-g', 'prl-l', 'sce', 'self-paced', 'simclr', 'sop', 'sop+', 'trimmed']

Everything is imported on first use, so that `import labelproof` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

_WHERE = {
    "NoisyLabelClassifier": "labelproof.estimators:NoisyLabelClassifier",
    "NoisyLabelRegressor": "labelproof.estimators:NoisyLabelRegressor",
    "available_methods": "labelproof.methods:available_methods",
    "cross_val_probs": "labelproof.procedures.cross_val:cross_val_probs",
    "cross_val_targets": "labelproof.procedures.cross_val:cross_val_targets",
    "estimate_noise": "labelproof.issues:estimate_noise",
    "estimate_target_noise": "labelproof.issues:estimate_target_noise",
    "find_issues": "labelproof.issues:find_issues",
    "find_target_issues": "labelproof.issues:find_target_issues",
    "load_encoder": "labelproof.networks.encoders:load_encoder",
    "losses": "labelproof.losses",
    "methods": "labelproof.methods",
    "networks": "labelproof.networks",
    "noise": "labelproof.data.noise",
    "save_encoder": "labelproof.networks.encoders:save_encoder",
    "with_index": "labelproof.data.indexed:with_index",
}

__all__ = [
    "NoisyLabelClassifier",
    "NoisyLabelRegressor",
    "available_methods",
    "cross_val_probs",
    "cross_val_targets",
    "estimate_noise",
    "estimate_target_noise",
    "find_issues",
    "find_target_issues",
    "load_encoder",
    "losses",
    "methods",
    "networks",
    "noise",
    "save_encoder",
    "with_index",
]

if TYPE_CHECKING:
    from labelproof import losses, methods, networks
    from labelproof.data import noise
    from labelproof.data.indexed import with_index
    from labelproof.estimators import NoisyLabelClassifier, NoisyLabelRegressor
    from labelproof.issues import estimate_noise, estimate_target_noise, find_issues, find_target_issues
    from labelproof.methods import available_methods
    from labelproof.networks.encoders import load_encoder, save_encoder
    from labelproof.procedures.cross_val import cross_val_probs, cross_val_targets


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'labelproof' has no attribute {name!r}; it has {', '.join(sorted(_WHERE))}")
    module, _, attribute = _WHERE[name].partition(":")
    value = getattr(import_module(module), attribute) if attribute else import_module(module)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
