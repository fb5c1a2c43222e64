"""Is every kind of published tokenizer used correctly: BOS, prefix space, templates, prompts by id, exact texts?"""

import ast
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models as algorithms, normalizers, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import interp
from interp import models
from interp.errors import InterpError
from interp.models import added_by_template, bos_id, encoded, encoded_inside, published_tokenizer, token_text
from interp.request import Request
from interp.undertrained import ARTICLE, PUBLISHED, verify
from interp.undertrained.prompts import HOLE, placeholders, template
from interp.vocabulary import census, load_tokenizer

pytestmark = pytest.mark.experiment

PROMPTS = (*PUBLISHED, ARTICLE)
WORDS = " ".join(p.text.replace("{token}", " ") for p in PROMPTS)
TEXTS = [WORDS, "the cat sat on the mat and the rat ran off the map. An inning, a running king sings." * 3] * 8
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_level(prefix=False, specials=("<|endoftext|>",)):
    made = Tokenizer(algorithms.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=480, initial_alphabet=alphabet, special_tokens=list(specials))
    )
    return made


def metaspace(legacy, specials=("<unk>", "<s>", "</s>")):
    """BPE with byte fallback, the space put before text by a normalizer (legacy) or by the splitting into words."""
    trained = Tokenizer(algorithms.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=300))
    state = json.loads(trained.to_str())["model"]
    entries = [*specials, *(f"<0x{b:02X}>" for b in range(256))]
    entries += [e for e in state["vocab"] if e not in "\n«»"]
    merges = [tuple(m) for m in state["merges"] if not set("\n«»") & set("".join(m))]
    vocab = {e: i for i, e in enumerate(e for e in entries if len(e) == 1 or not set("\n«»") & set(e))}
    made = Tokenizer(algorithms.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if legacy:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    made.add_special_tokens(list(specials))
    return made


def unigram():
    made = Tokenizer(algorithms.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    made.train_from_iterator(
        TEXTS, trainers.UnigramTrainer(vocab_size=220, special_tokens=special, unk_token="<unk>", show_progress=False)
    )
    return made


def word_piece():
    made = Tokenizer(algorithms.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    made.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special))
    made.post_processor = around(made, "[CLS] $A [SEP]")
    return made


def word_level():
    words = dict.fromkeys(w for w, _ in pre_tokenizers.Whitespace().pre_tokenize_str(TEXTS[1]))
    made = Tokenizer(algorithms.WordLevel({w: i for i, w in enumerate(["[UNK]", *words])}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


def around(made, form):
    names = [w for w in form.split() if w != "$A"]
    return processors.TemplateProcessing(single=form, special_tokens=[(n, made.token_to_id(n)) for n in set(names)])


def templated(made, form):
    made.post_processor = around(made, form)
    return made


LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
BERT = {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]"}
ALIKE = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
TURNS = ("<|im_start|>", "<|im_end|>")
# the tokenizer, its special tokens, how many more rows the model has than the tokenizer entries, the BOS
KINDS = {
    "byte-level, BOS is EOS": (byte_level, ALIKE, 0, "<|endoftext|>"),
    "byte-level, neither BOS nor EOS": (lambda: byte_level(specials=()), {}, 0, None),
    "byte-level, EOS only, chat": (lambda: byte_level(specials=TURNS), {"eos_token": TURNS[1]}, 24, None),
    "byte-level, prefix space": (lambda: byte_level(prefix=True), ALIKE, 0, "<|endoftext|>"),
    "byte-level, fewer rows": (byte_level, {"eos_token": "<|endoftext|>"}, -40, None),
    "metaspace, legacy": (lambda: templated(metaspace(True), "<s> $A"), LLAMA, 0, "<s>"),
    "metaspace": (lambda: templated(metaspace(False), "<s> $A </s>"), LLAMA, 16, "<s>"),
    "metaspace, EOS only": (lambda: templated(metaspace(False), "$A </s>"), {"eos_token": "</s>"}, 0, None),
    "Unigram": (
        lambda: templated(unigram(), "$A </s>"),
        {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
        0,
        None,
    ),
    "WordPiece": (word_piece, BERT, 0, None),
}
SPACED = ("byte-level, prefix space", "metaspace, legacy", "metaspace", "metaspace, EOS only", "Unigram")


def saved(path, made, special=None, rows=None, **options):
    """A random model of that many rows, with a tokenizer, as a folder."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **(special or {}), **options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        size = {"n_positions": 1024, "n_embd": 16, "n_layer": 2, "n_head": 2}
        GPT2LMHeadModel(GPT2Config(vocab_size=rows or len(tokenizer), **size)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {}
    for i, (name, (make, special, more, _)) in enumerate(KINDS.items()):
        made = make()
        options = {"chat_template": CHAT} if "chat" in name else {}
        rows = made.get_vocab_size() + more
        found[name] = saved(tmp_path_factory.mktemp(f"kind{i}") / "model", made, special, rows, **options)
    return found


@pytest.fixture(scope="module")
def loaded(folders):
    return {name: models.load(folder) for name, folder in folders.items()}


def tokenizer_of(folders, name):
    return load_tokenizer(folders[name])


# --- BOS --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_bos_is_the_published_one_or_none(loaded, kind):
    """T1, T2: TransformerLens makes BOS of EOS, and adds a token beyond the embedding where there is neither."""
    model, (_, _, _, bos) = loaded[kind], KINDS[kind]
    expected = None if bos is None else published_tokenizer(model).get_vocab()[bos]
    assert bos_id(model) == expected
    made = interp.run("repeated_tokens", model, ["30:60"], length=5, batch=2)
    assert interp.provenance(made)["sequences"]["bos"] == expected
    assert made.sizes["position"] == 10 + (bos is not None)
    # nor does TransformerLens's own copy make one up: its functions of text put nothing in front
    assert model.tokenizer.bos_token == bos
    row = model.to_tokens("the cat")[0].tolist()
    assert max(row) < len(published_tokenizer(model))
    assert row[0] == (published_tokenizer(model)("the cat")["input_ids"][0] if bos is None else expected)


def test_bos_by_id_and_by_token(loaded):
    model = loaded["byte-level, EOS only, chat"]
    start = published_tokenizer(model).get_vocab()["<|im_start|>"]
    for asked, expected in (("<|im_start|>", start), (7, 7), ("7", 7), ("none", None), (False, None), (" the", None)):
        if asked == " the":
            expected = encoded(published_tokenizer(model), " the")[0]
        made = interp.run("repeated_tokens", model, ["30:60"], length=5, batch=1, bos=asked)
        assert interp.provenance(made)["sequences"]["bos"] == expected
        assert (
            Request.from_json(interp.provenance(made)["request"]).drawing.bos == Request.of("x", bos=asked).drawing.bos
        )
    with pytest.raises(InterpError, match="no BOS token: give an id or a token"):
        interp.run("repeated_tokens", model, ["30:60"], bos="required")
    with pytest.raises(InterpError, match=r"'<s>' is 3 tokens here, .*: give a text that is one token, or ids"):
        interp.run("repeated_tokens", model, ["30:60"], bos="<s>")
    for outside in (-1, "-1", 100_000):
        with pytest.raises(InterpError, match=r"bos -?\d+: the vocabulary ends at"):
            interp.run("repeated_tokens", model, ["30:60"], bos=outside)
    with pytest.raises(InterpError, match="is not a token"):
        interp.run("repeated_tokens", loaded["WordPiece"], ["30:60"], bos="")


@pytest.mark.parametrize("bos", ["<|im_start|>", " the", "--", "-1", "--pool", "none", "a b", '"q"', "5"])
def test_bos_goes_to_a_command_line_and_to_json_and_back(bos):
    request = Request.of("repeated_tokens", bos=bos)
    assert Request.from_argv(request.to_argv()) == request
    assert Request.from_json(json.dumps(request.to_json())) == request


def test_a_bos_beyond_the_embedding_is_refused(tmp_path):
    folder = saved(tmp_path / "m", byte_level(specials=()), {"bos_token": "<new>"}, rows=480)
    with pytest.raises(InterpError, match=r"BOS is token 480, and this model embeds 480: use bos none, or an id"):
        interp.run("repeated_tokens", models.load(folder), ["30:60"])
    interp.run("repeated_tokens", models.load(folder), ["30:60"], bos="none", length=5, batch=1)


def test_later_changes_to_the_files_change_nothing(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folders["metaspace"], "model")
    model = models.load("model")
    shutil.rmtree("model")
    monkeypatch.chdir("/")
    alone = census(tokenizer_of(folders, "metaspace"))
    assert census(model).head(len(alone)).equals(alone)
    assert bos_id(model) == 1
    folded = models.folded(model)
    assert published_tokenizer(folded) is published_tokenizer(model)
    assert bos_id(folded) == 1


def test_a_bridge_that_was_not_loaded_here_has_no_made_up_bos(folders):
    from transformer_lens.model_bridge import TransformerBridge

    folder = str(folders["byte-level, EOS only, chat"])
    bridge = TransformerBridge.boot_transformers(folder, device="cpu")
    assert bridge.tokenizer.bos_token_id is not None  # TransformerLens made it of EOS
    assert bos_id(bridge) is None


def test_a_repaired_model_keeps_the_published_tokenizer(loaded, tmp_path):
    from interp.repairs import save_repaired

    model = loaded["byte-level, EOS only, chat"]
    pool, healthy = interp.pools(["30:34", "60:120"], model)
    folder = save_repaired(model, pool, tmp_path / "repaired", repair="mean", reference=healthy)
    again = load_tokenizer(folder)
    assert again.bos_token is None
    assert again.get_vocab() == published_tokenizer(model).get_vocab()


@pytest.mark.parametrize("kind", KINDS)
def test_texts_and_random_contexts_follow_the_published_bos(loaded, kind, tmp_path):
    from interp.texts import text_windows

    model, tokenizer = loaded[kind], published_tokenizer(loaded[kind])
    text = "the cat sat on the mat and the rat ran off the map. " * 3
    (tmp_path / "text.txt").write_text(text)
    ids = encoded(tokenizer, text)
    if max(ids) >= len(census(model)):
        with pytest.raises(InterpError, match=r"the text holds token \d+, and this model embeds"):
            text_windows(model, str(tmp_path / "text.txt"), 4, 1)
        return
    bos = KINDS[kind][3]
    front = [] if bos is None else [tokenizer.get_vocab()[bos]]
    assert text_windows(model, str(tmp_path / "text.txt"), 4, 1).tolist() == [[*front, *ids[:4]]]
    made = interp.run("unused_logits", model, ["5:9"], contexts=2, window=5)
    assert made.attrs["positions"] == 2 * (5 + len(front))


# --- prompts ----------------------------------------------------------------------------------------------------------


def unspaced(text):
    return re.sub(r"\s", "", text).lower()


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda p: p.name)
@pytest.mark.parametrize("kind", KINDS)
def test_prompts_are_built_on_every_kind(folders, kind, prompt):
    """T3, T4: as many places as tested tokens, the text around them unchanged, and nothing after it."""
    tokenizer = tokenizer_of(folders, kind)
    form = template(prompt, tokenizer, placeholders(census(tokenizer)))
    assert form.count(HOLE) == prompt.text.count("{token}")
    pieces, ids = [], []
    for i in [*form, HOLE]:
        if i == HOLE:
            pieces.append(ids)
            ids = []
        else:
            ids.append(i)
    front = added_by_template(tokenizer)[0]
    assert pieces[0][: len(front)] == front
    pieces[0] = pieces[0][len(front) :]
    special = set(tokenizer.all_special_ids)
    for ids, text in zip(pieces, prompt.text.split("{token}"), strict=True):
        assert not special & set(ids), "an end of text, or an unknown token, stands inside"
        assert unspaced(tokenizer.decode(ids)) == unspaced(text)
        if kind in SPACED and text and ids and not text.startswith(" ") and pieces[0] is not ids:
            assert not token_text(tokenizer, ids[0]).startswith(" "), "a space was put before what follows a token"


def test_a_placeholder_of_several_tokens_leaves_nothing_behind(folders):
    """Its last token may stand once at each place, with the rest of it beside it."""
    for kind in ("byte-level, BOS is EOS", "metaspace", "WordPiece"):
        tokenizer = tokenizer_of(folders, kind)
        form = template(PUBLISHED[2], tokenizer, ["Qthe", "zking", "xqz"])
        assert form[-51:] == [HOLE] * 51


@pytest.mark.parametrize("kind", ["byte-level, EOS only, chat", "metaspace", "WordPiece"])
def test_verification_runs_on_kinds(loaded, kind):
    found = verify(loaded[kind], [40, 41], steps=1)
    assert found.probability.notnull().all()
    assert found.attrs == {"too_long": ""}


def test_an_unwritable_prompt_gets_a_one_line_message(tmp_path):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=word_level(), unk_token="[UNK]")
    with pytest.raises(
        InterpError, match=r"cannot write the text of the prompt 'repeats' \(.*\): ask with another prompt"
    ):
        template(PUBLISHED[2], tokenizer, ["cat"])
    model = models.load(saved(tmp_path / "m", word_level(), {"unk_token": "[UNK]"}))
    with pytest.raises(InterpError, match=r"cannot write .*use --verify-tokens none") as caught:
        verify(model, [3])
    assert "\n" not in str(caught.value)


def test_an_unwritable_prompt_is_left_out_and_named(tmp_path):
    """A vocabulary without the quotation marks of one prompt: the others are asked."""
    made = word_piece()
    state = json.loads(made.to_str())
    vocab = {e: i for i, e in enumerate(e for e in state["model"]["vocab"] if not set(e) & set("«»"))}
    state["model"]["vocab"] = vocab
    model = models.load(saved(tmp_path / "m", Tokenizer.from_str(json.dumps(state)), BERT))
    found = verify(model, [40, 41], steps=1)
    assert found.attrs["unwritable"] == "input_output"
    assert found.probability.sel(prompt="input_output").isnull().all()
    assert found.probability.sel(prompt=["repeats", "assistant_explain", "article"]).notnull().all()
    result = interp.run("undertrained", model, reference_pool="5:9", fdr=0.5)
    shown = text_of(result)
    assert "Left out, as this tokenizer has no tokens for their text: input_output." in shown


def text_of(result):
    import io

    from rich.console import Console

    from interp import views

    console = Console(width=200, file=io.StringIO(), record=True)
    for line in views.tables(result):
        console.print(line)
    return " ".join(console.export_text().split())


# --- chat -------------------------------------------------------------------------------------------------------------


def test_chat_wraps_the_prompt_by_id(folders):
    """T8: the question in the user's turn, the beginning of the answer in the assistant's, and nothing after it."""
    tokenizer = tokenizer_of(folders, "byte-level, EOS only, chat")
    words = placeholders(census(tokenizer))
    mark = encoded(tokenizer, "Q")[0]
    for prompt in PROMPTS:
        form = template(prompt, tokenizer, words, chat=True)
        assert form.count(HOLE) == prompt.text.count("{token}")
        opened = prompt.answer.split("{")[0]
        asked = prompt.text.removesuffix(opened).replace("{token}", "Q")
        expected = f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n{opened.strip()}"
        assert tokenizer.decode([mark if i == HOLE else i for i in form]) == expected
        start, end = (tokenizer.get_vocab()[turn] for turn in TURNS)
        assert (form.count(start), form.count(end)) == (2, 1)


@pytest.mark.experiment
def test_chat_is_reported_beside_the_plain_prompts(loaded):
    model = loaded["byte-level, EOS only, chat"]
    plain, both = (interp.run("undertrained", model, fdr=0.2, verify_tokens="all", chat=chat) for chat in (False, True))
    assert both.max_probability.equals(plain.max_probability), "the published score is that of the plain prompts"
    assert list(both.prompt.values) == [p.name for p in PROMPTS] + [f"{p.name}_chat" for p in PROMPTS]
    names = [f"{p.name}_chat" for p in PUBLISHED]
    assert both.max_probability_chat.equals(both.probability.sel(prompt=names).max(["prompt", "new_token"]))
    assert not both.max_probability_chat.equals(both.max_probability)
    assert "not repeated in chat" in text_of(both)
    assert "not repeated in chat" not in text_of(plain)
    from interp import views

    assert "plain_against_chat" in views.figures(both)
    assert "plain_against_chat" not in views.figures(plain)
    said = interp.run("repeat_prompt", model, ["30:40", "50:60"], steps=2, chat=True)
    assert said.probability.equals(interp.run("repeat_prompt", model, ["30:40", "50:60"], steps=2).probability)
    one = verify(model, [30], prompts=[ARTICLE], chat=True, steps=2).probability.sel(prompt="article_chat", token=30)
    assert said.chat_probability.isel(token=0).values == pytest.approx(one.values, rel=1e-4)
    assert {"chat_correct", "chat_answer"} <= set(said)
    assert "right in chat" in text_of(said)
    assert {t.name for t in views.figures(said)["repeat_probability"].data if t.name} >= {"30:40", "30:40, in chat"}


def test_chat_without_a_template_gets_a_one_line_message(loaded):
    for name, options in (
        ("undertrained", {"reference_pool": "5:9", "fdr": 0.5}),
        ("repeat_prompt", {"pools": ["30:40"]}),
    ):
        with pytest.raises(InterpError, match="has no chat template: leave chat out") as caught:
            interp.run(name, loaded["byte-level, BOS is EOS"], chat=True, **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(InterpError, match="chat does nothing where no token is asked"):
        interp.run("undertrained", loaded["byte-level, EOS only, chat"], chat=True, verify_tokens="none")


@pytest.mark.parametrize(
    ("form", "says"),
    [("{{ raise_exception('no such role') }}", "fails .*no such role"), ("hello", "leaves out what the user says")],
)
def test_a_failing_chat_template_gets_a_one_line_message(form, says):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level(), chat_template=form)
    with pytest.raises(InterpError, match=says) as caught:
        template(PUBLISHED[0], tokenizer, ["cat"], chat=True)
    assert "\n" not in str(caught.value)


# --- pools ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_pool_text_is_what_the_census_calls_text(loaded, kind):
    """T6: every token of text that some text produces, whether it begins a word or not."""
    model = loaded[kind]
    table = census(model)
    pool = set(interp.pools("text", model)[0].ids)
    text = set(table["id"][(table["kind"] == "text") & (table["reachable"] == "reachable")])
    assert text <= pool
    rest = table.loc[sorted(pool - text)]
    assert rest["kind"].isin(["byte", "added"]).all()
    assert rest["roundtrip"].all()
    if kind in SPACED:
        inside = [i for i in pool if not token_text(published_tokenizer(model), i).startswith(" ")]
        assert len(inside) > len(pool) / 4, "tokens inside words are among them"


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_the_token_that_is_written_so(loaded, kind):
    """T5: exactly so, space or not, or one line; asked of every token of text."""
    model, tokenizer = loaded[kind], published_tokenizer(loaded[kind])
    found = 0
    for i in interp.pools("text", model)[0].ids:
        text = token_text(tokenizer, i)
        try:
            (pool,) = interp.pools([[text]], model)
        except InterpError:
            continue
        found += 1
        assert token_text(tokenizer, pool.ids[0]) == text
    assert found > 100


@pytest.mark.parametrize("kind", ["byte-level, prefix space", "metaspace, legacy", "metaspace", "Unigram"])
def test_texts_inside_a_word_and_at_its_beginning_are_two_tokens(loaded, kind):
    model, tokenizer = loaded[kind], published_tokenizer(loaded[kind])
    space = "Ġ" if "byte" in kind else "▁"
    entries = tokenizer.get_vocab()
    for word in ("t", "in", "s"):
        if {word, space + word} <= set(entries):
            assert interp.pools(f'texts="{word}"," {word}"', model)[0].ids == (entries[word], entries[space + word])
    dot = interp.pools("texts=.", model)[0].ids[0]
    assert token_text(tokenizer, dot) == "."


def test_a_text_that_is_only_another_token_names_both(tmp_path):
    made = Tokenizer(algorithms.Unigram([("<unk>", 0.0), ("▁the", -1.0), ("▁", -2.0), ("a", -3.0)], unk_id=0))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    model = models.load(saved(tmp_path / "m", made, {"unk_token": "<unk>"}))
    assert interp.pools('texts=" the","a"', model)[0].ids == (1, 3)
    with pytest.raises(
        InterpError, match=r"'the' is not a token here: the tokenizer encodes it as token 1, ' the' \('▁the'\)"
    ):
        interp.pools("texts=the", model)
    made = word_piece()
    model = models.load(saved(tmp_path / "w", made, BERT))
    with pytest.raises(InterpError, match=r"'THE' is not a token here: the tokenizer encodes it as token \d+, 'the'"):
        interp.pools("texts=THE", model)
    assert interp.pools("texts=##t", model)[0].ids == (made.token_to_id("##t"),)


def test_token_texts_show_the_space(loaded):
    for kind in SPACED[:4]:
        model, space = loaded[kind], "Ġ" if "byte" in kind else "▁"
        entries = published_tokenizer(model).get_vocab()
        assert models.token_texts(model, [entries[f"{space}t"], entries["t"]]) == [" t", "t"]
    beyond = len(published_tokenizer(loaded["metaspace"])) + 3
    assert models.token_texts(loaded["metaspace"], [beyond]) == [f"[{beyond}]"]


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen.tiktoken", "tekken.json", "sentencepiece.bpe.model", "vocab.bpe", "merges.txt"])
def test_a_tokenizer_of_an_unknown_kind_is_named(folders, tmp_path, name):
    """T11: not a model without a tokenizer, silently."""
    for file in ("config.json", "model.safetensors"):
        shutil.copy(folders["metaspace"] / file, tmp_path / file)
    assert published_tokenizer(models.load(tmp_path)) is None
    (tmp_path / name).write_text("IQ== 0\nIg== 1\n")
    for load in (models.load, load_tokenizer):
        with pytest.raises(InterpError, match=f"{re.escape(name)}, which transformers does not read") as caught:
            load(tmp_path)
        assert "\n" not in str(caught.value)
        assert "convert it to a tokenizer.json, or move it away" in str(caught.value)


# --- advice -----------------------------------------------------------------------------------------------------------


def test_advice_for_a_model_without_a_tokenizer(folders, tmp_path):
    """R14: advice that the command can take, and the reason that is true."""
    for file in ("config.json", "model.safetensors"):
        shutil.copy(folders["metaspace"] / file, tmp_path / file)
    model = models.load(tmp_path)
    asked = {
        "repeat_prompt": ("repeat_prompt", {"pools": ["5:60"]}),
        "undertrained": ("undertrained", {}),
        "census": ("census", {}),
    }
    for name, options in asked.values():
        with pytest.raises(InterpError, match="save one in the model's folder") as caught:
            interp.run(name, model, **options)
        assert "--tokenizer" not in str(caught.value)
    with pytest.raises(InterpError, match="or give ids instead of this pool") as caught:
        interp.pools("control(0:100)", model)
    assert "'text'" not in str(caught.value)
    with pytest.raises(InterpError, match="bos '<s>' needs a tokenizer and this model has none: give an id, or none"):
        interp.run("repeated_tokens", model, ["5:60"], bos="<s>")
    assert interp.run("repeated_tokens", model, ["5:60"], bos=3, length=5, batch=1).sizes["position"] == 11


# --- one module -------------------------------------------------------------------------------------------------------


def test_only_one_module_accesses_the_tokenizer():
    """No other reads a bridge's tokenizer or its special tokens: TransformerLens's copy makes BOS of EOS."""
    package = Path(models.__file__).parents[1]
    allowed = {"models/tokenizers.py"}
    special = re.compile(r"^(bos|eos|cls|sep)_token(_id)?$")
    found = []
    for path in package.rglob("*.py"):
        name = path.relative_to(package).as_posix()
        if name in allowed or name.startswith("organisms/"):  # the organisms make tokenizers
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                owner = ast.unparse(node.value)
                own = node.attr == "tokenizer" and owner not in ("self.about", "about", "parts")  # a census has its own
                if special.match(node.attr) or (own and "IDENTITIES" not in ast.unparse(node)):
                    found.append(f"{name}:{node.lineno} {ast.unparse(node)}")
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr":
                words = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
                found += [f"{name}:{node.lineno} getattr {w}" for w in words if special.match(w)]
    assert not found


def test_text_inside_text_gets_no_space(folders):
    for kind in SPACED:
        tokenizer = tokenizer_of(folders, kind)
        for text in ("the", ".", "Output:", " the"):
            ids = encoded_inside(tokenizer, text)
            assert "".join(token_text(tokenizer, i) for i in ids) == text
