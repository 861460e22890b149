"""The eSpeak NG synthesiser in this process, through ctypes on the library that the package espeakng-loader carries.

Only what the corpus generator needs: one text in, its samples out, the same samples for the same request whatever was spoken before.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lact_asr.errors import InputError

# Values of speak_lib.h.
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 0x8000
_CHARS_UTF8 = 1
_POS_CHARACTER = 1
_PARAMETER_RATE, _PARAMETER_VOLUME, _PARAMETER_PITCH, _PARAMETER_RANGE = 1, 2, 3, 4
_OK = 0
_CONTINUE = 0

_VOLUME = (
    60  # of 100, eSpeak's neutral: some voices reach the limit of int16 there, and the level is set afterwards anyway
)
_RANDOM_SEED = 1
_CALLBACK_MILLISECONDS = 200

_SynthCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def _unload(handle: int) -> None:
    """What ctypes lacks: drop a library, so that loading it again starts from fresh variables."""
    if sys.platform == "win32":
        ctypes.windll.kernel32.FreeLibrary(ctypes.c_void_p(handle))
    else:
        import _ctypes

        _ctypes.dlclose(handle)


@dataclass(frozen=True)
class VoiceSettings:
    """Everything that decides how eSpeak says a text.

    Attributes:
        language: An eSpeak language such as ``en-us`` or ``en-gb-scotland``.
        variant: A file of ``voices/!v`` such as ``f3``; empty for the language's own voice.
        speed_wpm: Words per minute, 80 to 450.
        pitch: Base pitch on eSpeak's scale of 0 to 99 (50 is the voice's own).
        pitch_range: Liveliness of the intonation on the same scale.
    """

    language: str
    variant: str
    speed_wpm: int
    pitch: int
    pitch_range: int

    @property
    def espeak_name(self) -> str:
        return f"{self.language}+{self.variant}" if self.variant else self.language


class EspeakSynthesiser:
    """eSpeak NG, loaded anew: what it says depends on the request only.

    The library keeps state from one text to the next (the phase of the voice, of its flutter, of its noise, the echo), which
    `espeak_Terminate` does not reset, so that the samples of a text would depend on what was spoken before. Only loading
    the library again resets all of it (8 ms); hence one object for each utterance, used as a context manager.

    Raises:
        InputError: espeakng-loader is not installed, or its library does not load.
    """

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise InputError("generated speech needs espeakng-loader: pip install espeakng-loader") from error
        try:
            self._library = ctypes.CDLL(espeakng_loader.get_library_path())
            self._data_folder = espeakng_loader.get_data_path()
        except (OSError, RuntimeError) as error:
            raise InputError(f"espeakng-loader's library does not load: {error}; reinstall espeakng-loader") from error
        self._chunks: list[np.ndarray] = []
        # Kept as an attribute: eSpeak holds only the pointer, and Python would free the callback.
        self._callback = _SynthCallback(self._receive)
        rate_hz = self._library.espeak_Initialize(
            _AUDIO_OUTPUT_SYNCHRONOUS, _CALLBACK_MILLISECONDS, self._data_folder.encode(), _INITIALIZE_DONT_EXIT
        )
        if rate_hz <= 0:
            raise InputError(f"eSpeak NG cannot read its data in {self._data_folder}; reinstall espeakng-loader")
        self.sample_rate_hz: int = rate_hz
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(_RANDOM_SEED))
        self._library.espeak_SetSynthCallback(self._callback)

    def __enter__(self) -> EspeakSynthesiser:
        return self

    def __exit__(self, *_exception) -> None:
        self._library.espeak_Terminate()
        _unload(self._library._handle)

    def _receive(self, samples, count: int, _events) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        return _CONTINUE

    def version(self) -> str:
        """eSpeak NG's version, e.g. ``1.52.0``."""
        self._library.espeak_Info.restype = ctypes.c_char_p
        return self._library.espeak_Info(None).decode()

    def speak(self, text: str, voice: VoiceSettings) -> np.ndarray:
        """Say one text.

        Args:
            text: English; punctuation shapes pauses and intonation.
            voice: How.

        Returns:
            int16 [samples] at `sample_rate_hz`; empty if there is nothing to say.

        Raises:
            InputError: eSpeak has no such voice.
        """
        self._chunks = []
        # eSpeak passes over an unknown variant without a word.
        known = not voice.variant or Path(self._data_folder, "voices", "!v", voice.variant).is_file()
        if not known or self._library.espeak_SetVoiceByName(voice.espeak_name.encode()) != _OK:
            raise InputError(f"eSpeak NG has no voice {voice.espeak_name!r}")
        for parameter, value in (
            (_PARAMETER_RATE, voice.speed_wpm),
            (_PARAMETER_VOLUME, _VOLUME),
            (_PARAMETER_PITCH, voice.pitch),
            (_PARAMETER_RANGE, voice.pitch_range),
        ):
            self._library.espeak_SetParameter(parameter, value, 0)
        data = text.encode()
        self._library.espeak_Synth(data, ctypes.c_size_t(len(data) + 1), 0, _POS_CHARACTER, 0, _CHARS_UTF8, None, None)
        self._library.espeak_Synchronize()
        return np.concatenate(self._chunks) if self._chunks else np.zeros(0, np.int16)
