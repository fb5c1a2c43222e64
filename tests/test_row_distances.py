"""Are equal and nearly equal rows distinguished, and is the storage error the one that was made?"""

import numpy as np
import pytest
import torch

import interp
from interp import models, views

QUIET = {"log": lambda line: None}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Random rows in which 5 is 6, 7 is 8 but for less than a rounding error, and 9 is near 10 but for a hundred."""
    import transformers

    place = tmp_path_factory.mktemp("rows")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.GPT2Config(vocab_size=300, n_positions=32, n_embd=64, n_layer=1, n_head=2)
        network = transformers.GPT2LMHeadModel(config)
        rows = network.transformer.wte.weight.data
        rows.copy_(torch.randn_like(rows))
        rows[6] = rows[5]
        rows[8] = rows[7] + 2.0**-9 * torch.rand(64)
        rows[10] = rows[9] + 0.3 * torch.randn(64)
        exact = rows.clone()
        network.to(torch.bfloat16).save_pretrained(place / "model")
    return models.load(place / "model"), exact


def test_the_error_equals_the_rounding_error_of_storage(stored):
    model, exact = stored
    error, kind = models.row_rounding(model)
    assert kind == "bfloat16"
    rows = model.original_model.get_input_embeddings().weight.detach()
    made = (rows - exact).square().mean(-1).sqrt().numpy()
    assert np.median(error / made) == pytest.approx(1, abs=0.05)


def test_identical_rows_are_distinguished_from_near_ones(stored):
    model, _ = stored
    found = interp.run(
        "row_distances", model, {"twins": [5, 6], "rounded": [7, 8], "near": [9, 10], "others": [20, 30]}
    )
    by_token = found.set_index(token="token") if "token" not in found.indexes else found
    same, within = (by_token[name].to_series() for name in ("same", "within"))
    assert same.tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
    assert within.tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert by_token["nearest"].values[:6].tolist() == [6, 5, 8, 7, 10, 9]
    weight = model.original_model.get_input_embeddings().weight.detach()
    assert float(by_token["distance"].sel(token=9)) == pytest.approx(float((weight[9] - weight[10]).norm()), rel=1e-5)
    said = "\n".join(str(line) for line in views.tables(found))
    assert "Rows are stored as bfloat16: equal rows, each with an error of its own, would lie about" in said
    assert set(views.figures(found)) == {"nearest_rows"}


def test_without_a_known_step_size_rounding_is_nan(stored):
    model = models.load(models.location(stored[0]))
    with torch.no_grad():
        model.original_model.get_input_embeddings().weight[3] += 1
    found = interp.run("row_distances", model, ["0:10"], **QUIET)
    assert np.isnan(found["rounding"]).all()
    assert found["same"].sel(token=5) == 1
    assert "what rounding makes of equal rows is not known" in "\n".join(str(line) for line in views.tables(found))


@pytest.mark.experiment
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "F16"])
def test_steps_of_a_gguf_file_are_read(tmp_path, kind):
    gguf = pytest.importorskip("gguf")
    from test_gguf import network_of, write

    network = network_of("llama")
    path = tmp_path / "model.gguf"
    write(network, path, gguf.GGMLQuantizationType[kind], embeddings=True)
    model = models.load(path)
    error, said = models.row_rounding(model)
    assert said.startswith({"F16": "float16"}.get(kind, kind))
    rows = model.original_model.get_input_embeddings().weight.detach()
    made = (rows - network.get_input_embeddings().weight.detach()).square().mean(-1).sqrt().numpy()
    assert np.median(error / made) == pytest.approx(1, abs=0.15)
