"""Libraries that search beams, by the names that commands know them by (apart from the decoders themselves, so that `--help` is quick)."""

DECODERS = {
    "pyctcdecode": "any word, those that the language model does not list at a penalty",
    "ctc-beam-decoder": "the same search in C++",
    "flashlight": "flashlight-text in C++: only words that the language model lists, no hot words",
}
