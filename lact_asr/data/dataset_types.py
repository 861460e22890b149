"""How a corpus may be laid out, without the libraries that read one."""

DATASET_TYPES = {
    "librispeech": "LibriSpeech's folders",
    "manifest": "JSON lines, SUBSET.jsonl",
    "shar": "folders that lact-asr data shar made",
}
