"""Which utterances CTC can be trained on, and that most are found fit without asking the tokenizer."""

import random

import pytest
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource

from lact_asr.data.corpora import Corpus
from lact_asr.data.ctc_fit import drop_unfit, find_unfit, frames_needed
from lact_asr.errors import InputError
from lact_asr.processing_hybrid_asr import HybridASRProcessor
from lact_asr.text import build_vocabulary


@pytest.fixture
def tokenizer():
    return HybridASRProcessor.from_vocabulary(build_vocabulary()).tokenizer


def make_cut(name: str, seconds: float, text: str) -> MonoCut:
    source = AudioSource("file", [0], f"{name}.wav")
    recording = Recording(name, [source], sampling_rate=16_000, num_samples=round(seconds * 16_000), duration=seconds)
    supervision = SupervisionSegment(name, name, start=0, duration=seconds, text=text)
    return MonoCut(name, start=0, duration=seconds, channel=0, supervisions=[supervision], recording=recording)


def make_corpus(*cuts: MonoCut) -> Corpus:
    return Corpus("a corpus", CutSet.from_cuts(cuts))


def ids(corpus: Corpus) -> list[str]:
    return [cut.id for cut in corpus.cuts]


def problem_names(corpus: Corpus) -> list[tuple[str, str]]:
    return [(problem.kind, problem.name) for problem in corpus.problems]


def stock_frames(samples):
    return (samples - 400) // 320 + 1


def test_frames_needed_counts_repeats():
    assert frames_needed([1, 2, 3]) == 3
    assert frames_needed([1, 1, 2, 2, 2]) == 8
    assert frames_needed([]) == 0


def test_drop_unfit_counts_and_names(tokenizer):
    corpus = make_corpus(
        make_cut("fits", 0.5, "AB" * 12),  # 24 frames
        make_cut("one label too many", 0.5, "AB" * 12 + "A"),
        make_cut("one repeat too many", 0.5, "AB" * 11 + "CC"),
        make_cut("not after cropping", 3.0, "AB" * 30),  # 149 frames; 49 after cropping to a second
        make_cut("fits cropped", 3.0, "AB" * 20),
    )
    fitting = drop_unfit(corpus, stock_frames, tokenizer, crop_samples=16_000)
    assert ids(fitting) == ["fits", "fits cropped"]
    assert [name for _, name in problem_names(fitting)] == [
        "one label too many",
        "one repeat too many",
        "not after cropping",
    ]
    assert fitting.problems[0].sentence == "one label too many: 24 frames cannot hold 25 labels, which need 25"
    assert ids(drop_unfit(corpus, stock_frames, tokenizer)) == ["fits", "not after cropping", "fits cropped"]
    short = drop_unfit(corpus, stock_frames, tokenizer, max_audio_seconds=2.0)
    assert problem_names(short)[2:] == [("longer than 2 s", "not after cropping"), ("longer than 2 s", "fits cropped")]
    with pytest.raises(InputError, match=r"no utterance of .* can be used"):
        drop_unfit(corpus, stock_frames, tokenizer, max_audio_seconds=0.1)


def test_drop_unfit_names_what_the_vocabulary_cannot_spell():
    tokens = ["<pad>", "<s>", "</s>", "<unk>", "|", "A", "B"]
    tokenizer = HybridASRProcessor.from_vocabulary({token: number for number, token in enumerate(tokens)}).tokenizer
    corpus = make_corpus(make_cut("one", 5, "A B"), make_cut("other", 5, "A ZOO"))
    fitting = drop_unfit(corpus, stock_frames, tokenizer)
    assert ids(fitting) == ["one"]
    assert problem_names(fitting) == [("characters outside of the vocabulary", "other")]


def test_finds_what_the_tokenizer_would_say_of_every_transcript(tokenizer):
    draw = random.Random(0)
    cuts = [
        make_cut(str(number), draw.uniform(0.1, 1.2), " ".join("".join(draw.choices("AB'é", (9, 9, 1, 1), k=3)) for _ in range(5)))
        for number in range(300)
    ]  # fmt: skip

    def fits(cut: MonoCut) -> bool:
        labels = tokenizer(cut.supervisions[0].text).input_ids
        return tokenizer.unk_token_id not in labels and stock_frames(cut.num_samples) >= frames_needed(labels)

    found = [problem is None for problem in find_unfit(cuts, stock_frames, tokenizer)]
    assert found == list(map(fits, cuts))
    assert 50 < sum(found) < 250


def test_the_tokenizer_is_not_asked_for_transcripts_with_frames_to_spare(tokenizer):
    asked = []

    class Tokenizer:
        unk_token_id = tokenizer.unk_token_id

        def __call__(self, text: str):
            asked.append(text)
            return tokenizer(text)

    cuts = [make_cut(str(number), 5.0, f"AB BA {'A' * number}".strip()) for number in range(30)]
    assert find_unfit(cuts, stock_frames, Tokenizer()) == [None] * 30
    assert sorted(asked) == [" ", "A", "B"]
