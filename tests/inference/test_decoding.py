"""Decoders against sums over all paths, hand-made alignments, and a real n-gram model."""

import gc
import importlib.util
import itertools
import math

import numpy as np
import pytest
import torch

from lact_asr.errors import InputError
from lact_asr.inference.decoder_names import DECODERS
from lact_asr.inference.decoding import (
    BeamSearchDecoder,
    CTCAlphabet,
    GreedyDecoder,
    Transcript,
    make_decoder,
    tune_language_model_weights,
)
from lact_asr.inference.language_models.language_model import load_language_model
from lact_asr.inference.language_models.ngram_training import build_ngram
from lact_asr.text import build_vocabulary

pytest.importorskip("pyctcdecode")

VOCABULARY = build_vocabulary()
BLANK = VOCABULARY["<pad>"]
SENTENCES = [
    f"{subject} {verb} {thing}"
    for subject in ("THE BIRD", "MY SISTER", "AN OLD MAN", "THE BALL", "EVERY BELL")
    for verb in ("SINGS IN", "WALKS TO", "LOOKS AT", "ROLLED INTO")
    for thing in ("THE GARDEN", "A GREEN RIVER", "MY HOUSE")
]


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    return load_language_model(build_ngram(SENTENCES, tmp_path_factory.mktemp("lm") / "lm.arpa"))


def frames_of(symbols, confidence=0.9, vocabulary=VOCABULARY):
    """Log-probabilities [T, V]: a symbol per frame ("_" for blank, "XY" for X just ahead of Y), the rest spread evenly."""
    rows = []
    for symbol in symbols:
        row = np.full(len(vocabulary), (1 - confidence) / len(vocabulary))
        tokens = ["<pad>"] if symbol == "_" else list(symbol)
        shares = [1.0] if len(tokens) == 1 else [0.55, 0.45]
        for token, share in zip(tokens, shares, strict=True):
            row[vocabulary["|" if token == " " else token]] += confidence * share
        rows.append(np.log(row))
    return torch.tensor(np.array(rows), dtype=torch.float32)


def spell(text, confidence=0.9):
    """Frames for a text: every character once, a blank after each."""
    return frames_of([symbol for character in text for symbol in (character, "_")], confidence)


INSTALLED = [
    name
    for name, module in {
        "pyctcdecode": "pyctcdecode",
        "ctc-beam-decoder": "ctc_beam_decoder",
        "flashlight": "flashlight",
    }.items()
    if importlib.util.find_spec(module)
]


@pytest.fixture(params=DECODERS)
def back_end(request):
    if request.param not in INSTALLED:
        pytest.skip(f"{request.param} is not installed: pip install 'lact-asr[decoders]'")
    return request.param


@pytest.fixture(params=["pyctcdecode", "ctc-beam-decoder"])
def open_back_end(request):
    """A back end that finds any word, and sums over all paths that spell a text."""
    if request.param not in INSTALLED:
        pytest.skip(f"{request.param} is not installed: pip install 'lact-asr[decoders]'")
    return request.param


def decoders():
    searches = [BeamSearchDecoder(VOCABULARY, BLANK, back_end=name) for name in INSTALLED]
    return [GreedyDecoder(VOCABULARY, BLANK), *searches]


@pytest.mark.parametrize("decoder", decoders(), ids=["greedy", *INSTALLED])
@pytest.mark.parametrize(
    ("alignment", "text"),
    [
        ("AA_B", "AB"),
        ("BEL_LL", "BELL"),
        ("BELL", "BEL"),
        ("_A__A_", "AA"),
        (" A  B ", "A B"),
        ("A_ _ _B", "A B"),
        ("IT'S", "IT'S"),
        ("____", ""),
        ("    ", ""),
    ],
)
def test_blanks_repeats_and_spaces(decoder, alignment, text):
    assert decoder.decode(frames_of(alignment)).text == text


@pytest.mark.parametrize("decoder", decoders(), ids=["greedy", *INSTALLED])
def test_words_carry_their_frames(decoder):
    transcript = decoder.decode(frames_of("__HHI_ __YOU_UU_"))
    assert transcript.text == "HI YOUU"
    spans = [(word.text, word.start_frame, word.end_frame) for word in transcript.words]
    assert spans == [("HI", 2, 5), ("YOUU", 9, 15)]


@pytest.mark.parametrize("decoder", decoders(), ids=["greedy", *INSTALLED])
def test_special_tokens_never_appear(decoder):
    log_probs = frames_of("CAT").repeat_interleave(2, dim=0)
    for token in ("<s>", "</s>", "<unk>"):
        shouted = log_probs.clone()
        shouted[:, VOCABULARY[token]] = 5.0
        assert decoder.decode(shouted).text == "CAT"
        # Without these tokens the same utterance scores the same: they take no probability from the others.
        silenced = log_probs.clone()
        silenced[:, VOCABULARY[token]] = -math.inf
        # flashlight merges hypotheses in the order of their addresses: of 1,800 scores of these frames 222 were off, by up to 0.010.
        assert decoder.decode(shouted).score == pytest.approx(decoder.decode(silenced).score, abs=0.03)


@pytest.mark.parametrize("decoder", decoders(), ids=["greedy", *INSTALLED])
def test_confidence_is_the_probability_that_its_frames_spell_the_word(decoder):
    log_probs = frames_of("_AAB_ B_", confidence=0.8)
    words = decoder.decode(log_probs).words
    alphabet = CTCAlphabet(VOCABULARY, BLANK)
    probabilities = np.exp(alphabet.prepare(log_probs, None))
    for word in words:
        frames, total = probabilities[word.start_frame : word.end_frame], 0.0
        for path in itertools.product(range(len(alphabet.labels)), repeat=len(frames)):
            if "".join(alphabet.labels[index] for index, _ in itertools.groupby(path)) == word.text:
                total += math.prod(frames[frame, index] for frame, index in enumerate(path))
        assert word.confidence == pytest.approx(total)
    assert words[0].text == "AB"
    assert words[0].confidence < words[1].confidence < 1


def test_words_put_in_by_the_language_model_are_doubted(back_end, language_model):
    log_probs = frames_of([*"THE B", "UI", *"RD SIN", "KG", *"S"], confidence=0.95)
    words = BeamSearchDecoder(VOCABULARY, BLANK, language_model, back_end=back_end).decode(log_probs).words
    assert [word.text for word in words] == ["THE", "BIRD", "SINGS"]
    assert words[1].confidence < 0.5 < 0.8 < words[0].confidence


def test_n_best_are_the_likeliest_texts_in_order(open_back_end):
    vocabulary, labels = {"<pad>": 0, "|": 1, "A": 2, "B": 3}, ["", " ", "A", "B"]
    log_probs = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(-1)
    totals = {}
    for path in itertools.product(range(4), repeat=5):
        text = text_of_path(path, labels)
        probability = math.exp(sum(log_probs[frame, index].item() for frame, index in enumerate(path)))
        totals[text] = totals.get(text, 0.0) + probability
    decoder = BeamSearchDecoder(
        vocabulary, 0, beam_size=1000, beam_threshold=50, token_threshold=50, n_best=4, back_end=open_back_end
    )
    best = decoder.decode(log_probs)
    found = [best, *best.alternatives]
    assert [transcript.text for transcript in found] == sorted(totals, key=totals.get, reverse=True)[:4]
    assert [math.exp(transcript.score) for transcript in found] == pytest.approx(
        [totals[transcript.text] for transcript in found], abs=1e-4
    )
    assert all([word.text for word in transcript.words] == transcript.text.split() for transcript in found)


def test_n_best_with_a_language_model_differ_in_early_words_too(open_back_end, language_model):
    log_probs = frames_of(["T", "H", "E", " ", *"B", "IE", "RL", "_", "DL", *" ROLLED INTO MY HOUSE"], confidence=0.7)
    best = BeamSearchDecoder(VOCABULARY, BLANK, language_model, n_best=5, back_end=open_back_end).decode(log_probs)
    texts = [best.text, *(other.text for other in best.alternatives)]
    assert len(set(texts)) == 5
    assert len({text.split()[1] for text in texts}) > 1
    scores = [best.score, *(other.score for other in best.alternatives)]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("with_language_model", [False, True])
def test_hot_words_are_heard_where_letters_compete(open_back_end, language_model, with_language_model):
    log_probs = frames_of([*"THE ", "ZS", *"EBR", "EA", *" LO_OKS AT MY HOUSE"], confidence=0.95)
    model = language_model if with_language_model else None
    plain = BeamSearchDecoder(VOCABULARY, BLANK, model, back_end=open_back_end).decode(log_probs)
    boosted = BeamSearchDecoder(
        VOCABULARY, BLANK, model, hot_words=["sebra park"], hot_word_weight=6.0, back_end=open_back_end
    ).decode(log_probs)
    assert "SEBRA" not in plain.text
    assert boosted.text == "THE SEBRA LOOKS AT MY HOUSE"
    if with_language_model:
        share = 0.5 * math.log(10) * model.model.score(boosted.text) + 6 * 1.5
        assert boosted.score == pytest.approx(boosted.acoustic_score + share + 6.0, abs=1e-3)


def test_flashlight_refuses_what_it_cannot_do():
    pytest.importorskip(
        "flashlight.lib.text", reason="flashlight-text is not installed: pip install 'lact-asr[decoders]'"
    )
    with pytest.raises(InputError, match="no hot words"):
        BeamSearchDecoder(VOCABULARY, BLANK, hot_words=["BIRD"], back_end="flashlight")


def test_a_last_word_that_is_cut_off_stays_as_far_as_it_was_spelt(language_model):
    pytest.importorskip(
        "flashlight.lib.text", reason="flashlight-text is not installed: pip install 'lact-asr[decoders]'"
    )
    decoder = BeamSearchDecoder(VOCABULARY, BLANK, language_model, beam_size=2, back_end="flashlight")
    transcript = decoder.decode(spell("THE GARD", 0.999))
    assert transcript.text == "THE GARD"
    assert -20 < transcript.score < 0
    assert transcript.words[-1].end_frame == 15


def test_unknown_back_ends_are_refused():
    with pytest.raises(InputError, match="'kaldi' is none of pyctcdecode, ctc-beam-decoder, flashlight"):
        BeamSearchDecoder(VOCABULARY, BLANK, back_end="kaldi")


def test_frames_of_silence_change_times_and_scores_but_no_search(back_end, language_model):
    def decode(pause):
        log_probs = frames_of([*"__THE_", *["_"] * pause, *" BIR_D", *["_"] * pause, *" SIN_GS"], confidence=0.995)
        decoder = BeamSearchDecoder(VOCABULARY, BLANK, language_model, back_end=back_end)
        return decoder.decode(log_probs), decoder.alphabet.prepare(log_probs, None)[0, 0]

    (short, silence), (long, _) = decode(0), decode(20)
    assert short.text == long.text == "THE BIRD SINGS"
    assert [word.start_frame for word in long.words] == [2, 27, 53] != [word.start_frame for word in short.words]
    assert long.score == pytest.approx(short.score + 40 * silence, abs=0.01)
    assert long.acoustic_score == pytest.approx(short.acoustic_score + 40 * silence, abs=0.01)


def test_a_blank_that_is_impossible_in_a_frame_keeps_scores_finite(back_end, language_model):
    log_probs = spell("THE BIRD", 0.99)
    log_probs[0, BLANK] = -math.inf
    transcript = BeamSearchDecoder(VOCABULARY, BLANK, language_model, back_end=back_end).decode(log_probs)
    assert transcript.text == "THE BIRD"
    assert math.isfinite(transcript.score)


def test_hot_words_of_other_characters_are_refused():
    with pytest.raises(InputError, match="'ПАРК' cannot be spelt"):
        BeamSearchDecoder(VOCABULARY, BLANK, hot_words=["ПАРК"])


def test_random_log_probs_give_only_letters_and_single_spaces():
    log_probs = torch.randn(4, 40, len(VOCABULARY), generator=torch.Generator().manual_seed(3)).mul(3).log_softmax(-1)
    for decoder in decoders():
        for transcript in decoder.decode_batch(log_probs, [40] * 4):
            assert set(transcript.text) <= set("'ABCDEFGHIJKLMNOPQRSTUVWXYZ ")
            assert transcript.text == " ".join(transcript.text.split())
            assert [word.text for word in transcript.words] == transcript.text.split()
            frames = [frame for word in transcript.words for frame in (word.start_frame, word.end_frame)]
            assert frames == sorted(frames)


@pytest.mark.parametrize("decoder", decoders(), ids=["greedy", *INSTALLED])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_padding_is_ignored(decoder, dtype):
    short, long = spell("GO").to(dtype), spell("STAY HERE").to(dtype)
    batch = torch.zeros(3, len(long), len(VOCABULARY), dtype=dtype)
    batch[0, : len(short)], batch[1] = short, long
    batch[0, len(short) :] = math.nan  # whatever stands in padding must not be looked at
    results = decoder.decode_batch(batch, torch.tensor([len(short), len(long), 0]))
    assert [result.text for result in results] == ["GO", "STAY HERE", ""]
    assert results[0].score == pytest.approx(decoder.decode(short).score, abs=0.01)
    assert results[0].words[0].confidence == decoder.decode(short).words[0].confidence
    assert results[2] == Transcript()


def test_numpy_and_tensors_decode_alike():
    # Nothing ties: which of equal candidates flashlight drops depends on where they lie in memory.
    log_probs = (spell("SAME") + 0.01 * torch.randn(8, len(VOCABULARY), generator=torch.manual_seed(0))).log_softmax(-1)
    for decoder in decoders():
        assert decoder.decode(log_probs.numpy()) == decoder.decode(log_probs)


@pytest.mark.parametrize("decoder", decoders(), ids=["greedy", *INSTALLED])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.index_fill(0, torch.tensor([1]), math.nan), "NaN"),
        (lambda x: x.index_fill(0, torch.tensor([1]), math.inf), "NaN or infinity"),
        (lambda x: x.index_fill(0, torch.tensor([1]), -math.inf), "no probability"),
        (lambda x: x[:, :5], "tokens"),
        (lambda x: x[0], "log_probs must be"),
    ],
)
def test_broken_log_probs_are_an_internal_error(decoder, change, message):
    with pytest.raises(ValueError, match=message) as caught:
        decoder.decode(change(spell("OK")))
    assert not isinstance(caught.value, InputError)


@pytest.mark.parametrize("length", [-1, 7])
def test_length_must_fit(length):
    with pytest.raises(ValueError, match="length"):
        GreedyDecoder(VOCABULARY, BLANK).decode(spell("ABC"), length)


def text_of_path(path, labels):
    merged = [label for label, _ in itertools.groupby(path)]
    return " ".join("".join(labels[index] for index in merged).split())


@pytest.mark.parametrize(
    ("vocabulary", "labels", "frame_count"),
    [({"<pad>": 0, "A": 1, "B": 2}, ["", "A", "B"], 4), ({"<pad>": 0, "|": 1, "A": 2, "B": 3}, ["", " ", "A", "B"], 5)],
)
def test_beam_search_without_language_model_is_exact_when_the_beam_is_wide(
    open_back_end, vocabulary, labels, frame_count
):
    decoder = BeamSearchDecoder(
        vocabulary, 0, beam_size=10_000, beam_threshold=math.inf, token_threshold=math.inf, back_end=open_back_end
    )
    differs_from_greedy = 0
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        log_probs = (
            torch.randn(frame_count, len(labels), generator=generator, dtype=torch.float64).log_softmax(-1).float()
        )
        totals = {}
        for path in itertools.product(range(len(labels)), repeat=frame_count):
            text = text_of_path(path, labels)
            probability = math.exp(sum(log_probs[t, index].item() for t, index in enumerate(path)))
            totals[text] = totals.get(text, 0.0) + probability
        best = max(totals, key=totals.get)
        transcript = decoder.decode(log_probs)
        assert transcript.text == best
        assert transcript.score == transcript.acoustic_score == pytest.approx(math.log(totals[best]), abs=1e-4)
        differs_from_greedy += GreedyDecoder(vocabulary, 0).decode(log_probs).text != best
    assert differs_from_greedy > 0  # else the sums over paths would not have been tested


def test_language_model_mends_spelling(back_end, language_model):
    # Where two letters compete, the wrong one is just ahead.
    log_probs = frames_of([*"THE B", "UI", *"RD SIN", "KG", *"S ", "IO", *"N THE GARD", "AE", "N"])
    greedy = GreedyDecoder(VOCABULARY, BLANK).decode(log_probs).text
    plain = BeamSearchDecoder(VOCABULARY, BLANK, back_end=back_end).decode(log_probs)
    mended = BeamSearchDecoder(VOCABULARY, BLANK, language_model, back_end=back_end).decode(log_probs)
    assert greedy == plain.text == "THE BURD SINKS IN THE GARDAN"
    assert mended.text == "THE BIRD SINGS IN THE GARDEN"
    assert [word.start_frame for word in mended.words] == [0, 4, 9, 15, 18, 22]
    log_likelihood = language_model.model.score(mended.text) * math.log(10)
    assert mended.score == pytest.approx(mended.acoustic_score + 0.5 * log_likelihood + 6 * 1.5, abs=1e-3)


def test_words_that_the_language_model_does_not_know_survive_clear_speech(language_model):
    # Every letter costs 7 nats to change at this confidence, more than an unknown word.
    log_probs = spell("THE ZEBRA LOOKS AT XERXES", confidence=0.999)
    assert (
        BeamSearchDecoder(VOCABULARY, BLANK, language_model, beam_threshold=50).decode(log_probs).text
        == "THE ZEBRA LOOKS AT XERXES"
    )


@pytest.mark.parametrize("alignment", ["_" * 30, " " * 30, "_ " * 15])
def test_silence_stays_empty_with_a_language_model(back_end, language_model, alignment):
    transcript = BeamSearchDecoder(VOCABULARY, BLANK, language_model, back_end=back_end).decode(frames_of(alignment))
    assert (transcript.text, transcript.words) == ("", ())


def test_a_space_at_the_end_changes_nothing(back_end, language_model):
    decoder = BeamSearchDecoder(VOCABULARY, BLANK, language_model, back_end=back_end)
    without, with_space = (
        decoder.decode(spell("MY SISTER WALKS", 0.99)),
        decoder.decode(spell("MY SISTER WALKS ", 0.99)),
    )
    assert without.text == with_space.text == "MY SISTER WALKS"
    assert with_space.score - with_space.acoustic_score == pytest.approx(without.score - without.acoustic_score)


def test_lower_case_language_model_serves_an_upper_case_model(back_end, tmp_path, language_model):
    lower = load_language_model(build_ngram([text.lower() for text in SENTENCES], tmp_path / "lower.arpa"))
    log_probs = frames_of([*"THE B", "UI", *"RD SIN", "KG", "S"])
    expected = BeamSearchDecoder(VOCABULARY, BLANK, language_model, back_end=back_end).decode(log_probs)
    assert expected.text == "THE BIRD SINGS"
    actual = BeamSearchDecoder(VOCABULARY, BLANK, lower, back_end=back_end).decode(log_probs)
    assert (actual.text, actual.words) == (expected.text, expected.words)
    assert actual.score == pytest.approx(expected.score, abs=1e-6)


def test_language_model_of_another_vocabulary_is_refused(tmp_path):
    russian = load_language_model(build_ngram(["мама мыла раму", "мама мыла окно"], tmp_path / "ru.arpa"))
    with pytest.raises(InputError, match="another vocabulary"):
        BeamSearchDecoder(VOCABULARY, BLANK, russian)


@pytest.mark.parametrize(
    "options",
    [
        {"beam_size": 0},
        {"beam_threshold": -5.0},
        {"beam_threshold": math.nan},
        {"lm_weight": math.nan},
        {"word_score": math.inf},
        {"hot_word_weight": math.nan},
        {"n_best": 0},
    ],
)
def test_impossible_options(options):
    with pytest.raises(InputError, match=next(iter(options))):
        BeamSearchDecoder(VOCABULARY, BLANK, **options)


def test_vocabularies_without_what_decoding_needs(language_model):
    with pytest.raises(InputError, match="no character"):
        GreedyDecoder({"<pad>": 0, "<s>": 1, "<unk>": 2}, 0)
    with pytest.raises(InputError, match="one id"):
        GreedyDecoder({"<pad>": 0, "A": 1, "B": 1}, 0)
    with pytest.raises(InputError, match="word delimiter"):
        BeamSearchDecoder({"<pad>": 0, "A": 1}, 0, language_model)


def test_alphabet_leaves_out_what_is_no_text():
    alphabet = CTCAlphabet({"[PAD]": 3, "[UNK]": 2, "|": 0, "A": 1, "<s>": 4, "B C": 5, "▁": 6, "_": 7}, blank_id=3)
    assert list(zip(alphabet.columns.tolist(), alphabet.labels, strict=True)) == [
        (3, ""),
        (0, " "),
        (1, "A"),
        (6, "▁"),
        (7, "_"),
    ]


def test_underscores_and_word_pieces_are_plain_characters():
    """pyctcdecode takes `_` for a blank and `▁` for a sign of word pieces if it is left to guess."""
    vocabulary = {"<pad>": 0, "|": 1, "A": 2, "_": 3, "▁": 4}
    log_probs = torch.full((5, 5), -9.0)
    for frame, index in enumerate([2, 3, 1, 4, 2]):
        log_probs[frame, index] = 0.0
    for decoder in (GreedyDecoder(vocabulary, 0), BeamSearchDecoder(vocabulary, 0)):
        assert decoder.decode(log_probs).text == "A_ ▁A"


def test_decoders_release_their_language_model(language_model):
    from pyctcdecode.decoder import BeamSearchDecoderCTC

    gc.collect()
    before = len(BeamSearchDecoderCTC.model_container)
    decoder = BeamSearchDecoder(VOCABULARY, BLANK, language_model)
    assert len(BeamSearchDecoderCTC.model_container) == before + 1
    del decoder
    gc.collect()
    assert len(BeamSearchDecoderCTC.model_container) == before


def test_nothing_is_logged(language_model, caplog):
    BeamSearchDecoder(VOCABULARY, BLANK, language_model).decode(spell("THE BIRD"))
    BeamSearchDecoder(VOCABULARY, BLANK).decode(spell("THE BIRD"))
    assert caplog.records == []


def test_make_decoder_chooses(language_model):
    assert isinstance(make_decoder(VOCABULARY, BLANK), GreedyDecoder)
    assert isinstance(make_decoder(VOCABULARY, BLANK, beam_size=5), BeamSearchDecoder)
    chosen = make_decoder(VOCABULARY, BLANK, language_model=language_model, lm_weight=0.0)
    assert isinstance(chosen, BeamSearchDecoder)


def test_tuning_finds_weights_that_help(language_model):
    generator = torch.Generator().manual_seed(0)
    references = SENTENCES[::15]
    log_probs = [
        (spell(text, 0.4) + torch.randn(2 * len(text), len(VOCABULARY), generator=generator)).log_softmax(-1)
        for text in references
    ]

    def factory(lm_weight, word_score):
        return BeamSearchDecoder(
            VOCABULARY, BLANK, language_model, beam_size=20, lm_weight=lm_weight, word_score=word_score
        )

    lm_weight, word_score, table = tune_language_model_weights(log_probs, references, factory, (0.0, 0.5), (0.0, 1.5))
    by_weights = {(row.lm_weight, row.word_score): row.errors for row in table}
    assert list(by_weights) == [(0.0, 0.0), (0.0, 1.5), (0.5, 0.0), (0.5, 1.5)]
    assert by_weights[lm_weight, word_score].errors == min(errors.errors for errors in by_weights.values())
    assert lm_weight == 0.5
    assert by_weights[lm_weight, word_score].rate < by_weights[0.0, 0.0].rate
    with pytest.raises(ValueError, match="one reference"):
        tune_language_model_weights([], [], factory)


@pytest.mark.gpu
def test_tensors_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for decoder in decoders():
        assert decoder.decode(spell("ON DEVICE").cuda()).text == "ON DEVICE"
        assert decoder.decode_batch(spell("ON DEVICE").cuda()[None], torch.tensor([18]).cuda())[0].text == "ON DEVICE"
