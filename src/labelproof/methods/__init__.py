"""One paper, one file. A new method joins the estimators, the command line and the contract tests by one line here."""

from __future__ import annotations

from labelproof.core.method import Method
from labelproof.core.registry import lookup
from labelproof.methods.backward import Backward
from labelproof.methods.bootstrap import Bootstrap
from labelproof.methods.cauchy import Cauchy
from labelproof.methods.ce import CE
from labelproof.methods.co_teaching import CoTeaching
from labelproof.methods.co_teaching_plus import CoTeachingPlus
from labelproof.methods.d2l import D2L
from labelproof.methods.decoupling import Decoupling
from labelproof.methods.dividemix import DivideMix
from labelproof.methods.elr import ELR
from labelproof.methods.elr_plus import ELRPlus
from labelproof.methods.forward import Forward
from labelproof.methods.gce import GCE
from labelproof.methods.huber import Huber
from labelproof.methods.incv import INCV
from labelproof.methods.mae import MAE
from labelproof.methods.mentornet import MentorNet, MentorNetDD
from labelproof.methods.mse import MSE
from labelproof.methods.mw_net import MWNet
from labelproof.methods.prl import PRLG, PRLL, CoPRLG, CoPRLL
from labelproof.methods.sce import SCE
from labelproof.methods.self_paced import SelfPaced
from labelproof.methods.simclr import SimCLR
from labelproof.methods.sop import SOP, SOPPlus
from labelproof.methods.trimmed import Trimmed

METHODS: dict[str, type[Method]] = {
    "backward": Backward,
    "bootstrap": Bootstrap,
    "cauchy": Cauchy,
    "ce": CE,
    "co-prl-g": CoPRLG,
    "co-prl-l": CoPRLL,
    "co-teaching": CoTeaching,
    "co-teaching+": CoTeachingPlus,
    "d2l": D2L,
    "decoupling": Decoupling,
    "dividemix": DivideMix,
    "elr": ELR,
    "elr+": ELRPlus,
    "forward": Forward,
    "gce": GCE,
    "huber": Huber,
    "incv": INCV,
    "mae": MAE,
    "mentornet": MentorNet,
    "mentornet-dd": MentorNetDD,
    "mse": MSE,
    "mw-net": MWNet,
    "prl-g": PRLG,
    "prl-l": PRLL,
    "sce": SCE,
    "self-paced": SelfPaced,
    "simclr": SimCLR,
    "sop": SOP,
    "sop+": SOPPlus,
    "trimmed": Trimmed,
}

for _name, _kind in METHODS.items():
    _kind.name = _name

__all__ = [
    "CE",
    "D2L",
    "ELR",
    "GCE",
    "INCV",
    "MAE",
    "METHODS",
    "MSE",
    "PRLG",
    "PRLL",
    "SCE",
    "SOP",
    "Backward",
    "Bootstrap",
    "Cauchy",
    "CoPRLG",
    "CoPRLL",
    "CoTeaching",
    "CoTeachingPlus",
    "Decoupling",
    "DivideMix",
    "ELRPlus",
    "Forward",
    "Huber",
    "MWNet",
    "MentorNet",
    "MentorNetDD",
    "SOPPlus",
    "SelfPaced",
    "SimCLR",
    "Trimmed",
    "available_methods",
    "get_method",
    "method_name",
]


def available_methods() -> list[str]:
    """Names of all methods, each usable from the estimators and from the command line.

    >>> available_methods()
    ['backward', 'bootstrap', 'cauchy', 'ce', 'co-prl-g', 'co-prl-l', 'co-teaching', 'co-teaching+', 'd2l',
    'decoupling', 'dividemix', 'elr', 'elr+', 'forward', 'gce', 'huber', 'incv', 'mae', 'mentornet', 'mentornet-dd',
    'mse', 'mw-net', 'prl-g', 'prl-l', 'sce', 'self-paced', 'simclr', 'sop', 'sop+', 'trimmed']
    """
    return sorted(METHODS)


def get_method(name: str) -> type[Method]:
    """The class registered under `name`; a typo is answered with the closest name."""
    return lookup("method", name, METHODS)


def method_name(method: Method) -> str:
    """The registered name of a method, or its class name if it is the user's own."""
    return vars(type(method)).get("name") or type(method).__name__
