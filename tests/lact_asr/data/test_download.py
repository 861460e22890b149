"""Downloads from a server of this test: what is asked for, what stands after it, and what a failure leaves."""

import http.server
import io
import tarfile
import threading

import numpy as np
import pytest
import soundfile

from lact_asr.data.corpora import load_corpus
from lact_asr.data.download import main


def archive(subset: str) -> bytes:
    """A subset of one utterance as OpenSLR packs it."""
    audio, packed = io.BytesIO(), io.BytesIO()
    soundfile.write(audio, 0.1 * np.random.default_rng(0).standard_normal(8_000), 16_000, format="FLAC")
    chapter = f"LibriSpeech/{subset}/1/2"
    contents = {
        f"{chapter}/1-2-0000.flac": audio.getvalue(),
        f"{chapter}/1-2.trans.txt": b"1-2-0000 HELLO\n",
        "LibriSpeech/SPEAKERS.TXT": b"1 | F | x | 1 | X\n",
    }
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


class _OpenSLR(http.server.BaseHTTPRequestHandler):
    """Serves ``server.files``, parts of them too; notes paths and ranges; sends only ``server.cut_off`` bytes if that is set."""

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers.get("Range")))
        content = self.server.files.get(self.path)
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        if content is None:
            self.send_error(404)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : self.server.cut_off])

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def server():
    """On a free port of this machine; ``server.url`` is its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _OpenSLR)
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.files, server.requests, server.cut_off = {}, [], None
    for number, subset in ((31, "train-clean-5"), (31, "dev-clean-2"), (12, "dev-clean")):
        server.files[f"/{number}/{subset}.tar.gz"] = archive(subset)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def fetch(server, tmp_path):
    """Run the command."""

    def run(corpus: str, *flags: str) -> int:
        return main([corpus, "--data_dir", str(tmp_path / "data"), "--base_url", server.url, *flags])

    return run


def test_a_corpus_is_fetched_once_and_can_be_loaded(fetch, server, tmp_path, capsys):
    assert fetch("mini_librispeech") == 0
    folders = [tmp_path / "data/LibriSpeech" / name for name in ("train-clean-5", "dev-clean-2")]
    assert capsys.readouterr().out.splitlines() == [str(folder) for folder in folders]
    assert [path for path, _ in server.requests] == ["/31/train-clean-5.tar.gz", "/31/dev-clean-2.tar.gz"]
    corpus = load_corpus(tmp_path / "data", "train-clean-5,dev-clean-2")
    assert corpus.texts == ["HELLO", "HELLO"]
    assert corpus.cuts[0].supervisions[0].gender == "f"
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["LibriSpeech"]  # no archives
    server.requests.clear()
    assert fetch("mini_librispeech") == 0
    assert server.requests == []


def test_only_the_named_subsets_are_fetched(fetch, server, capsys):
    assert fetch("librispeech", "--subset", "dev-clean") == 0
    assert [path for path, _ in server.requests] == ["/12/dev-clean.tar.gz"]
    assert fetch("mini_librispeech", "--subset", "train-clean-5,dev-clean") == 2
    sentence = "error: mini_librispeech has no subset 'dev-clean'; it has train-clean-5, dev-clean-2"
    assert capsys.readouterr().err.splitlines()[-1] == sentence
    assert len(server.requests) == 1


def test_what_is_not_there_is_one_sentence_and_leaves_nothing(fetch, server, tmp_path, capsys):
    assert fetch("librispeech", "--subset", "test-clean") == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith(
        f"error: test-clean cannot be downloaded from {server.url} to {tmp_path / 'data'}: HTTP Error 404"
    )
    assert list((tmp_path / "data").iterdir()) == []


def test_a_download_that_breaks_off_is_no_subset_and_goes_on_the_next_time(fetch, server, tmp_path, capsys):
    server.cut_off = 700
    assert fetch("librispeech", "--subset", "dev-clean") == 2
    assert "dev-clean cannot be downloaded" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "data").iterdir()] == [".download-dev-clean"]
    server.cut_off = None
    assert fetch("librispeech", "--subset", "dev-clean") == 0
    assert server.requests[-1] == ("/12/dev-clean.tar.gz", "bytes=700-")
    assert load_corpus(tmp_path / "data", "dev-clean").texts == ["HELLO"]
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["LibriSpeech"]


def test_a_damaged_archive_is_thrown_away(fetch, server, tmp_path, capsys):
    good = server.files["/12/dev-clean.tar.gz"]
    server.files["/12/dev-clean.tar.gz"] = b"<html>moved</html>" + good[18:]
    assert fetch("librispeech", "--subset", "dev-clean") == 2
    assert "dev-clean cannot be downloaded" in capsys.readouterr().err
    assert list((tmp_path / "data").iterdir()) == []
    server.files["/12/dev-clean.tar.gz"] = good
    assert fetch("librispeech", "--subset", "dev-clean") == 0


def test_no_connection_is_one_sentence(fetch, server, capsys):
    server.shutdown()
    server.server_close()
    assert fetch("mini_librispeech") == 2
    assert "Connection refused" in capsys.readouterr().err.splitlines()[-1]
