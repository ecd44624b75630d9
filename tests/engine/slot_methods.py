"""Every cache method with settings that fit tiny prompts."""

from btp.core.schedule import Schedule, Stage
from btp.pruners.a2sf import A2SF
from btp.pruners.h2o import H2O
from btp.pruners.keydiff import KeyDiff
from btp.pruners.knorm import KNorm
from btp.pruners.pagedeviction import PagedEviction
from btp.pruners.pyramidkv import PyramidKV
from btp.pruners.random_slots import RandomSlots
from btp.pruners.snapkv import SnapKV
from btp.pruners.streaming import Streaming
from btp.pruners.tova import TOVA


def everywhere(keep=10, phase="both", **settings):
    """One stage for all layers."""
    return Schedule((Stage("llm.cache.*", keep, phase=phase, settings=settings),))


def paged(**more):
    """PagedEviction with pages of three slots."""
    known = {"score": "v_over_k", "heads": "mean", "page": 3, "candidates": "all", "protect": True}
    return PagedEviction(**known | more)


METHODS = {
    "a2sf": (A2SF(decay=0.9, history="always"), everywhere(10, "prefill", recent=3)),
    "a2sf online": (A2SF(decay=0.3, history="always"), everywhere()),
    "a2sf decode": (A2SF(decay=0.3, history="always"), everywhere(17, "decode", every=2)),
    "h2o": (H2O(), everywhere(recent=0.5)),
    "streaming": (Streaming(), everywhere(0.5, first=2)),
    "tova": (TOVA(), everywhere(every=3)),
    "snapkv": (SnapKV(kernel=3, pool="mean"), everywhere(10, "prefill", recent=4)),
    "pyramidkv": (PyramidKV(kernel=3, pool="max", beta=5), everywhere(10, "prefill", recent=2)),
    "knorm": (KNorm(), everywhere(0.5)),
    "keydiff": (KeyDiff(), everywhere()),
    "random": (RandomSlots(seed=0), everywhere()),
    "paged": (paged(), everywhere(12)),
    "paged heads": (paged(score="value", heads="each", candidates=2, protect=False), everywhere(12)),
    "paged concat": (paged(score="inv_key", heads="concat"), everywhere(12, "decode")),
}
