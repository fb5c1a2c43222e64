"""Do the weights' circuits agree with those computed by hand, from Hugging Face's weights and plain matrices?"""

import math

import numpy as np
import pytest
import torch

from interp import circuits, hooks, models
from interp.errors import InterpError
from interp.tokens import Pool

WIDTH, HEADS, LAYERS, INNER, WORDS = 32, 4, 3, 8, 60
SHAPES = {
    "gpt2": ("GPT2", "LMHeadModel", {"n_positions": 64, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS}),
    "llama": (
        "Llama",
        "ForCausalLM",
        {
            "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
            "num_key_value_heads": 2, "max_position_embeddings": 64, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "pythia": (
        "GPTNeoX",
        "ForCausalLM",
        {
            "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
            "max_position_embeddings": 64, "use_parallel_residual": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        },
    ),
}  # fmt: skip
ROTARY = {"gpt2": 0, "llama": INNER, "pythia": INNER // 2}  # how many entries of a query turn
SOME = list(range(3, WORDS, 3))  # 19 tokens, more than a head has entries
COPIER, SENDER = (1, 2), (0, 1)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def network_of(shape):
    """A Hugging Face model, all of its weights at random, with a head that copies a little and keys that match a little."""
    import transformers

    family, kind, size = SHAPES[shape]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(transformers, f"{family}Config")(
            vocab_size=WORDS, bos_token_id=1, eos_token_id=1, tie_word_embeddings=False, **size
        )
        network = getattr(transformers, family + kind)(config).eval()
        for name, parameter in network.named_parameters():
            gain = name.endswith("weight") and ("norm" in name or "ln_" in name)
            torch.nn.init.normal_(parameter, std=0.2, mean=1.0 if gain else 0.0)
    network.get_output_embeddings().weight.copy_(network.get_input_embeddings().weight)
    for layer in range(LAYERS):
        query, key, value, output = attention_of(network, shape, layer)
        for group in range(key.shape[0]):
            key[group] = query[group * (HEADS // key.shape[0])]
        for at in (COPIER, SENDER):
            if at[0] == layer:
                output[at[1]] = value[at[1] // (HEADS // value.shape[0])].T
        write_attention(network, shape, layer, query, key, value, output)
    return network


def blocks_of(network, shape):
    return network.get_submodule({"gpt2": "transformer.h", "llama": "model.layers", "pythia": "gpt_neox.layers"}[shape])


def attention_of(network, shape, layer):
    """Weights [head d_model d_head], keys and values by group, and the output [head d_head d_model], as x @ W."""
    block = blocks_of(network, shape)[layer]
    if shape == "gpt2":
        query, key, value = (
            w.view(WIDTH, HEADS, INNER).transpose(0, 1) for w in block.attn.c_attn.weight.split(WIDTH, 1)
        )
        output = block.attn.c_proj.weight.view(HEADS, INNER, WIDTH)
    elif shape == "llama":
        query, key, value = (
            getattr(block.self_attn, f"{x}_proj").weight.view(-1, INNER, WIDTH).transpose(1, 2) for x in "qkv"
        )
        output = block.self_attn.o_proj.weight.T.reshape(HEADS, INNER, WIDTH)
    else:
        packed = block.attention.query_key_value.weight.view(HEADS, 3, INNER, WIDTH)
        query, key, value = (packed[:, i].transpose(1, 2) for i in range(3))
        output = block.attention.dense.weight.T.reshape(HEADS, INNER, WIDTH)
    return [w.clone() for w in (query, key, value, output)]


def write_attention(network, shape, layer, query, key, value, output):
    block = blocks_of(network, shape)[layer]
    if shape == "gpt2":
        packed = torch.cat([w.transpose(0, 1).reshape(WIDTH, -1) for w in (query, key, value)], dim=1)
        block.attn.c_attn.weight.copy_(packed)
        block.attn.c_proj.weight.copy_(output.reshape(WIDTH, WIDTH))
    elif shape == "llama":
        for name, weight in zip("qkv", (query, key, value), strict=True):
            getattr(block.self_attn, f"{name}_proj").weight.copy_(weight.transpose(1, 2).reshape(-1, WIDTH))
        block.self_attn.o_proj.weight.copy_(output.reshape(WIDTH, WIDTH).T)
    else:
        packed = torch.stack([w.transpose(1, 2) for w in (query, key, value)], dim=1)
        block.attention.query_key_value.weight.copy_(packed.reshape(3 * WIDTH, WIDTH))
        block.attention.dense.weight.copy_(output.reshape(WIDTH, WIDTH).T)


def query_bias(network, shape, layer, gains_bias):
    """[head d_head]: the bias of the queries, with what the norm's own bias adds."""
    block = blocks_of(network, shape)[layer]
    if shape == "llama":
        return torch.zeros(HEADS, INNER)
    query = attention_of(network, shape, layer)[0]
    if shape == "gpt2":
        own = block.attn.c_attn.bias[:WIDTH].view(HEADS, INNER)
    else:
        own = block.attention.query_key_value.bias.view(HEADS, 3, INNER)[:, 0]
    return own + gains_bias @ query


class ByHand:
    """Plain matrices in float64: norms' gains in the reading weights, the mean taken out where the norm takes it out."""

    def __init__(self, network, shape):
        self.shape = shape
        self.groups = 2 if shape == "llama" else HEADS
        blocks = blocks_of(network, shape)
        centre = torch.eye(WIDTH) - (0 if shape == "llama" else 1 / WIDTH)
        embedding = network.get_input_embeddings().weight
        first = {"gpt2": "ln_1", "llama": "input_layernorm", "pythia": "input_layernorm"}[shape]
        second = {"gpt2": "ln_2"}.get(shape, "post_attention_layernorm")
        final = network.get_submodule(
            {"gpt2": "transformer.ln_f", "llama": "model.norm", "pythia": "gpt_neox.final_layer_norm"}[shape]
        )
        self.rows = {
            "direct": (embedding @ centre).double(),
            "effective": ((embedding + blocks[0].mlp(blocks[0].get_submodule(second)(embedding))) @ centre).double(),
        }
        self.query, self.key, self.value, self.output, self.bias = [], [], [], [], []
        for layer in range(LAYERS):
            norm = blocks[layer].get_submodule(first)
            query, key, value, output = attention_of(network, shape, layer)
            reads = centre @ norm.weight.diag()
            self.query.append((reads @ query).double())
            self.key.append((reads @ key).double())
            self.value.append((reads @ value).double())
            self.output.append((output @ centre).double())
            self.bias.append(query_bias(network, shape, layer, getattr(norm, "bias", torch.zeros(WIDTH))).double())
        self.unembed = (final.weight.diag() @ network.get_output_embeddings().weight.T).double()

    def group(self, head):
        return head // (HEADS // self.groups)

    def ov(self, layer, head):
        return self.value[layer][self.group(head)] @ self.output[layer][head]

    def qk(self, layer, head):
        return self.query[layer][head] @ self.key[layer][self.group(head)].T

    def row(self, way, layer):
        return self.rows[way if layer else "direct"]

    def unit(self, way, layer):
        row = self.row(way, layer)
        return row / row.square().mean(-1, keepdim=True).sqrt()

    def turned(self, query, distance):
        """Queries [row d_head] as rotary positions turn them, that far after an unturned key."""
        size = ROTARY[self.shape]
        if not size:
            return query
        angle = distance * 10000.0 ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
        one, two, rest = query[:, : size // 2], query[:, size // 2 : size], query[:, size:]
        return torch.cat([one * angle.cos() - two * angle.sin(), two * angle.cos() + one * angle.sin(), rest], dim=1)


@pytest.fixture(scope="module", params=list(SHAPES))
def known(request, tmp_path_factory):
    """The folded model, and its matrices by hand."""
    with torch.no_grad():
        path = tmp_path_factory.mktemp("known") / request.param
        network_of(request.param).save_pretrained(path)
        model = models.load(path)
        return models.folded(model), ByHand(network_of(request.param), request.param)


@pytest.fixture(scope="module")
def folded_wired():
    return models.folded(models.load("wired"))


def copying(model, ids, *rest):
    return circuits.copying(model, [Pool("some", tuple(ids))], *rest).isel(pool=0)


def matching(model, ids, *rest):
    return circuits.matching(model, [Pool("some", tuple(ids))], *rest).isel(pool=0)


def measured(logits, few):
    """Deviations of the own logit, and the share of rows whose own logit is the largest, and among the five largest."""
    logits = logits.numpy()
    own = logits[np.arange(len(few)), few]
    place = (logits > own[:, None]).sum(1)
    return [((own - logits.mean(1)) / logits.std(1)).mean(), (place == 0).mean(), (place < 5).mean()]


def share(matrix):
    values = np.linalg.eigvals(matrix.numpy())
    return values.real.sum() / np.abs(values).sum()


# --- the hand-wired model -----------------------------------------------------------------------------------------------


def test_the_wired_induction_head_copies(folded_wired):
    """Its circuit maps each word to itself: one positive eigenvalue for each, and logits of one word against 64 others.

    With d = 200, the folded unembedding less its mean over d_model, the own logit is 1 - 1/d, other words' -1/d, BOS' 0.
    """
    found = copying(folded_wired, range(1, 65), [(1, 0)])
    logits = np.array([1 - 1 / 200, *[-1 / 200] * 63, 0])
    deviations = (logits[0] - logits.mean()) / logits.std()
    assert deviations == pytest.approx(math.sqrt(64), abs=1e-3)
    one = found.copying.sel(layer=1, head=0)
    for values in (one, found.copying_together):
        for way in ("direct", "effective"):
            assert values.sel(rows=way).values == pytest.approx([1, deviations, 1, 1], abs=1e-4)
    for at in ((0, 0), (0, 1), (1, 1)):  # nothing that reaches the logits
        rest = found.copying.sel(layer=at[0], head=at[1])
        assert rest.sel(measure=["eigenvalues", "logit"]).isnull().all()
        assert (rest.sel(measure=["top1", "top5"]) == 0).all()
    assert copying(folded_wired, range(1, 65)).copying_together.isnull().all()


def test_a_wired_head_that_copies_another_word(wired):
    """Values moved on by one word: nothing is copied, and the eigenvalues are the roots of one."""
    model = models.load("wired")
    weight = model.original_model.transformer.h[1].attn.c_attn.weight
    values = weight.data[:192, 400:464].clone()
    weight.data[:192, 400:464] = values.roll(1, dims=1)
    found = copying(models.folded(model), range(1, 65)).copying.sel(layer=1, head=0)
    assert found.sel(measure="eigenvalues").values == pytest.approx([-1 / 63] * 2, abs=1e-3)  # all roots but 1 itself
    assert (found.sel(measure=["top1", "top5"]) == 0).all()
    weight.data[:192, 400:464] = -values
    found = copying(models.folded(model), range(1, 65)).copying.sel(layer=1, head=0)
    assert found.sel(measure="eigenvalues").values == pytest.approx([-1] * 2, abs=1e-4)
    assert found.sel(measure="logit").values == pytest.approx([-8] * 2, abs=1e-2)


def test_the_wired_induction_head_matches_its_predecessors(folded_wired):
    found = matching(folded_wired, range(1, 65), [(0, 0), (0, 1)], 24)
    assert found.through.values.tolist() == ["L0H0", "L0H1", "embedding"]
    assert (found.sel(through="L0H0", layer=1, head=0) == 1).all()
    assert (found.sel(through="L0H0", layer=1, head=1) == 0).all()
    assert (found.sel(through="L0H1", layer=1) == 0).all()
    assert (found.sel(through="embedding") == 0).all()  # of itself, the induction head's key is the opposite
    assert found.sel(layer=0).isnull().sel(through=["L0H0", "L0H1"]).all()


def test_composition_of_the_wired_circuit(folded_wired):
    """With t_i, b_i, o_i the directions of word i as token, predecessor and output, u = 1/d everywhere, n = 64, d = 200:
    the folded circuits are, up to factors, W_OV = sum (t_i - u) (b_i - balance)' and W_QK = sum (t_i - u) (b_i - t_i)'.

    The Gram matrix of the t_i - u is G = I - J/d, that of b_i - balance is I + J, that of b_i - t_i is 2 I, and
    (b_i - balance)(b_j - t_j) is I. So |W_OV W_QK'|^2 = tr(G^2), |W_OV|^2 = tr(G (I + J)), |W_QK|^2 = 2 tr(G).
    """
    n, d = 64, 200
    up = n - 1 + (1 - n / d) ** 2
    expected = math.sqrt(up / ((2 * n - n / d - n**2 / d) * 2 * n * (1 - 1 / d)))
    assert expected == pytest.approx(0.0682, abs=1e-4)
    # the same, with the matrices written out
    eye, ones = torch.eye(3 * n + 8, dtype=torch.float64), torch.full((3 * n + 8,), 1 / d, dtype=torch.float64)
    token, before, balance = eye[:n], eye[n : 2 * n], eye[3 * n + 7]
    writes = (token - ones).T @ (before - balance)
    reads = (token - ones).T @ (before - token)
    assert float((writes @ reads.T).norm() / writes.norm() / reads.norm()) == pytest.approx(expected, abs=1e-9)
    found = circuits.composition(folded_wired, draws=3).composition.sel(from_layer=0, from_head=0, layer=1, head=0)
    assert float(found.sel(mode="K")) == pytest.approx(expected, abs=1e-5)
    assert float(found.sel(mode="Q")) == pytest.approx(0, abs=1e-5)
    # through its values: (b_i - balance)(t_j - b_j) = -I, and the outputs o_i - u have G for their Gram matrix as well
    assert float(found.sel(mode="V")) == pytest.approx(expected, abs=1e-5)


# --- by hand, on random weights of every shape --------------------------------------------------------------------------


def test_rows_of_tokens(known):
    model, hand = known
    found = circuits.token_rows(model)
    assert list(found) == ["direct", "effective"]
    for way, rows in found.items():
        # with centred weights, or up to what the norm takes out
        assert rows.double().numpy() == pytest.approx(hand.rows[way].numpy(), abs=1e-4), way
    assert (found["direct"] - found["effective"]).abs().max() > 0.1


def test_copying_equals_plain_matrices(known):
    """Per head, from each head's own values or, with grouped queries, from those that it shares."""
    model, hand = known
    found = copying(model, SOME).copying
    for way in ("direct", "effective"):
        for layer in range(LAYERS):
            for head in range(HEADS):
                logits = hand.row(way, layer)[SOME] @ hand.ov(layer, head) @ hand.unembed
                among = logits[:, SOME] - logits[:, SOME].mean(-1, keepdim=True)
                got = found.sel(rows=way, layer=layer, head=head).values
                assert got == pytest.approx([share(among), *measured(logits, SOME)], abs=2e-3), (way, layer, head)
    planted = found.sel(layer=COPIER[0], head=COPIER[1], rows="direct")
    assert 0.2 < planted.sel(measure="top1") < planted.sel(measure="top5")
    assert planted.sel(measure="eigenvalues") > 0.5
    assert (found.sel(layer=0, rows="direct") == found.sel(layer=0, rows="effective")).all()


@pytest.mark.parametrize("together", [[(1, 0)], [(1, 2), (1, 3)], [(1, 2), (2, 0), (2, 1)], [(0, 1), (1, 2)]])
def test_circuits_together_are_the_sum(known, together):
    """Heads of the first layer read the embedding in either case, beside later ones too."""
    model, hand = known
    found = copying(model, SOME, together)
    for way in ("direct", "effective"):
        logits = sum(hand.row(way, at[0])[SOME] @ hand.ov(*at) for at in together) @ hand.unembed
        among = logits[:, SOME] - logits[:, SOME].mean(-1, keepdim=True)
        got = found.copying_together.sel(rows=way).values
        assert got == pytest.approx([share(among), *measured(logits, SOME)], abs=2e-3), way
    if len(together) == 1:
        assert found.copying_together.values == pytest.approx(found.copying.sel(layer=1, head=0).values, abs=1e-5)


@pytest.mark.parametrize("distance", [1, 4])
def test_matching_equals_plain_matrices(known, distance):
    """Rotary positions, partial ones too, turned by hand; the queries' biases, those of the norms included."""
    model, hand = known
    senders = [SENDER, (1, 3)]
    found = matching(model, SOME, senders, distance)
    expected = np.full(found.shape, np.nan)
    for s, sender in enumerate([*senders, None]):
        for r, way in enumerate(("direct", "effective")):
            for layer in range(0 if sender is None else sender[0] + 1, LAYERS):
                for head in range(HEADS):
                    seen = hand.unit(way, layer) if sender is None else hand.unit(way, sender[0]) @ hand.ov(*sender)
                    query = hand.unit(way, layer)[SOME] @ hand.query[layer][head] + hand.bias[layer][head]
                    scores = hand.turned(query, distance) @ (seen @ hand.key[layer][hand.group(head)]).T
                    expected[s, r, layer, head] = measured(scores, SOME)[1]
    assert found.values == pytest.approx(expected, abs=1e-6, nan_ok=True)
    between = (expected > 0) & (expected < 1)
    assert between.any(axis=(1, 2, 3)).all()  # of every sender and of the control, shares that are neither none nor all
    assert len(np.unique(expected[~np.isnan(expected)])) > 5


@pytest.mark.parametrize("distance", [0, 1, 5, 24])
def test_scores_are_those_of_the_models_own_attention(known, distance):
    """Rows put into the residual stream at that distance: the model's own scores equal those of `matching`."""
    model, hand = known
    generator = torch.Generator().manual_seed(distance)
    rows = 3 * torch.randn(6, 2, WIDTH, generator=generator)
    if hand.shape != "llama":  # the folded norm's input is centred
        rows = rows - rows.mean(-1, keepdim=True)
    unit = rows / rows.square().mean(-1, keepdim=True).sqrt()
    query_row, key_row = unit[:, 0], unit[:, 1] if distance else unit[:, 0]
    start = 3
    turned = circuits.rotations(model, distance)
    assert all((turn is None) == (hand.shape == "gpt2") for turn in turned.values())
    for layer in range(LAYERS):
        seen = {}

        def place(value, hook):
            value = value.clone()
            value[:, start] = rows[:, 1]
            value[:, start + distance] = rows[:, 0]
            return value

        def keep(value, hook, seen=seen):
            seen["scores"] = value[:, :, start + distance, start].clone()

        ids = torch.full((6, start + distance + 2), 5)
        added = [(hooks.name_of(model, layer, "resid_pre"), place), (f"blocks.{layer}.attn.hook_attn_scores", keep)]
        model.run_with_hooks(ids, fwd_hooks=added, return_type=None, prepend_bos=False)
        for head in range(HEADS):
            group = hand.group(head)
            biases = [getattr(model, name, None) for name in ("b_Q", "b_K")]
            query = query_row @ model.W_Q[layer, head] + (0 if biases[0] is None else biases[0][layer, head])
            key = key_row @ model.W_K[layer, group] + (0 if biases[1] is None else biases[1][layer, group])
            query = query if turned[layer] is None else query @ turned[layer]
            expected = (query * key).sum(-1) / math.sqrt(INNER)
            assert seen["scores"][:, head].numpy() == pytest.approx(expected.numpy(), abs=1e-4), (layer, head)


def test_the_rotation_is_that_of_the_distance(known):
    model, hand = known
    for distance in (0, 3, 40):
        turned = circuits.rotations(model, distance)
        assert list(turned) == list(range(LAYERS))
        if hand.shape == "gpt2":
            assert set(turned.values()) == {None}
            continue
        expected = hand.turned(torch.eye(INNER, dtype=torch.float64), distance).numpy()
        for turn in turned.values():
            assert turn.numpy() == pytest.approx(expected, abs=1e-5)
    if hand.shape != "gpt2":
        with pytest.raises(InterpError, match="distance 64 does not fit the context of 64"):
            matching(model, SOME, [], 64)


def test_composition_equals_plain_matrices(known):
    model, hand = known
    found = circuits.composition(model, draws=3).composition
    for late in range(LAYERS):
        for head in range(HEADS):
            for early in range(LAYERS):
                for source in range(HEADS):
                    got = found.sel(from_layer=early, from_head=source, layer=late, head=head).values
                    if early >= late:
                        assert np.isnan(got).all()
                        continue
                    sent, score = hand.ov(early, source), hand.qk(late, head)
                    expected = [
                        float((sent @ matrix).norm() / sent.norm() / matrix.norm())
                        for matrix in (score, score.T, hand.ov(late, head))
                    ]
                    assert got == pytest.approx(expected, abs=1e-4)


@pytest.mark.experiment
def test_the_baseline_is_that_of_gaussian_matrices(known):
    """From scratch, with full matrices: mean and the middle 95%."""
    model, _ = known
    found = circuits.composition(model, draws=400, seed=3).baseline
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(1500):
        one, two = (rng.normal(size=(WIDTH, INNER)) @ rng.normal(size=(INNER, WIDTH)) for _ in range(2))
        drawn.append(np.linalg.norm(one @ two) / np.linalg.norm(one) / np.linalg.norm(two))
    for mode in ("Q", "K", "V"):
        assert float(found.sel(mode=mode, bound="mean")) == pytest.approx(np.mean(drawn), abs=0.003)
        low, high = np.quantile(drawn, [0.025, 0.975])
        assert float(found.sel(mode=mode, bound="low")) == pytest.approx(low, abs=0.006)
        assert float(found.sel(mode=mode, bound="high")) == pytest.approx(high, abs=0.006)
    again, other = (circuits.composition(model, draws=400, seed=seed).baseline for seed in (3, 4))
    assert again.equals(found)
    assert not other.equals(found)


def test_random_weights_are_at_the_baseline(known):
    """Heads that compose only by chance score like Gaussian matrices."""
    model, _ = known
    found = circuits.composition(model, draws=200)
    by_chance = found.composition.sel(from_layer=1, from_head=[0, 1], layer=2, mode="V")
    assert float(by_chance.mean()) == pytest.approx(float(found.baseline.sel(mode="V", bound="mean")), rel=0.15)


# --- large pools, ties, and what is refused -----------------------------------------------------------------------------


@pytest.mark.experiment
def test_of_a_large_pool_no_more_than_512_are_asked():
    """The evenly spaced ones, for all but the eigenvalues."""
    model = models.load("organism", weights="folded")
    many = list(range(5, 1805))
    few = [many[int(i)] for i in torch.linspace(0, len(many) - 1, 512).round()]
    assert len(set(few)) == 512
    one, two = copying(model, many).copying, copying(model, few).copying
    measures = ["logit", "top1", "top5"]
    assert one.sel(measure=measures).values == pytest.approx(two.sel(measure=measures).values, abs=1e-6)
    assert abs(one - two).sel(measure="eigenvalues").max() > 1e-4
    one, two = (matching(model, ids, [(0, 1)], 9) for ids in (many, few))
    assert one.equals(two)
    assert one.sel(through="L0H1", layer=1).notnull().all()


def test_ties_are_no_copies():
    """Five others that are as large leave no place among the five."""
    ids = torch.arange(3)
    tied = torch.zeros(3, 9)
    tied[0, [0, 3, 4, 5, 6]] = 1.0  # with four others
    tied[1, [1, 3, 4, 5, 6, 7]] = 1.0  # with five others
    tied[2, 2] = 1.0
    deviations, first, five = circuits._own(torch.eye(3), tied, ids)
    assert first.tolist() == [0, 0, 1]
    assert five.tolist() == [1, 0, 1]
    assert deviations.tolist() == pytest.approx([(4 / 5) ** 0.5, (3 / 6) ** 0.5, 8**0.5], abs=1e-5)
    assert circuits._own(torch.zeros(2, 3), torch.zeros(3, 9), ids[:2])[0].isnan().all()


def test_copying_and_matching_are_the_same_on_raw_weights(known):
    model, _ = known
    raw = models.load(models.location(model))
    assert not models.is_folded(raw)
    for measure in (lambda m: copying(m, SOME).copying, lambda m: matching(m, SOME, [(0, 1)], 9)):
        assert measure(raw).values == pytest.approx(measure(model).values, abs=1e-3, nan_ok=True)


def test_composition_refuses_raw_weights(wired):
    with pytest.raises(InterpError, match=r"read off folded weights: give models.folded\(model\)"):
        circuits.composition(wired)


# --- folding ------------------------------------------------------------------------------------------------------------

MATRICES = ("W_E", "W_Q", "W_K", "W_V", "W_O", "W_in", "W_out", "W_U", "b_U")


def log_probs_of(model, ids):
    return model(ids, prepend_bos=False).log_softmax(-1)


@pytest.mark.experiment
@pytest.mark.parametrize("name", ["organism", "organism-untied", "organism-llama", "wired", "pythia"])
def test_folding_changes_no_probability(name, tmp_path):
    if name == "pythia":
        network_of("pythia").save_pretrained(tmp_path / name)
    source = tmp_path / name if name == "pythia" else name
    model = models.load(source)
    size = model.original_model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(1, size, (3, 30), generator=torch.Generator().manual_seed(0))
    before = {key: value.clone() for key, value in model.original_model.state_dict().items()}
    raw = log_probs_of(model, ids)
    tokenizer = model.tokenizer
    settings = None if tokenizer is None else (tokenizer.padding_side, tokenizer.pad_token, tokenizer.bos_token)
    folded = models.folded(model)
    assert (log_probs_of(folded, ids) - raw).abs().max() < (1e-3 if name == "wired" else 1e-4)  # wired's reach -707
    # as loading it folded gives it
    loaded = models.load(source, weights="folded")
    for matrix in MATRICES:
        one, two = (getattr(m, matrix, None) for m in (folded, loaded))
        assert (one is None) == (two is None)
        assert one is None or one.numpy() == pytest.approx(two.numpy(), abs=1e-5 * float(two.abs().max()) + 1e-6), (
            matrix
        )
    # and the original is what it was, bit for bit
    assert torch.equal(log_probs_of(model, ids), raw)
    after = model.original_model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert model.tokenizer is tokenizer
    assert folded.tokenizer is tokenizer
    assert settings is None or settings == (tokenizer.padding_side, tokenizer.pad_token, tokenizer.bos_token)
    assert models.origin(folded) == {**models.origin(model), "weights": "folded"}
    assert models.origin(model)["weights"] == "raw"
    assert models.folded(folded) is folded
    assert not any(
        a.data_ptr() == b.data_ptr()
        for a in model.original_model.parameters()
        for b in folded.original_model.parameters()
    )


@pytest.mark.parametrize("name", ["organism", "organism-llama"])
def test_folding_takes_edits_along(name):
    """Weights as they are in memory: an embedding row, which a tied model also reads with, an output weight, a gain."""
    model = models.load(name)
    ids = torch.randint(1, 2000, (3, 30), generator=torch.Generator().manual_seed(0))
    untouched = log_probs_of(model, ids)
    network = model.original_model
    network.get_input_embeddings().weight.data[int(ids[0, 4])] += 0.5
    model.blocks[1].attn.W_O.data[1] *= 2
    for key, parameter in network.named_parameters():
        if "ln_f" in key or key.endswith("norm.weight"):
            parameter.data *= 1.3
    raw = log_probs_of(model, ids)
    assert (raw - untouched).abs().max() > 0.5
    folded = models.folded(model)
    assert (log_probs_of(folded, ids) - raw).abs().max() < 1e-4
    assert torch.equal(log_probs_of(model, ids), raw)
    # an edit of the copy stays in the copy
    folded.original_model.get_input_embeddings().weight.data.zero_()
    assert torch.equal(log_probs_of(model, ids), raw)


def test_folding_without_a_tokenizer(tmp_path):
    network_of("llama").save_pretrained(tmp_path / "bare")
    model = models.load(tmp_path / "bare")
    assert model.tokenizer is None
    assert models.folded(model).tokenizer is None
    assert model.tokenizer is None


@pytest.mark.experiment
def test_a_model_folded_by_transformer_lens_itself():
    """Compatibility mode switched on by hand is folding, and circuits can be read off it."""
    model = models.load("organism")
    model.enable_compatibility_mode()
    folded = models.folded(model)
    expected = copying(models.load("organism", weights="folded"), range(300, 330)).copying
    assert copying(folded, range(300, 330)).copying.values == pytest.approx(expected.values, abs=1e-4)


def test_an_architecture_without_fused_attention(tmp_path):
    from transformers import BloomConfig, BloomForCausalLM

    config = BloomConfig(vocab_size=60, hidden_size=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = BloomForCausalLM(config)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    network.save_pretrained(tmp_path / "bloom")
    model = models.load(tmp_path / "bloom")
    ids = torch.randint(1, 60, (3, 12), generator=torch.Generator().manual_seed(0))
    assert (log_probs_of(models.folded(model), ids) - log_probs_of(model, ids)).abs().max() < 1e-4


def test_what_does_not_fold(monkeypatch):
    """An architecture whose weights cannot be carried over is refused in one line."""

    def fails(model):
        raise KeyError("transformer.h.0\nand more")

    monkeypatch.setattr("interp.models.networks.plain_network", fails)
    with pytest.raises(InterpError, match=r"does not fold .*: load it with weights='folded'") as error:
        models.folded(models.load("organism"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["organism", "organism-llama"])
def test_composition_is_that_of_transformer_lens(name):
    folded = models.load(name, weights="folded")
    found = circuits.composition(folded, draws=2)["composition"]
    for mode in circuits.MODES:
        theirs = folded.all_composition_scores(mode).scores.detach().numpy()
        ours = found.sel(mode=mode).values
        behind = np.isfinite(ours)
        assert behind.sum() == folded.cfg.n_heads**2  # two layers
        np.testing.assert_allclose(ours[behind], theirs[behind], rtol=1e-5)
