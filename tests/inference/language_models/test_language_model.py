"""N-gram models: trained, read back, and every file that is none refused with a sentence."""

import base64
import gzip
import json
import subprocess
import sys
import zlib

import pytest

from lact_asr.errors import EXIT_BAD_INPUT, InputError
from lact_asr.inference.build_language_model import main
from lact_asr.inference.language_models.language_model import load_language_model
from lact_asr.inference.language_models.ngram_training import build_ngram, read_transcripts

kenlm = pytest.importorskip("kenlm")

ENGLISH = "'ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SUBJECTS, VERBS = ("THE CAT", "A DOG", "MY OLD FRIEND", "THE BIRD", "A CHILD"), ("SEES", "LIKES", "FOLLOWS")
OBJECTS = ("THE GARDEN", "A RIVER", "MY HOUSE", "THE CAT")
SENTENCES = [
    f"{s} {v} {o}" for i, s in enumerate(SUBJECTS) for j, v in enumerate(VERBS) for o in OBJECTS[(i + j) % 2 :]
]

# KenLM probing binaries (written by build_binary) of a bigram model with the words THE and A, with and without their list at the end.
BINARY = (
    "c-qU&O)OBz$yLZGDJihh*U!#KO-##7%}LQq&d=3P&QD2INXswEO)OC;OD!tS%+FIW<zhg9274f}pAks>2Lg}?BUFY7OdhaD7Gp(`LjaI?L7n1W%eGRmTK0"
    "x6|4Uq=<}3`j0awoVkF~`QvO#8DNq%kmBafqz8ADaWeh>ko&z?E67m05V<wI!*;P}Lp(X!E4804qMqPHJvt7}?8Y-AH{O7pVq7;K7xSRY7)c(^h+G5`PzF+|h"
)
BINARY_WITHOUT_WORDS = (
    "c-qU&O)OBz$yLZGDJihh*U!#KO-##7%}LQq&d=3P&QD2INXswEO)OC;OD!tS%+FIW<zhg9274f}pAks>2Lg}?BUFY7OdhaDQp~`LB8MtoP^Y-pvaJ-XpS_"
    "{W{}Pv|IST`Bz?Jj;V{P$+Y>-)3l3$zt$m3{a#!%I;A4GuYvuDoiMdI5-`A`}HI6g6Dv}`mM2KlM6=<SEv>Y7#%8`(qvj%h#O"
)


def write_binary(path, encoded):
    path.write_bytes(zlib.decompress(base64.b85decode(encoded)))
    return path


@pytest.fixture(scope="module")
def arpa(tmp_path_factory):
    return build_ngram(SENTENCES, tmp_path_factory.mktemp("lm") / "lm.arpa", order=3)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_probabilities_sum_to_one_for_every_kind_of_history(tmp_path, order):
    loaded = load_language_model(build_ngram(SENTENCES, tmp_path / "lm.arpa", order))
    assert loaded.order == order
    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    assert loaded.words == frozenset(words)
    histories = [[], ["CAT"], ["THE", "CAT"], ["DOG", "SEES"], ["GARDEN", "A", "DOG"], ["UNHEARD"], ["GARDEN", "MY"]]
    for at_start in (False, True):
        for history in histories:
            state = kenlm.State()
            (loaded.model.BeginSentenceWrite if at_start else loaded.model.NullContextWrite)(state)
            for word in history:
                following = kenlm.State()
                loaded.model.BaseScore(state, word, following)
                state = following
            total = sum(10 ** loaded.model.BaseScore(state, word, kenlm.State()) for word in [*words, "</s>", "<unk>"])
            assert total == pytest.approx(1, abs=1e-5), (at_start, history)


def test_every_sentence_of_a_tiny_corpus_is_possible(tmp_path):
    """All n-grams seen once: Kneser-Ney's discount would be 1 and leave them no probability at all."""
    loaded = load_language_model(build_ngram(["ONE TWO THREE", "FOUR FIVE SIX"], tmp_path / "lm.arpa"))
    assert loaded.model.score("ONE TWO THREE") > -5
    assert loaded.model.score("ONE TWO THREE") > loaded.model.score("THREE TWO ONE")


def test_measure_counts_unknown_words_and_finds_the_model_less_surprised_by_its_training_text(arpa):
    loaded = load_language_model(arpa)
    trained = loaded.measure(SENTENCES)
    assert (trained.words, trained.unknown_words) == (sum(len(s.split()) for s in SENTENCES), 0)
    shuffled = loaded.measure([" ".join(reversed(s.split())) for s in SENTENCES])
    assert 1 < trained.perplexity < shuffled.perplexity / 2
    fit = loaded.measure(["THE ZEBRA SEES THE CAT", "A DOG"])
    assert (fit.sentences, fit.words, fit.unknown_words, fit.unknown_rate) == (2, 7, 1, pytest.approx(1 / 7))
    by_hand = loaded.model.score(
        "A DOG"
    )  # natural for one sentence: the product of its three conditional probabilities
    assert loaded.measure(["A DOG"]).perplexity == pytest.approx(10 ** (-by_hand / 3))


def test_gzip_written_and_read(arpa, tmp_path):
    packed = build_ngram(SENTENCES, tmp_path / "lm.arpa.gz")
    assert gzip.decompress(packed.read_bytes()) == arpa.read_bytes()
    assert load_language_model(packed).model.score("A DOG SEES") == load_language_model(arpa).model.score("A DOG SEES")


def test_binary_brings_its_words(tmp_path, caplog):
    loaded = load_language_model(write_binary(tmp_path / "lm.bin", BINARY), ENGLISH)
    assert (loaded.order, loaded.words) == (2, {"THE", "A"})
    assert not caplog.records
    bare = write_binary(tmp_path / "bare.bin", BINARY_WITHOUT_WORDS)
    assert load_language_model(bare, ENGLISH).words is None
    assert "no list of its words" in caplog.text
    (tmp_path / "bare.bin.unigrams.txt").write_text("THE\nA\nZEBRA\n")
    assert load_language_model(bare).words == {"THE", "A"}
    (tmp_path / "bare.bin.unigrams.txt").write_text("ZEBRA\n")
    with pytest.raises(InputError, match=r"bare\.bin\.unigrams\.txt holds no word"):
        load_language_model(bare)


def damaged_files(folder, arpa):
    """Files that are no language models, by the words of the sentence that says so."""
    text = arpa.read_text()
    noise = bytes((i * 7919 + i * i * 31) % 256 for i in range(5000))
    binary = zlib.decompress(base64.b85decode(BINARY))
    packed = gzip.compress(text.encode())
    third = text[: text.index("\\3-grams:") + 100]
    contents = {
        "text": (b"hello world\nthis is text\n", "neither an ARPA"),
        "empty": (b"", "is empty"),
        "noise": (noise, "neither"),
        "audio": (b"RIFF\x24\x00\x00\x00WAVEfmt " + noise, "neither"),
        "truncated": (third.encode(), "truncated"),
        "header_only": (text[: text.index("\\1-grams")].encode(), "truncated or damaged"),
        "one_gram": (text[: text.index("\\1-grams") + 60].encode(), "truncated"),
        "billions": (text.replace("ngram 3=", "ngram 3=99999999999").encode(), "truncated"),
        "fewer": (text.replace("ngram 2=", "ngram 2=1").encode(), "truncated|damaged"),
        "unigram": (b"\\data\\\nngram 1=2\n\n\\1-grams:\n-1\t</s>\n-1\tTHE\n\n\\end\\\n", "unigram model"),
        "gzip_truncated": (packed[: len(packed) // 2], "truncated"),
        "gzip_damaged": (packed[:40] + b"\0" * 40 + packed[80:], "uncompressed"),
        "gzip_of_text": (gzip.compress(b"hello\n"), "neither an ARPA"),
        "binary_truncated": (binary[:-100], "damaged"),
        "binary_header": (binary[:110], "damaged"),
        "binary_of_noise": (binary[:60] + noise, "damaged"),
    }
    for name, (content, message) in contents.items():
        path = folder / f"{name}.lm"
        path.write_bytes(content)
        yield path, message


def test_files_that_are_no_language_model(arpa, tmp_path):
    for path, message in damaged_files(tmp_path, arpa):
        with pytest.raises(InputError, match=message) as caught:
            load_language_model(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value), path
    with pytest.raises(InputError, match="does not exist"):
        load_language_model(tmp_path / "missing.arpa")
    with pytest.raises(InputError, match="is a folder"):
        load_language_model(tmp_path)


def test_an_unreadable_word_line_names_the_file(arpa, tmp_path):
    damaged = tmp_path / "damaged.arpa"
    damaged.write_text(arpa.read_text().replace("\tGARDEN\t", " "))
    with pytest.raises(InputError, match=r"damaged\.arpa .* damaged"):
        load_language_model(damaged)


def test_kenlm_prints_nothing(arpa):
    code = f"from lact_asr.inference.language_models.language_model import load_language_model; load_language_model({str(arpa)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_language_model_of_another_vocabulary(tmp_path, arpa):
    russian = build_ngram(
        ["привет мир", "как дела мир", "OK мама мыла раму", "я учусь говорить по русски"], tmp_path / "ru.arpa"
    )
    with pytest.raises(InputError, match=r"ru\.arpa is of another vocabulary: .* can be spelt"):
        load_language_model(russian, ENGLISH)
    assert load_language_model(russian).order == 3  # no complaint where nothing is known of the model
    load_language_model(arpa, ENGLISH)


def test_case_of_the_language_model_is_found(tmp_path, arpa):
    lower = build_ngram([sentence.lower() for sentence in SENTENCES], tmp_path / "lower.arpa")
    spelling = load_language_model(lower).spelling(ENGLISH)
    assert (spelling["A"], spelling["Z"], spelling["'"]) == ("a", "z", "'")
    assert load_language_model(arpa).spelling(ENGLISH)["A"] == "A"
    assert load_language_model(arpa).spelling(ENGLISH.lower())["a"] == "A"
    # With both cases in the acoustic model, folding would lose one of them.
    assert load_language_model(lower).spelling(ENGLISH + ENGLISH.lower())["A"] == "A"


@pytest.mark.parametrize("order", [0, 1, 6])
def test_impossible_order(tmp_path, order):
    with pytest.raises(InputError, match="order"):
        build_ngram(SENTENCES, tmp_path / "lm.arpa", order)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("texts", "message"), [([], "no words"), (["", " "], "no words"), (["A <unk> B"], "reserve")])
def test_texts_that_no_model_can_be_built_from_leave_nothing_behind(tmp_path, texts, message):
    with pytest.raises(InputError, match=message):
        build_ngram(texts, tmp_path / "lm.arpa")
    assert list(tmp_path.iterdir()) == []


def test_output_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write language model .* is not a folder"):
        build_ngram(SENTENCES, tmp_path / "file" / "lm.arpa")
    with pytest.raises(InputError, match="is a folder"):
        build_ngram(SENTENCES, tmp_path)


def test_transcripts_of_all_forms(tmp_path):
    manifest = tmp_path / "train.jsonl"
    manifest.write_text(
        "".join(json.dumps({"audio_filepath": "a.wav", "text": t}) + "\n" for t in ("Hello, world!", "…", "It’s"))
    )
    chapter = tmp_path / "train" / "19" / "198"
    chapter.mkdir(parents=True)
    (chapter / "19-198.trans.txt").write_text("19-198-0000 NORTHANGER ABBEY\n19-198-0001 THIS LITTLE WORK\n")
    (tmp_path / "plain.txt").write_text("one line\n\nanother line\n")
    assert read_transcripts(manifest) == ["HELLO WORLD", "IT'S"]
    assert read_transcripts(tmp_path / "train") == ["NORTHANGER ABBEY", "THIS LITTLE WORK"]
    assert read_transcripts(tmp_path / "plain.txt") == ["ONE LINE", "ANOTHER LINE"]


def test_command(tmp_path, capsys):
    training, held_out, output = tmp_path / "train.txt", tmp_path / "dev.txt", tmp_path / "deep" / "lm.arpa"
    training.write_text("\n".join(SENTENCES))
    held_out.write_text("the cat sees a zebra\n")
    assert (
        main(["--transcripts", str(training), "--order", "2", "--output", str(output), "--held_out", str(held_out)])
        == 0
    )
    printed = capsys.readouterr().out
    assert "2-gram model of 15 words" in printed
    assert "unknown words 1 (20.0%)" in printed
    assert load_language_model(output).order == 2


def test_command_says_what_is_wrong_with_transcripts(tmp_path, capsys):
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "fine"}\n{"text": \n')
    keyless = tmp_path / "keyless.jsonl"
    keyless.write_text('{"txt": "fine"}\n')
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x81")
    cases = {
        "broken.jsonl": "line 2",
        "keyless.jsonl": "line 1",
        "empty": "no .trans.txt files",
        "empty.txt": "no words",
        "binary.txt": "cannot be read as text",
        "missing": "do not exist",
    }
    for name, message in cases.items():
        output = tmp_path / "lm.arpa"
        assert main(["--transcripts", str(tmp_path / name), "--output", str(output)]) == EXIT_BAD_INPUT
        error = capsys.readouterr().err
        assert message in error
        assert name in error
        assert error.count("\n") == 1
        assert not output.exists()


def test_openslrs_librispeech_models_serve_as_they_are(tmp_path):
    """Their shape: SRILM's, gzip, an empty line ahead, upper case, no unknown word in the pruned ones."""
    arpa = """
\\data\\
ngram 1=5
ngram 2=4
ngram 3=2

\\1-grams:
-1.2\t</s>
-99\t<s>\t-0.8
-0.9\tBIRD\t-0.3
-0.8\tSINGS\t-0.2
-0.7\tTHE\t-0.4

\\2-grams:
-0.2\t<s> THE\t-0.1
-0.3\tBIRD SINGS\t-0.1
-0.4\tSINGS </s>
-0.5\tTHE BIRD\t-0.2

\\3-grams:
-0.1\t<s> THE BIRD
-0.2\tTHE BIRD SINGS

\\end\\
"""
    path = tmp_path / "3-gram.pruned.1e-7.arpa.gz"
    path.write_bytes(gzip.compress(arpa.encode()))
    model = load_language_model(path, "'ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    assert (model.order, model.words) == (3, {"BIRD", "SINGS", "THE"})
    # P(THE | <s>), P(BIRD | <s> THE), P(SINGS | THE BIRD), then P(</s> | SINGS) and the weight of BIRD SINGS for backing off to it.
    assert model.model.score("THE BIRD SINGS") == pytest.approx(-0.2 - 0.1 - 0.2 - 0.1 - 0.4, abs=1e-5)
    assert model.measure(["THE ZEBRA SINGS"]).unknown_words == 1
