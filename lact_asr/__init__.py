"""Speech recognition with test-time training: LaCT fast weights on a Wav2Vec2 front end.

The public names load on first use, so that commands answer `--help` without importing PyTorch.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lact_asr.configuration_hybrid_asr import HybridASRConfig
    from lact_asr.modeling_hybrid_asr import HybridASRForCTC
    from lact_asr.processing_hybrid_asr import HybridASRProcessor

__all__ = ["HybridASRConfig", "HybridASRForCTC", "HybridASRProcessor"]

_MODULES = {
    "HybridASRConfig": "lact_asr.configuration_hybrid_asr",
    "HybridASRForCTC": "lact_asr.modeling_hybrid_asr",
    "HybridASRProcessor": "lact_asr.processing_hybrid_asr",
}


# GNU OpenMP's threads wait for each other in a busy loop. Beside other work on a machine one that has lost its core then
# holds up the others for milliseconds at each operation, and a step takes ten times as long and more; with a short loop it
# does not, and alone on a machine it costs nothing. PyTorch reads this when it is loaded.
if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
    os.environ["GOMP_SPINCOUNT"] = "10000"


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'lact_asr' has no attribute {name!r}")
    importlib.import_module("lact_asr.auto")
    return getattr(importlib.import_module(_MODULES[name]), name)
