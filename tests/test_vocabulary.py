"""Can every witness of the census be trusted, and every "impossible"? Each is checked independently."""

import codecs
import json
import random
import subprocess
import sys
from itertools import product
from types import SimpleNamespace

import pandas as pd
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from interp import models as bundled, results
from interp.errors import InterpError
from interp.vocabulary import KINDS, census, load_tokenizer, published_tokenizer, save, summary, survey

SHOWN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
HIDDEN = [b for b in range(256) if b not in SHOWN]
BYTE = {b: chr(b) for b in SHOWN} | {b: chr(0x100 + k) for k, b in enumerate(HIDDEN)}  # as GPT-2 writes bytes
POINTS = [chr(p) for p in range(0x110000) if not 0xD800 <= p < 0xE000]
WITHOUT_REGEX = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def written(data):
    return "".join(BYTE[b] for b in (data.encode() if isinstance(data, str) else data))


def vocabulary(*entries):
    return {entry: i for i, entry in enumerate(dict.fromkeys(entries))}


def fast(backend, pre=None, normalizer=None, decoder=None):
    if pre is not None:
        backend.pre_tokenizer = pre
    if normalizer is not None:
        backend.normalizer = normalizer
    if decoder is not None:
        backend.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def byte_level(merges=(), extra=(), pre=WITHOUT_REGEX, normalizer=None, without=(), **options):
    """A byte-level BPE with an entry for each byte but those in `without`."""
    entries = [c for b, c in BYTE.items() if b not in without]
    known = vocabulary(*entries, *(a + b for a, b in merges), *extra)
    model = models.BPE(vocab=known, merges=list(merges), **options)
    return fast(Tokenizer(model), pre, normalizer, decoders.ByteLevel())


def metaspace(characters, merges=(), extra=(), normalizer=None, **options):
    """A BPE with byte fallback, built as Llama 2's is."""
    fallback = [f"<0x{b:02X}>" for b in range(256)]
    known = vocabulary("<unk>", "<s>", *fallback, "▁", *characters, *(a + b for a, b in merges), *extra)
    model = models.BPE(
        vocab=known, merges=list(merges), unk_token="<unk>", fuse_unk=True, byte_fallback=True, **options
    )
    replace = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer = fast(Tokenizer(model), None, normalizer or replace, decoders.Sequence(steps))
    tokenizer.add_special_tokens({"bos_token": "<s>", "unk_token": "<unk>"})
    return tokenizer


def encoded(tokenizer, texts):
    return tokenizer(list(texts), add_special_tokens=False)["input_ids"]


def held_by(tokenizer, texts):
    """Every id that some text holds."""
    return {i for ids in encoded(tokenizer, texts) for i in ids}


def checked(tokenizer, texts=()):
    """The census, after checking each witness, and that no text holds what is called impossible."""
    table = census(tokenizer)
    assert set(table["reachable"]) <= {"reachable", "impossible", "unknown"}
    assert (table["reason"] != "").all()
    found = table[table["reachable"] == "reachable"]
    for i, ids in zip(found["id"], encoded(tokenizer, found["witness"]) if len(found) else [], strict=True):
        assert i in ids, (i, table["text"][i], table["witness"][i])
    assert (table["witness"][table["reachable"] != "reachable"] == "").all()
    wrong = held_by(tokenizer, texts) & set(table.index[table["reachable"] == "impossible"]) if texts else set()
    assert not wrong, table.loc[sorted(wrong), ["text", "reason"]].to_string()
    return table


def short_texts(alphabet, most):
    return ["".join(t) for n in range(1, most + 1) for t in product(alphabet, repeat=n)]


def row(table, tokenizer, entry):
    return table.loc[tokenizer.get_vocab()[entry]]


# the organism


@pytest.mark.experiment
def test_witnesses_and_proofs_of_the_organism(organism):
    table = checked(organism.tokenizer)
    assert list(table.index) == list(range(2048))
    assert set(table["kind"]) <= set(KINDS)
    possible = {b for c in POINTS for b in c.encode()}
    impossible = {i for i, b in zip(table["id"], table["bytes"], strict=True) if set(bytes.fromhex(b)) - possible}
    assert set(table.index[table["reachable"] == "impossible"]) == impossible
    assert len(impossible) == 13
    assert not (table["reachable"] == "unknown").any()
    assert table.loc[2047, ["kind", "reachable", "witness"]].tolist() == ["special", "reachable", "<|endoftext|>"]
    for i, (left, right) in enumerate(zip(table["parent_left"], table["parent_right"], strict=True)):
        if left >= 0:
            assert table["bytes"][i] == table["bytes"][left] + table["bytes"][right]
            assert str(i) in table["part_of"][left].split()
            assert str(i) in table["part_of"][right].split()
    counts = summary(table)["count"]
    assert int(counts.sum()) == 2048
    assert int(counts.sel(kind="byte", reachable="impossible")) == 13


def test_the_summary_records_its_inputs_and_survey_stores_it(organism, tmp_path):
    counts = summary(census(organism))
    assert results.provenance(counts)["experiment"] == "census"
    assert (counts.attrs["model_name"], counts.attrs["tokenizer_name"]) == ("organism", "organism")
    assert (counts.attrs["tokenizer_scheme"], counts.attrs["rows"]) == ("byte-level BPE", 2048)
    assert counts.attrs["beyond_the_embedding"] == 0
    assert summary(census(load_tokenizer("organism"))).attrs["model_name"] == ""
    survey(organism, tmp_path)
    stored = results.load(tmp_path)
    assert results.provenance(stored)["experiment"] == "census"
    assert results.provenance(stored)["tokenizer"]["sha256"] == stored.attrs["tokenizer_sha256"]


def test_no_attributes_are_added_to_the_model():
    model = bundled.load("organism")
    before = set(model.__dict__)
    tokenizer = published_tokenizer(model)
    assert published_tokenizer(model) is tokenizer
    assert tokenizer is not model.tokenizer
    assert set(model.__dict__) == before


@pytest.mark.process
def test_the_census_loads_no_torch():
    names = "from interp.vocabulary import census, summary; from interp.undertrained import DEFAULT, detect"
    code = f"import sys; {names}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


def test_text_is_printable(organism):
    table = census(organism.tokenizer)
    assert all(t.isprintable() and "\ufffd" not in t for t in table["text"])
    assert row(table, organism.tokenizer, BYTE[0x0A])["text"] == "\\n"
    assert row(table, organism.tokenizer, BYTE[0xE2])["text"] == "<0xE2>"


# against exhaustive search


LETTERS = ["a", "b", " ", "1", "é", "€"]
SETTINGS = [  # and how many tokens may stay unknown: those that splitting always cuts
    ({}, 0),
    ({"pre": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)}, 8),
    ({"pre": pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)}, 8),
    ({"ignore_merges": True}, 0),
    ({"pre": pre_tokenizers.Sequence([pre_tokenizers.Digits(), WITHOUT_REGEX]), "ignore_merges": True}, 8),
    ({"normalizer": normalizers.NFC()}, 0),
]


def random_merges(rng, pieces, count):
    """Merges of pieces and of what was merged before, short ones."""
    pieces, merges = list(pieces), []
    while len(merges) < count:
        pair = (rng.choice(pieces), rng.choice(pieces))
        if len("".join(pair)) <= 5 and pair not in merges:
            merges.append(pair)
            pieces.append("".join(pair))
    return merges


def never_missed(table, tokenizer, texts, most_unknown):
    """Whatever the texts hold, the census has found; and it leaves few open."""
    missed = [i for i in held_by(tokenizer, texts) if table["reachable"][i] != "reachable"]
    assert not missed, table.loc[missed, ["text", "reachable", "reason"]].to_string()
    left = table[table["reachable"] == "unknown"]
    assert len(left) <= most_unknown, left[["text", "reason"]].to_string()


@pytest.mark.experiment
@pytest.mark.parametrize("setting", range(len(SETTINGS)))
@pytest.mark.parametrize("seed", [0, 1])
def test_random_byte_level_tokenizers_against_every_short_text(setting, seed):
    options, most_unknown = SETTINGS[setting]
    merges = random_merges(random.Random(10 * setting + seed), written("".join(LETTERS) + "é€e"), 40)
    tokenizer = byte_level(merges, extra=[written("abé€")], **options)
    texts = short_texts(LETTERS, 4)
    never_missed(checked(tokenizer, texts), tokenizer, texts, most_unknown)


@pytest.mark.experiment
def test_random_byte_level_tokenizers_with_a_byte_left_out():
    for seed in range(2):
        pieces = [c for c in written("".join(LETTERS)) if c != BYTE[0xA9]]
        tokenizer = byte_level(random_merges(random.Random(seed), pieces, 40), without={0xA9})
        checked(tokenizer, short_texts(LETTERS, 4))


def is_utf8(data):
    """Does some valid text hold these bytes, as Python's own codec sees it?"""
    letters = "aéࠀ中\ud7ff\ue000\U00010000\U00040000\U0010ffff"  # one for each way in which a character goes on
    beginnings = {c.encode()[:k] for c in letters for k in range(len(c.encode()))}
    for beginning in beginnings:
        try:
            codecs.getincrementaldecoder("utf-8")().decode(beginning + data)
        except UnicodeDecodeError:
            continue
        return True
    return False


def test_random_byte_sequences_are_checked_for_valid_utf8():
    rng = random.Random(0)
    edges = [0x61, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC1, 0xC2, 0xE0, 0xE1, 0xED, 0xEF, 0xF0, 0xF1, 0xF4, 0xF5]
    tokenizer = byte_level(random_merges(rng, [BYTE[b] for b in edges], 400))
    table = census(tokenizer)
    said = table["reason"].str.startswith("no valid UTF-8 contains")
    assert list(said) == [not is_utf8(bytes.fromhex(b)) for b in table["bytes"]]
    assert said.sum() > 250


@pytest.mark.experiment
@pytest.mark.parametrize("seed", range(4))
def test_random_fragments_against_every_completion(seed):
    """All completions of a first byte but a few merge, and so does some of what stands around."""
    rng = random.Random(seed)
    first = BYTE[0xC3]
    closed = [(first, BYTE[b]) for b in range(0x80, 0xC0) if rng.random() > 0.03 * (seed % 2)]
    merges = [*random_merges(rng, [*written("aé€ "), first, BYTE[0xA9]], 12), *closed]
    if seed >= 2:
        rng.shuffle(merges)
    tokenizer = byte_level(list(dict.fromkeys(merges)), ignore_merges=seed == 3)
    texts = [a + chr(p) + b for a in ["", *"aé€ "] for p in range(0xC0, 0x100) for b in ["", *short_texts("aé€ ", 2)]]
    never_missed(checked(tokenizer, texts), tokenizer, texts, 0)


@pytest.mark.experiment
@pytest.mark.parametrize("literal", [False, True])
@pytest.mark.parametrize("ignore_merges", [False, True])
def test_random_tokenizers_with_byte_fallback(literal, ignore_merges):
    rng = random.Random(2 * literal + ignore_merges)
    characters = [*"ab1é", *("<0xF5>" if literal else "<0C3>")]
    spelled = [("<", "0"), ("<0", "x"), ("<0x", "F"), ("<0xF", "5"), ("<0xF5", ">")] if literal else []
    merges = [*spelled, *random_merges(rng, ["▁", *characters], 30)]
    tokenizer = metaspace(characters, list(dict.fromkeys(merges)), ["ab1é"], ignore_merges=ignore_merges)
    texts = short_texts(["a", "b", " ", "1", "é", "<0xF5>", "<0xC3>"], 4)
    table = checked(tokenizer, texts)
    # with ignore_merges any entry could be a whole word, so nothing is proved of it
    never_missed(table, tokenizer, texts, 40 if ignore_merges else 0)
    expected = "reachable" if literal else "unknown" if ignore_merges else "impossible"
    assert row(table, tokenizer, "<0xF5>")["reachable"] == expected
    assert row(table, tokenizer, "<0xC3>")["reachable"] == "reachable"  # every other letter with C3


# planted defects


@pytest.mark.experiment
def test_a_token_that_no_merge_makes():
    tokenizer = byte_level([("a", "b")], extra=["abc"])
    table = checked(tokenizer, short_texts("abc", 6))
    planted = row(table, tokenizer, "abc")
    assert planted["reachable"] == "impossible"
    assert planted["reason"] == "its symbols merge to 'ab' 'c', whatever surrounds them"
    as_whole_word = byte_level([("a", "b")], extra=["abc"], ignore_merges=True)
    assert row(checked(as_whole_word), as_whole_word, "abc")["witness"] == "abc"


def test_a_token_that_pretokenization_always_splits():
    pre = pre_tokenizers.Sequence([pre_tokenizers.Digits(), WITHOUT_REGEX])
    tokenizer = byte_level([("a", "1")], pre=pre)
    planted = row(checked(tokenizer, short_texts("a1 ", 6)), tokenizer, "a1")
    assert planted["reachable"] == "unknown"
    assert planted["reason"].startswith("tried its own text, 575 contexts")
    assert planted["reason"].endswith("by itself it is split into several words")


@pytest.mark.experiment
def test_a_fragment_whose_every_completion_merges_away():
    first = BYTE[0xC3]
    every = [(first, BYTE[b]) for b in range(0x80, 0xC0)]
    texts = [a + c + b for a in ["", "a", "é"] for c in POINTS[0xC0:0x100] for b in ["", "a", "é", "€"]]
    assert {c for c in POINTS if c.encode()[0] == 0xC3} == set(POINTS[0xC0:0x100])  # no other letter begins so
    closed = byte_level(every)
    planted = row(checked(closed, texts), closed, first)
    assert planted["reachable"] == "impossible"
    assert planted["reason"] == "every neighbour that completes its characters merges into it"
    left_open = byte_level([m for m in every if m[1] != BYTE[0xA9]])
    assert "é" in row(checked(left_open, texts), left_open, first)["witness"]
    # é merges away by itself, and not where its second byte has merged to the right
    taken = byte_level([(BYTE[0xA9], BYTE[0xE2]), *every])
    planted = row(checked(taken, texts), taken, first)
    assert planted["reachable"] == "reachable"
    assert planted["reason"] == "between tokens that keep it whole"
    assert "é" in planted["witness"]
    assert len(planted["witness"]) >= 2


def test_a_token_that_only_longer_text_holds():
    """Decoded and encoded again it is lost, which the published categories call unreachable."""
    pre = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex("b(?!1)"), "isolated"), WITHOUT_REGEX])
    tokenizer = byte_level([("a", "b")], pre=pre)
    planted = row(checked(tokenizer, short_texts("ab1", 5)), tokenizer, "ab")
    assert planted["category"] == "UNREACHABLE_MULTI_TOKEN"
    assert not planted["roundtrip"]
    assert planted["reachable"] == "reachable"
    assert "ab1" in planted["witness"]


@pytest.mark.experiment
@pytest.mark.parametrize(("form", "entry"), [(normalizers.NFC, "e\u0301"), (normalizers.NFD, "é")])
def test_a_token_that_normalizing_changes(form, entry):
    entry = written(entry)
    merges = [(entry[:k], entry[k]) for k in range(1, len(entry))]
    tokenizer = byte_level(merges, normalizer=form())
    texts = short_texts(["e", "é", "\u0301", "a"], 5)
    planted = row(checked(tokenizer, texts), tokenizer, entry)
    name = form.__name__
    assert planted["reachable"] == "impossible"
    assert planted["reason"] == f"text is normalized to {name}, and this is not in {name}"


@pytest.mark.parametrize("rows", [2048 + 5, 2040])
def test_embedding_rows_without_entry_and_entries_without_row(tiny_gpt2, tmp_path, rows):
    import shutil

    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    size = {"vocab_size": rows, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 1}
    with torch.random.fork_rng():
        GPT2LMHeadModel(GPT2Config(**size, bos_token_id=0, eos_token_id=0)).save_pretrained(tmp_path / "tiny")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_gpt2 / name, tmp_path / "tiny" / name)
    model = bundled.load(str(tmp_path / "tiny"))
    table = census(model)
    assert list(table["id"]) == list(range(rows))
    known = set(model.tokenizer.get_vocab().values())
    beyond = table[table["kind"] == "beyond"]
    assert set(beyond["id"]) == set(range(rows)) - known
    assert len(beyond) == max(0, rows - 2048)
    assert (beyond["reason"] == "no tokenizer entry maps to this row").all()
    assert (beyond["reachable"] == "impossible").all()
    assert (beyond["category"] == "").all()
    assert list(beyond["text"]) == [f"[{i}]" for i in beyond["id"]]
    provenance = table.attrs["provenance"]
    assert provenance["rows"] == rows
    assert provenance["tokenizer"]["beyond_the_embedding"] == max(0, 2048 - rows)
    assert provenance["model"]["name"] == str(tmp_path / "tiny")
    assert list(census(model.tokenizer)["id"]) == list(range(2048))  # cached facts are not mixed up


# where a proof would not hold


@pytest.mark.experiment
def test_the_unknown_token_is_never_called_impossible():
    without = {b for b in range(256) if b > 0x7F}
    tokenizer = byte_level([("a", "b")], extra=["<unk>"], without=without, unk_token="<unk>")
    assert row(checked(tokenizer, ["é", "aé"]), tokenizer, "<unk>")["reachable"] == "reachable"
    everything = byte_level(extra=["<unk>"], unk_token="<unk>")
    assert row(checked(everything), everything, "<unk>")["reachable"] == "unknown"
    merged = metaspace("ab", [("<unk>", "a"), ("<0xC3>", "<0xA9>")])
    merged = checked(merged, ["é", "\ud7ff", *short_texts("ab€", 4)])
    assert set(merged["reachable"][merged["text"].isin(["<unk>a", "<0xC3><0xA9>"])]) <= {"unknown", "reachable"}


def test_a_byte_without_entry_is_left_out_and_brings_others_together():
    """é and © lose their second byte, so that C3 and C2 stand in a row, which no valid UTF-8 has."""
    tokenizer = byte_level([(BYTE[0xC3], BYTE[0xC2])], without={0xA9})
    joined = tokenizer.get_vocab()[BYTE[0xC3] + BYTE[0xC2]]
    assert joined in encoded(tokenizer, ["é©"])[0]
    assert checked(tokenizer, ["é©"])["reachable"][joined] != "impossible"
    composed = models.BPE(vocab={"e": 0, "\u0301": 1, "e\u0301": 2}, merges=[("e", "\u0301")])
    tokenizer = fast(Tokenizer(composed), None, normalizers.NFC())
    assert encoded(tokenizer, ["e中\u0301"]) == [[2]]
    assert checked(tokenizer, ["e中\u0301"])["reachable"][2] != "impossible"


@pytest.mark.experiment
@pytest.mark.parametrize("split", [pre_tokenizers.Split(BYTE[0xA9], "isolated"), pre_tokenizers.Digits()])
def test_words_may_be_split_inside_characters(split):
    """Turned into bytes before it is cut, text is cut between any bytes (B9 is written as a digit, ¹)."""
    first = BYTE[0xC3]
    every = [(first, BYTE[b]) for b in range(0x80, 0xC0)]
    pre = pre_tokenizers.Sequence([WITHOUT_REGEX, split])
    for tokenizer in (byte_level(every, pre=pre), byte_level(every, pre=split, normalizer=normalizers.ByteLevel())):
        assert tokenizer.get_vocab()[first] in held_by(tokenizer, ["é", "ù"])
        checked(tokenizer, POINTS[0xC0:0x100])
    nested = byte_level(every, pre=pre_tokenizers.Sequence([pre_tokenizers.Sequence([WITHOUT_REGEX])]))
    assert row(checked(nested, POINTS[0xC0:0x100]), nested, first)["reachable"] == "impossible"


@pytest.mark.experiment
def test_byte_tokens_of_characters_that_are_put_in_or_matched_elsewhere():
    most = [c for c in POINTS[:0x80] if c != "a"]
    swap, lower = normalizers.Replace("a", "b"), normalizers.Lowercase()
    before = metaspace(most, normalizer=normalizers.Sequence([swap, lower]))
    assert row(checked(before, ["A"]), before, "<0x61>")["reachable"] == "reachable"
    after = metaspace(most, normalizer=normalizers.Sequence([lower, swap]))
    assert row(checked(after, POINTS[:0x250]), after, "<0x61>")["reachable"] == "impossible"
    alone = metaspace([c for c in POINTS[:0x100] if c != "©"])
    alone.add_tokens([AddedToken("©", single_word=True)])
    assert row(checked(alone, ["b©b", "©"]), alone, "<0xC2>")["reachable"] == "reachable"


@pytest.mark.experiment
def test_ids_that_repeat_and_empty_entries(tmp_path):
    for known in ({"a": 0, "b": 1, "AA": 2, "c": 2}, {"a": 0, "b": 1, "c": 2, "zz": 2}):
        state = {"model": {"type": "BPE", "vocab": known, "merges": []}}
        (tmp_path / "tokenizer.json").write_text(json.dumps(state))
        checked(load_tokenizer(tmp_path), ["c", "abc"])
    for ignore_merges in (False, True):
        tokenizer = byte_level(extra=[""], ignore_merges=ignore_merges)
        assert row(checked(tokenizer, ["", "a"]), tokenizer, "")["reachable"] != "reachable"


def test_padding_and_truncation_kept_in_the_file_are_not_taken_for_text():
    backend = byte_level([("a", "b")], extra=["abab"]).backend_tokenizer
    backend.enable_padding(length=8, pad_id=backend.token_to_id("abab"), pad_token="abab")
    backend.enable_truncation(1)
    table = checked(PreTrainedTokenizerFast(tokenizer_object=backend))
    for text in ("abab", "ab", "!"):
        assert table["witness"][backend.token_to_id(text)] == text


# other algorithms, special tokens


def unigram(**options):
    pieces = [("<unk>", -9.0), ("▁", -2.0), ("a", -2.0), ("b", -2.0), ("▁ab", -1.0), ("ba", -1.5), ("abba", -30.0)]
    return fast(Tokenizer(models.Unigram(pieces, **options)), pre_tokenizers.Metaspace(), None, decoders.Metaspace())


def wordpiece(unknown="[UNK]"):
    known = vocabulary("[UNK]", "a", "1", "##b", "##bc", "ab", "abc", "##zz", "a b")
    return fast(Tokenizer(models.WordPiece(known, unk_token=unknown)), pre_tokenizers.BertPreTokenizer())


def wordlevel(unknown="[UNK]"):
    model = models.WordLevel(vocabulary("[UNK]", "a", "bc", "a b"), unk_token=unknown)
    return fast(Tokenizer(model), pre_tokenizers.Whitespace())


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        (unigram(unk_id=0), {"<unk>": "reachable", "▁ab": "reachable", "ba": "reachable", "abba": "unknown"}),
        (wordpiece(), {"[UNK]": "reachable", "##bc": "reachable", "abc": "reachable", "a b": "unknown"}),
        (wordlevel(), {"[UNK]": "reachable", "bc": "reachable", "a b": "unknown"}),
        # without an unknown token these refuse text
        (unigram(), {"a": "reachable", "ba": "reachable", "abba": "unknown"}),
        (wordpiece("[NONE]"), {"abc": "reachable", "a b": "unknown"}),
        (wordlevel("[NONE]"), {"bc": "reachable", "a b": "unknown"}),
    ],
)
def test_other_algorithms(tokenizer, expected):
    table = checked(tokenizer)
    assert {entry: row(table, tokenizer, entry)["reachable"] for entry in expected} == expected
    assert not (table["reachable"] == "impossible").any()
    for reason in table["reason"][table["reachable"] == "unknown"]:
        assert reason.startswith("tried its own text, 575 contexts")


def test_special_and_added_tokens():
    tokenizer = byte_level([(BYTE[0x20], "a"), ("a", "b")], pre=pre_tokenizers.ByteLevel(add_prefix_space=True))
    tokenizer.add_special_tokens({"bos_token": "<s>", "pad_token": "<pad>"})
    tokenizer.add_tokens([AddedToken("abra"), AddedToken("kadabra", single_word=True)])
    bos = tokenizer.get_vocab()["<s>"]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", bos)])
    assert tokenizer("a")["input_ids"][0] == bos
    table = checked(tokenizer, short_texts("ab ", 4))
    for text, kind in (("<s>", "special"), ("<pad>", "special"), ("abra", "added"), ("kadabra", "added")):
        assert row(table, tokenizer, text)[["kind", "witness"]].tolist() == [kind, text]
    assert row(table, tokenizer, "<s>")["category"] == "OK_SPECIAL"
    assert row(table, tokenizer, "<s>")["bytes"] == ""
    # the space put in front takes the "a", so that only further inside a word it is left to the "b"
    assert row(table, tokenizer, "ab")["reachable"] == "reachable"
    assert len(row(table, tokenizer, "ab")["witness"]) > 2
    assert row(table, tokenizer, BYTE[0x20] + "a")["reachable"] == "reachable"


# the published categories


def category(tokenizer, i, special, mark):
    """One token through decoding and encoding; with `mark` in front where a space is put in front of text."""
    if mark:
        (shield,) = encoded(tokenizer, [mark])[0][-1:]
        text = tokenizer.decode([shield, i], clean_up_tokenization_spaces=False).removeprefix(" ")
        assert text.startswith(mark)
        text = text.removeprefix(mark)
        again = encoded(tokenizer, [mark + text])[0]
        back = again[again.index(shield) + 1 :]
    else:
        text = tokenizer.decode([i], clean_up_tokenization_spaces=False)
        back = encoded(tokenizer, [text])[0]
    if back == [i]:
        return "OK_SPECIAL" if i in special else "OK"
    if len(text) > 2 and text[0] + text[-1] in ("<>", "[]", "<]", "[>") and any(map(str.isalpha, text)):
        return "UNREACHABLE_SPECIAL"
    if "\ufffd" in text:
        return "UNDECODEABLE"
    return "UNREACHABLE_SINGLE_TOKEN" if len(back) == 1 else "UNREACHABLE_MULTI_TOKEN"


@pytest.mark.experiment
def test_categories_token_by_token(organism):
    table = census(organism.tokenizer)
    assert list(table["category"]) == [category(organism.tokenizer, i, {2047}, "") for i in range(2048)]
    # the mark is a token, and so is it with the space put in front
    tokenizer = metaspace("abc1é«[]<x>", [("▁", "«"), ("a", "b"), ("ab", "c")], ["bc", "<x>", "[a]", "1é"])
    table = checked(tokenizer)
    special = set(tokenizer.all_special_ids)
    assert list(table["category"]) == [category(tokenizer, i, special, "«") for i in table["id"]]
    expected = {"ab": "OK", "<s>": "OK_SPECIAL", "bc": "UNREACHABLE_MULTI_TOKEN", "<x>": "UNREACHABLE_SPECIAL"}
    expected |= {"<0xF5>": "UNDECODEABLE", "<0x61>": "UNREACHABLE_SINGLE_TOKEN"}
    assert {entry: row(table, tokenizer, entry)["category"] for entry in expected} == expected
    assert (table["roundtrip"] == table["category"].isin(["OK", "OK_SPECIAL"])).all()


# files


def test_save_and_read_back(tmp_path):
    pre = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex("b(?!\\n)"), "isolated"), WITHOUT_REGEX])
    table = census(byte_level([("a", "b"), ("N", "A"), (BYTE[0x0D], BYTE[0x0A]), (BYTE[0x0A], BYTE[0x0A])], pre=pre))
    assert {"\r", "\n", "\r\n", "\n\n", "ab\n", "\x00", '"', ",", "NA", ""} <= set(table["witness"])
    paths = save(table, tmp_path / "new" / "folder")
    assert [p.name for p in paths] == ["census.parquet", "census.csv", "census.json"]
    assert sorted(p.name for p in paths[0].parent.iterdir()) == sorted(p.name for p in paths)
    parquet = pd.read_parquet(paths[0])
    sheet = pd.read_csv(paths[1], keep_default_na=False, dtype={"bytes": str, "text": str, "part_of": str})
    plain = table.reset_index(drop=True)
    pd.testing.assert_frame_equal(parquet, plain, check_dtype=False)
    pd.testing.assert_frame_equal(sheet, plain, check_dtype=False)
    provenance = json.loads(paths[2].read_text())
    assert provenance == parquet.attrs["provenance"] == table.attrs["provenance"]
    assert provenance["tokenizer"]["scheme"] == "byte-level BPE"
    assert provenance["rows"] == len(table)
    assert provenance["versions"]["python"]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for where in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(InterpError, match=r"cannot write to .*choose another --out") as caught:
            save(census(wordlevel()), where)
        assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def damaged(change):
    state = json.loads(byte_level().backend_tokenizer.to_str())
    change(state)
    return json.dumps(state)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no tokenizer: give a folder with a tokenizer.json"),
        ({"notes.txt": "some text"}, "holds no tokenizer: give a folder with a tokenizer.json"),
        ({"tokenizer.json": ""}, "does not load as a tokenizer .*: check its files"),
        ({"tokenizer.json": '{"model": {"type": "BPE", "vo'}, "does not load as a tokenizer .*: check its files"),
        ({"tokenizer.json": "[]", "tokenizer_config.json": "{}"}, "does not load as a tokenizer .*: check its files"),
        (
            # Rust panics on this
            {"tokenizer.json": damaged(lambda s: s["model"].update(continuing_subword_prefix="##abc", merges=["a b"]))},
            "does not load as a tokenizer .*: check its files",
        ),
    ],
)
def test_folders_without_a_tokenizer(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InterpError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(files)


def test_invalid_tokenizers_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("some text\nof two lines\n")
    with pytest.raises(InterpError, match=r"does not load as a tokenizer .*: check its files") as caught:
        load_tokenizer(tmp_path / "notes.txt")
    assert "\n" not in str(caught.value)
    with pytest.raises(InterpError, match=r"no tokenizer at .*missing: check the path"):
        load_tokenizer(tmp_path / "missing")
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(InterpError, match="has no tokenizer: save one in the model's folder"):
        census(SimpleNamespace(original_model=None, tokenizer=None))
    with pytest.raises(InterpError, match="needs a model or a tokenizer, not a SimpleNamespace"):
        census(SimpleNamespace())


def test_changing_a_census_does_not_change_the_next_one(organism):
    table = census(organism.tokenizer)
    table.loc[0, "witness"] = "changed"
    table.attrs["provenance"]["tokenizer"]["name"] = "changed"
    again = census(organism.tokenizer)
    assert again["witness"][0] != "changed"
    assert again.attrs["provenance"]["tokenizer"]["name"] != "changed"


@pytest.mark.experiment
def test_a_census_of_a_large_vocabulary_is_cached(organism, monkeypatch):
    from interp.vocabulary import table as tables

    monkeypatch.setattr(tables, "_LARGE", 1000)
    monkeypatch.setattr(tables, "_REMEMBERED", {})
    first = census(organism)
    made = tables._table
    monkeypatch.setattr(tables, "_table", None)  # it would have to be called
    monkeypatch.setattr(tables, "_REMEMBERED", {})
    again = census(organism)
    pd.testing.assert_frame_equal(first, again)
    assert first.attrs == again.attrs
    pd.testing.assert_frame_equal(made(*tables._parts_and_rows(organism)), pd.DataFrame(again))
    for path in (tables.user_cache() / "known").glob("census-*.parquet"):
        path.write_bytes(b"half")  # damaged: it is made again
    monkeypatch.setattr(tables, "_table", made)
    monkeypatch.setattr(tables, "_REMEMBERED", {})
    pd.testing.assert_frame_equal(first, census(organism))
