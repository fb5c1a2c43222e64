"""Are counts of a chunked text those of the published tokenizer on the whole text?"""

from collections import Counter
from functools import cache

import numpy as np
import pytest
import xarray as xr
from hypothesis import example, given, settings, strategies as st

import interp
from interp import models, views
from interp.errors import InterpError
from interp.experiments.occurrences import experiment, streaming
from interp.experiments.occurrences.experiment import verdict
from interp.request import Request

ODD = "naïve café \u3000\r\n\tИ 日本語 \U0001f600\u200d\U0001f600 <|endoftext|> 123 +=+ __init__ don't \x00 \ufeff"
PROSE = "def f(x):\n    return x + 1  # the sum\n\n" * 12


def independent(tokenizer, text):
    """Counts of a whole text, [token], by the tokenizer itself."""
    counts = Counter(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    return np.array([counts[i] for i in range(2048)])


@cache
def tokenizer_of(name):
    """The organism's, and others of other kinds: no regular expression, spaces in front, words by a dictionary."""
    if name == "organism":
        return models.load_tokenizer("organism")
    from tokenizers import Tokenizer, decoders, models as kinds, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    text = [PROSE, ODD, "aaaa bbbb abab the then there  them"]
    if name == "sentencepiece":
        made = Tokenizer(kinds.BPE(byte_fallback=True, unk_token="<unk>"))
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made.decoder = decoders.Replace("▁", " ")
        trainer = trainers.BpeTrainer(
            vocab_size=500, special_tokens=["<unk>", *(f"<0x{i:02X}>" for i in range(256))], show_progress=False
        )
    elif name == "unigram":
        made = Tokenizer(kinds.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=120, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
        )
    else:
        made = Tokenizer(kinds.WordPiece(unk_token="[UNK]"))
        made.normalizer = normalizers.BertNormalizer()
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]"], show_progress=False)
    made.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made)


def parts_of(text, sizes):
    """A text in pieces of these many characters, over and over."""
    at, k = 0, 0
    while at < len(text):
        size = sizes[k % len(sizes)]
        yield text[at : at + size]
        at, k = at + size, k + 1


def streamed(tokenizer, text, sizes, **options):
    encode = streaming.encoder(tokenizer)
    return streaming.counted(encode, parts_of(text, sizes), rows=2048, **options)


KINDS = ("organism", "sentencepiece", "unigram", "wordpiece")
_words = st.sampled_from(
    ["the ", "a", " ", "\n", "    ", "don't", "é", "日本", "\U0001f600", "1234", "_", "<|endoftext|>"]
)
_texts = st.lists(st.tuples(_words | st.text(max_size=6), st.integers(1, 60)), max_size=60).map(
    lambda parts: "".join(word * times for word, times in parts)
)


@pytest.mark.experiment
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(text=_texts, sizes=st.lists(st.integers(1, 700), min_size=1, max_size=5))
@example(text="a" * 3000, sizes=[700])
@example(text="a" * 1500 + " " * 1500 + "b", sizes=[333, 512])
@example(text=(ODD + PROSE) * 3, sizes=[1])
@example(text=(ODD + PROSE) * 3, sizes=[640])
@example(text="", sizes=[1])
def test_any_chunking_counts_what_the_tokenizer_makes_of_the_whole(kind, text, sizes):
    tokenizer = tokenizer_of(kind)
    found, after = streamed(tokenizer, text, sizes, overlap=128)
    assert after is None
    np.testing.assert_array_equal(found, independent(tokenizer, text))


def test_windows_are_joined_and_not_only_grown():
    """On plain text, no window that is tokenized is much longer than a piece and the overlap."""
    tokenizer, text, longest = tokenizer_of("organism"), PROSE * 20, []
    encode = streaming.encoder(tokenizer)

    def noted(part):
        longest.append(len(part))
        return encode(part)

    found, _ = streaming.counted(noted, parts_of(text, [1000]), rows=2048, overlap=256)
    np.testing.assert_array_equal(found, independent(tokenizer, text))
    assert len(longest) > 5
    assert max(longest) <= 1256


def test_windows_that_disagree_are_not_joined():
    """A tokenizer that pairs characters from the beginning of what it is given: any odd shift makes other tokens."""

    def pairs(text):
        start = np.arange(0, len(text), 2)
        end = np.minimum(start + 2, len(text))
        ids = np.array([(ord(text[a]) * 7 + ord(text[b - 1]) * 3) % 50 for a, b in zip(start, end, strict=True)], int)
        return streaming.Tokens(ids, start, end)

    text = "".join(chr(97 + (i * i + i // 3) % 26) for i in range(2999))
    whole = np.bincount(pairs(text).ids, minlength=50)
    for sizes in ([100], [101], [77, 130, 401]):
        found, _ = streaming.counted(pairs, parts_of(text, sizes), rows=50, overlap=64)
        np.testing.assert_array_equal(found, whole)


@pytest.mark.parametrize("kind", KINDS)
def test_counting_resumes_where_it_stopped(kind, tmp_path):
    tokenizer, text = tokenizer_of(kind), (ODD + PROSE) * 6
    (tmp_path / "text").write_bytes(text.encode())
    encode = streaming.encoder(tokenizer)
    place, total, stops = streaming.Place(), np.zeros(2048, int), 0
    while place is not None:
        texts = streaming.pieces(tmp_path / "text", place.byte, 400 + 37 * stops)
        found, place = streaming.counted(encode, texts, place, rows=2048, most=500, overlap=128)
        total, stops = total + found, stops + 1
    assert stops > 1
    np.testing.assert_array_equal(total, independent(tokenizer, text))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
def test_a_file_is_read_as_it_is(tmp_path, size):
    """Characters of several bytes across pieces, line ends of any kind, a byte order mark."""
    (tmp_path / "text").write_bytes(("\ufeff" + ODD).encode())
    assert "".join(streaming.pieces(tmp_path / "text", size=size)) == "\ufeff" + ODD


def counted(model, **options):
    return interp.run("occurrences", model, **options)


@pytest.fixture(scope="module")
def two_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    texts = {"one.txt": PROSE * 9 + ODD, "two.txt": "the " * 50 + "\r\n"}
    for name, text in texts.items():
        (folder / name).write_bytes(text.encode())
    return [str(folder / name) for name in texts], list(texts.values())


@pytest.mark.experiment
def test_counts_are_those_of_the_published_tokenizer(organism, two_files, monkeypatch):
    files, texts = two_files
    tokenizer = models.published_tokenizer(organism)
    expected = sum(independent(tokenizer, text) for text in texts)
    found = counted(organism, text=files)
    np.testing.assert_array_equal(found["count"].values, expected)
    assert found.attrs["tokens"] == expected.sum()
    assert found.attrs["bytes"] == sum(len(text.encode()) for text in texts)
    assert found.attrs["frequency_limit"] == pytest.approx(-np.log(0.05) / expected.sum())
    for name in found["group"].values:
        ids = found["group_of"].values == name
        assert int(found["group_size"].sel(group=name)) == ids.sum()
        assert float(found["occurring"].sel(group=name, bound="mean")) == pytest.approx((expected[ids] > 0).mean())
        assert float(found["of_text"].sel(group=name)) == pytest.approx(expected[ids].sum() / expected.sum(), abs=1e-6)
    detected = set(interp.undertrained.detected(organism))
    assert set(np.flatnonzero(found["group_of"].values == "detected")) == detected
    assert (found["group_of"] == "control").sum() == len(detected)
    assert found["exposure"].values[2047] == interp.exposure("organism").total[2047]
    assert found.attrs["verdict"].startswith("not testable: too few ordinary tokens")  # the text is short
    said = " ".join(" ".join(str(line) for line in views.tables(found)).split())
    assert f"{expected.sum():,} tokens of" in said
    assert set(views.figures(found)) == {"occurring_by_rank", "counts_by_indicator"}
    # in windows of 1,000 bytes, kept after every 2,000 characters
    monkeypatch.setattr(streaming, "WINDOW", 1000)
    monkeypatch.setattr(streaming.pieces, "__defaults__", (0, 1000))
    monkeypatch.setattr(streaming.counted, "__kwdefaults__", {"most": None, "overlap": 256})
    monkeypatch.setattr(experiment, "_PART", 2000)
    np.testing.assert_array_equal(counted(organism, text=files)["count"].values, expected)


@pytest.mark.resumption
def test_finished_parts_are_kept(organism, two_files, tmp_path, monkeypatch):
    files, _ = two_files
    monkeypatch.setattr(experiment, "_PART", 2000)
    monkeypatch.setattr(streaming.pieces, "__defaults__", (0, 1000))
    monkeypatch.setattr(streaming.counted, "__kwdefaults__", {"most": None, "overlap": 256})
    whole = counted(organism, text=files)
    made, part = [], experiment._count_part

    def interrupted(tokenizer, file, place, *rest):
        made.append((file, place))
        if len(made) == 2:
            raise KeyboardInterrupt
        return part(tokenizer, file, place, *rest)

    monkeypatch.setattr(experiment, "_count_part", interrupted)
    with pytest.raises(KeyboardInterrupt):
        counted(organism, text=files, out=tmp_path)
    again = counted(organism, text=files, out=tmp_path)
    assert len(made) == len(set(made)) + 1  # only the interrupted one
    assert len(made) > 3
    xr.testing.assert_identical(whole.drop_attrs(), again.drop_attrs())
    # another text is counted again
    with open(files[1], "a") as file:
        file.write("the ")
    more = counted(organism, text=files, out=tmp_path)
    assert int(more["count"].sum() - whole["count"].sum()) > 0


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        (b"caf\xe9 au lait", "is not UTF-8 \\(byte 3\\): give a UTF-8 text file"),
        (b"a" * 7 + "é".encode()[:1], "is not UTF-8 \\(byte 7\\): give"),
        (b"", "holds no token: give a text that is not empty"),
        (None, "cannot read .*: give a UTF-8 text file"),
    ],
)
def test_files_that_are_not_text_are_refused_in_one_line(organism, tmp_path, raw, line):
    if raw is not None:
        (tmp_path / "text").write_bytes(raw)
    with pytest.raises(InterpError, match=line) as error:
        counted(organism, text=str(tmp_path / "text"))
    assert "\n" not in str(error.value)


def test_an_unknown_indicator_is_refused(organism, two_files):
    with pytest.raises(InterpError, match="unknown indicator 'x': this model has e_out_cosine"):
        counted(organism, text=two_files[0], indicator="x")


def test_where_nothing_can_be_detected_tokens_are_counted_and_the_reason_is_given(wired, tmp_path):
    (tmp_path / "text").write_text("w1 w2 w2 w64")
    found = counted(wired, text=str(tmp_path / "text"))
    assert found["count"].values[[1, 2, 64]].tolist() == [1, 2, 1]
    assert found.attrs["verdict"] == f"not testable: {found.attrs['not_tested']}"
    assert "\n" not in found.attrs["not_tested"]
    assert found["value"].isnull().all()
    assert found["occurring"].sel(group="detected").isnull().all()
    assert list(views.figures(found)) == []


def test_the_control_decides_the_verdict():
    lots = (0.9, 0.85, 0.95)
    assert verdict((0.1, 0.05, 0.2), lots).endswith("detected tokens occur less often")
    assert verdict((0.99, 0.97, 1.0), lots).endswith("detected tokens occur more often")
    assert verdict((0.9, 0.8, 0.95), lots).endswith("no significant difference")
    assert verdict((0.1, 0.05, 0.2), (0.5, 0.4, 0.6)).startswith("not testable: too few ordinary tokens")
    assert verdict((np.nan, np.nan, np.nan), lots).startswith("no token is detected")
    assert verdict((0.1, 0.05, 0.2), lots, "no reason") == "not testable: no reason"


def test_a_command_names_several_files():
    request = Request.from_argv(["run", "occurrences", "--text", "a.txt", "b.txt", "--text=c.txt", "--seed", "3"])
    assert request.parameters == {"text": ["a.txt", "b.txt", "c.txt"]}
    assert request.seed == 3
    assert Request.from_argv(request.to_argv()) == request
    assert request.command() == "interp run occurrences --seed 3 --text a.txt --text b.txt --text c.txt"
    one = Request.of("occurrences", text="a.txt")
    assert Request.from_argv(one.to_argv()).parameters == {"text": ["a.txt"]}
