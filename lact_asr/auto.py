"""Importing this module lets Transformers' Auto classes, and so its pipelines, find the model by its type "hybrid_asr".

import lact_asr.auto
from transformers import pipeline

recognise = pipeline("automatic-speech-recognition", model="FOLDER")
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForCTC, AutoProcessor

from lact_asr.configuration_hybrid_asr import HybridASRConfig
from lact_asr.modeling_hybrid_asr import HybridASRForCTC
from lact_asr.processing_hybrid_asr import HybridASRProcessor

AutoConfig.register(HybridASRConfig.model_type, HybridASRConfig, exist_ok=True)
AutoModelForCTC.register(HybridASRConfig, HybridASRForCTC, exist_ok=True)
AutoProcessor.register(HybridASRConfig, HybridASRProcessor, exist_ok=True)
