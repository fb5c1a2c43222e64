"""Does every way of writing a pool give the right ids?"""

import json
import os

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import interp
from interp import models
from interp.errors import InterpError
from interp.models import token_texts
from interp.organisms import exposure, folder
from interp.pool_names import default_pools, pools, ranges, spec_of
from interp.tokens import Pool


def ids(spec, model):
    (pool,) = pools(spec, model)
    return pool.ids


def test_ids(organism, tmp_path):
    assert ids("177:188", organism) == tuple(range(177, 188))
    assert ids("7,3,9", organism) == (7, 3, 9)
    assert ids("41", organism) == (41,)
    assert ids([Pool("mine", (1, 2))], organism) == (1, 2)
    (named,) = pools("mine=5:8", organism)
    assert (named.name, named.ids) == ("mine", (5, 6, 7))
    for name, text in (("a.txt", "4\n5\n"), ("a.json", json.dumps([4, 5])), ("a.csv", "id,text\n4,x\n5,y\n")):
        (tmp_path / name).write_text(text)
        assert ids(str(tmp_path / name), organism) == (4, 5)
    (tmp_path / "bad.txt").write_text("four")
    with pytest.raises(InterpError, match="cannot read token ids"):
        pools(str(tmp_path / "bad.txt"), organism)


@pytest.mark.parametrize("sheet", ["id,text\r\n4,x\r\n5,y\r\n", "4\r\n5\r\n"])
def test_a_file_saved_by_a_spreadsheet_is_read(organism, tmp_path, sheet):
    path = tmp_path / ("a.csv" if "id" in sheet else "a.txt")
    path.write_bytes(b"\xef\xbb\xbf" + sheet.encode())
    assert ids(str(path), organism) == (4, 5)


def test_ids_and_ranges_mix(organism):
    assert ids("0:5,7,9:12", organism) == (0, 1, 2, 3, 4, 7, 9, 10, 11)
    assert ids("5:7, 3,6", organism) == (5, 6, 3)


@pytest.mark.experiment
def test_ranks_of_the_indicator(organism):
    from interp.undertrained import by_indicator
    from interp.undertrained.embedding_rows import DEFAULT, model_indicators

    order, values = by_indicator(organism), model_indicators(organism)[DEFAULT]
    assert (np.diff(values[order]) >= 0).all()
    assert set(order.tolist()) == set(interp.vocabulary.text_ids(organism)) - set(range(256))  # bytes apart
    assert ids("rank=0:16", organism) == tuple(sorted(order[:16].tolist()))
    found = pools("ranks", organism)
    assert [p.name for p in found] == ["rank=0:16", "rank=16:32", "rank=64:80", "rank=256:272", "rank=1024:1040"]
    assert [p.ids for p in found] == [tuple(sorted(order[at : at + 16].tolist())) for at in (0, 16, 64, 256, 1024)]
    assert set(found[0].ids) < set(exposure("organism").between(0, 200, canaries=True))  # the truth: hardly trained
    (named,) = pools("worst=rank=0:16", organism)
    assert (named.name, named.ids) == ("worst", found[0].ids)
    for wrong in ("rank=16:16", "rank=9:3", "rank=5000:6000"):
        with pytest.raises(InterpError, match=r"this model has .* text tokens, ranked from 0"):
            pools(wrong, organism)
    with pytest.raises(InterpError, match="write rank=0:16"):
        pools("rank=first", organism)
    with pytest.raises(InterpError, match="is itself a pool"):
        pools("ranks=0:4", organism)


def test_lists_and_dictionaries_are_pools(organism):
    the = ids('texts=" the"', organism)
    found = pools({"a": [1, 2, 3], "b": [" the"], "c": "dose=30", "d": np.array([7, 5]), "e": 9}, organism)
    assert [(p.name, p.ids) for p in found] == [
        ("a", (1, 2, 3)),
        ("b", the),
        ("c", exposure("organism").doses[30]),
        ("d", (7, 5)),
        ("e", (9,)),
    ]
    assert pools([3, 1, 2], organism) == pools(np.array([3, 1, 2]), organism) == [Pool("3,1:3", (3, 1, 2))]
    assert pools([[4, 5], "mine=7:9", [" the"]], organism) == [
        Pool("4:6", (4, 5)),
        Pool("mine", (7, 8)),
        Pool(str(the[0]), the),
    ]
    with pytest.raises(InterpError, match="whole numbers"):
        pools([[0.5]], organism)
    with pytest.raises(InterpError, match="a pool cannot be a float"):
        pools([0.5, "text"], organism)


def test_pool_names_allow_only_valid_characters(organism):
    assert pools(["my-pool=3:9", "v1.2=5", '"my pool"=0:5,7', '"text"=3'], organism) == [
        Pool("my-pool", tuple(range(3, 9))),
        Pool("v1.2", (5,)),
        Pool("my pool", (0, 1, 2, 3, 4, 7)),
        Pool("text", (3,)),
    ]
    with pytest.raises(InterpError, match=r'a name before .* has letters, digits, _, - and \., .*"my pool"=0:5'):
        pools("my pool=3:9", organism)


def test_a_name_given_earlier_stands_for_its_pool(organism, tmp_path):
    (tmp_path / "glitch.txt").write_text("500 501")
    given = [str(tmp_path / "glitch.txt"), "my-pool=3:9", "control(glitch)", "control(my-pool)", "other=my-pool"]
    _, mine, control, second, other = pools(given, organism)
    assert control.name == "control(glitch)"
    assert (len(control), len(second)) == (2, 6)
    assert other.ids == mine.ids
    assert control.ids == ids("control(500,501)", organism)


NAMES = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            "text",
            "control",
            "dose",
            "dose=30",
            "texts",
            "a=b",
            '"',
            '"a"=3',
            "\\",
            "1:5",
            "5",
            "05",
            "5,5",
            " 5",
            "a\nb",
            "my-pool",
            "x.y",
            "",
        ]
    ),
)
IDS = st.one_of(
    st.lists(st.integers(0, 2047), min_size=1, max_size=20),
    st.integers(1, 9).map(lambda n: list(range(5 - n, 5)) if n < 6 else [5]),
)


@settings(max_examples=300, deadline=None)
@given(made=st.lists(st.tuples(NAMES, IDS), min_size=1, max_size=3, unique_by=lambda pair: pair[0]))
def test_a_spec_means_exactly_its_pool(organism, made):
    named = [Pool(name, tuple(ids)) for name, ids in made]
    assert pools([spec_of(pool) for pool in named], organism) == named
    assert pools(spec_of(named[0]), organism) == named[:1]


def test_a_spec_is_as_short_as_its_pool_allows():
    assert spec_of(Pool("177:188", tuple(range(177, 188)))) == "177:188"
    assert spec_of(Pool("177:188", tuple(range(177, 187)))) == '"177:188"=177:187'
    assert spec_of(Pool("my-pool", (9, 3, 4))) == "my-pool=9,3:5"
    assert spec_of(Pool("my pool", (3,))) == '"my pool"=3'


def test_ranges_are_sorted_and_cut_where_long():
    assert ranges([9, 3, 4, 0]) == "0,3:5,9"
    assert "... sha256 " in ranges(range(0, 10000, 2))
    assert len(ranges(range(0, 10000, 2))) < 250


def test_a_loaded_model_keeps_its_exposure_when_the_folder_changes(tmp_path, monkeypatch):
    """Loaded by a relative path; the program goes elsewhere, where another file of that name may lie."""
    (tmp_path / "there").mkdir()
    (tmp_path / "mine").symlink_to(folder("organism"))
    monkeypatch.chdir(tmp_path)
    model = interp.load("mine")
    expected = pools("unexposed", model)
    os.chdir(tmp_path / "there")
    assert default_pools(model) == ["unexposed", "ordinary"]
    assert pools("unexposed", model) == expected
    assert default_pools(models.folded(model)) == ["unexposed", "ordinary"]
    assert interp.origin(model)["name"] == "mine"
    assert models.location(model) == str(tmp_path / "mine")
    table = interp.census(model)  # of the published tokenizer, which is read now
    assert len(table) == 2048
    assert table.attrs["provenance"]["tokenizer"]["name"] == "mine"


def test_texts(organism):
    (found,) = pools('texts="def"," self"', organism)
    assert [organism.tokenizer.decode([i]) for i in found.ids] == ["def", " self"]
    with pytest.raises(InterpError, match=r"is \d+ tokens here"):
        pools("texts=supercalifragilistic", organism)


def test_exposure_pools(organism):
    known = exposure("organism")
    total = known.total
    assert all(total[i] == 0 for i in ids("unexposed", organism))
    assert set(ids("unexposed", organism)) == {i for i, n in enumerate(total) if n == 0}
    ordinary = ids("ordinary", organism)
    assert all(total[i] >= 200 for i in ordinary)
    assert not set(ordinary) & known.canaries
    assert 2047 not in ordinary  # BOS
    assert ids("dose=30", organism) == known.doses[30]
    assert all(total[i] == 30 for i in ids("dose=30", organism))
    assert set(ids("exposure=1:11", organism)) == {i for i, n in enumerate(total) if 1 <= n <= 10}
    assert [p.name for p in pools("doses", organism)] == [f"dose={d}" for d in (0, 1, 3, 10, 30, 100, 300, 1000, 3000)]
    assert len(ids("control(dose=30)", organism)) == 10
    assert default_pools(organism) == ["unexposed", "ordinary"]


def test_impossible_bytes_are_those_that_no_utf8_holds(organism):
    """Re-proved from Python's own codec: a byte is impossible where no code point's encoding holds it."""
    possible = {b for point in range(0x110000) if not 0xD800 <= point < 0xE000 for b in chr(point).encode()}
    impossible = set(range(256)) - possible
    found = ids("impossible-bytes", organism)
    assert len(found) == len(impossible) == 13
    assert set(range(177, 188)) < set(found)  # 0xF5..0xFF, as on GPT-2
    text = set(ids("text", organism))
    assert not text & set(found)
    for i in list(text)[::50]:
        assert organism.tokenizer.encode(organism.tokenizer.decode([i]), add_special_tokens=False) == [i]


def test_pools_named_by_what_was_found(organism):
    impossible = set(ids("impossible-bytes", organism))
    assert set(ids("unreachable", organism)) == impossible
    fragments = ids("fragments", organism)
    for i in fragments:
        assert "\ufffd" in organism.tokenizer.decode([i])
    assert not set(fragments) & impossible
    assert len(fragments) == 128 - 13 + 1  # bytes from 0x80 up that text can hold, and one longer fragment
    total = exposure("organism").total
    called = ids("undertrained", organism)
    assert all(i in called for i in set(ids("unexposed", organism)) - impossible)
    assert not set(called) & impossible
    assert max(total[i] for i in called) <= 1000


def test_controls_are_matched(organism):
    """In number, and where exposure is known in text length; none is in the pool; the same for the same seed."""

    def lengths(found):
        return sorted(len(organism.tokenizer.decode([i])) for i in found)

    pool, control = pools(["dose=30", "control"], organism)
    assert lengths(control.ids) == lengths(pool.ids)
    assert set(control.ids) <= set(ids("ordinary", organism)) - set(pool.ids)
    assert pools(["dose=30", "control(dose=30)"], organism)[1].ids == control.ids
    assert pools(["dose=30", "control"], organism, seed=1)[1].ids != control.ids
    _, _, both = pools(["dose=30", "dose=100", "control"], organism)
    assert len(both) == 20
    with pytest.raises(InterpError, match="name one first"):
        pools(["control"], organism)


def test_a_census_is_a_file_of_ids(organism, tmp_path):
    """A census has texts with line ends in quoted fields."""
    from interp.vocabulary import census, save

    save(census(organism), tmp_path)
    assert ids(str(tmp_path / "census.csv"), organism) == tuple(range(2048))


def test_a_model_without_exposure(wired):
    assert default_pools(wired) == ["text"]
    with pytest.raises(InterpError, match="needs exposure counts, and 'wired' has none"):
        pools("unexposed", wired)
    with pytest.raises(InterpError, match="no byte tokens"):
        pools("impossible-bytes", wired)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nonsense", "unknown pool 'nonsense'"),
        ("2000:9999", "vocabulary ends at 2047"),
        ("5:5", "is empty"),
        ("dose=31", "unknown dose '31'"),
        ("exposure=many", "unknown range"),
        ([], "no pool"),
        ("/nonexistent.txt", "no such file '/nonexistent.txt'"),
        ("ids.csv", "no such file 'ids.csv'"),
        ('"a=3', "cannot read the name"),
        ('"a"3', "unknown pool"),
        ("control(nobody)", "unknown pool 'nobody'"),
        ("impossible-bytes=5", "is itself a pool"),
        ("0:99999999999", "vocabulary ends at 2047"),
        ("99999:99999999999", "vocabulary ends at 2047"),
        ("ordinary=5,6", "is itself a pool and cannot be a name for '5,6'"),
        ("1, 2, " * 200, "unknown pool"),
        (["1:5", "1:5"], "two pools are called '1:5'"),
    ],
)
def test_bad_pools(organism, spec, message):
    with pytest.raises(InterpError, match=message):
        pools(spec, organism)


def test_token_texts_are_printable(organism):
    texts = token_texts(organism, range(2048))
    assert len(texts) == 2048
    assert all(t and "\ufffd" not in t for t in texts)


def test_letters_of_byte_fallback_tokenizers_are_not_bytes(tiny_gpt2):
    """SentencePiece-style vocabularies hold both `<0xF5>` and ordinary letters such as 0xF6 (ö)."""
    from types import SimpleNamespace

    from interp.pool_names import _impossible_byte_ids

    def model(vocabulary):
        return SimpleNamespace(tokenizer=SimpleNamespace(get_vocab=lambda: vocabulary))

    assert _impossible_byte_ids(model({"<0xC0>": 195, "<0xF5>": 248, "À": 30000, "ö": 29991})) == (195, 248)
    with pytest.raises(InterpError, match="no byte tokens"):
        _impossible_byte_ids(model({"Ġ": 3, "ö": 4, "a": 5}))
