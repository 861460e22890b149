"""The one sample rate: here, so that the model need not import what reads audio files."""

SAMPLE_RATE_HZ = 16_000
