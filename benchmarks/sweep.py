"""How much faster is the engine than one forward pass for each intervention?

    python benchmarks/sweep.py [8] [1]

All 144 heads of a GPT-2-small-shaped model with random weights, on 8 sequences of 101 tokens and on one of 21: each
head ablated, against the plain loop of `run_with_hooks`, and each head's output patched from another run, against
`transformer_lens.patching`. Both ways run in the same process in turn, after a warm-up; log-probs must agree to 1e-4.
Only ratios count: machines differ.

`limit` is the ratio of multiplications: the plain way runs 12 layers and unembeds every position for each head; ours runs the
layers after the head's own attention, and unembeds what is read. Doing less cannot gain more than that; a
short batch can exceed it, because many interventions in one pass also use the machine better.
"""

import argparse
import tempfile
import time

import torch
from transformer_lens import patching
from transformers import GPT2Config, GPT2LMHeadModel

import interp
from interp import hooks
from interp.measure import log_probs
from interp.sweep import sweep
from interp.tokens import Pool, repeated

SHAPE = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}
ROUNDS = {8: 1, 1: 3}  # by batch: the plain way takes minutes on the long one


def limit(positions, read):
    """Multiplications of the plain way over ours, per intervention, averaged over the layers of the heads."""
    width, layers, words = SHAPE["n_embd"], SHAPE["n_layer"], SHAPE["vocab_size"]
    block, attention = positions * 12 * width**2, 2 * width * positions**2
    whole = layers * (block + attention) + positions * width * words
    mlp_and_output = positions * 9 * width**2  # of the head's own layer: what attention reads out, and the MLP
    ours = [mlp_and_output + (layers - 1 - i) * (block + attention) + read * width * words for i in range(layers)]
    return whole / (sum(ours) / layers)


def main(batches):
    """Both comparisons on each batch."""
    with tempfile.TemporaryDirectory() as place:
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config(**SHAPE)).save_pretrained(place)
        model = interp.load(place)
    heads = [(layer, head) for layer in range(12) for head in range(12)]
    for batch, length in [(b, {8: 50, 1: 10}[b]) for b in batches]:
        draw = {"batch": batch, "length": length, "bos": 50256}
        tokens, others = (repeated(Pool("any", tuple(range(1000, 40000))), seed=seed, **draw) for seed in (0, 1))
        read = torch.from_numpy(tokens.inducible)
        with torch.no_grad():
            known = hooks.record(model, others.ids, hooks.z_names(model))
            _, cache = model.run_with_cache(others.ids, prepend_bos=False, names_filter=lambda n: n.endswith("hook_z"))

        def plain_ablation():
            rows = []
            for head in heads:
                with torch.no_grad():
                    logits = model.run_with_hooks(
                        tokens.ids, fwd_hooks=hooks.ablate_heads(model, [head]), prepend_bos=False
                    )
                rows.append(log_probs(logits, tokens.ids)[:, read].mean())
            return torch.stack(rows)

        def their_patching():
            def metric(logits):
                return log_probs(logits, tokens.ids)[:, read].mean()

            with torch.no_grad():
                return patching.get_act_patch_attn_head_out_all_pos(model, tokens.ids, cache, metric).flatten()

        def our_ablation():
            found = sweep(model, tokens.ids, [hooks.ablate_heads(model, [h]) for h in heads], read)
            return found[:, :, read].mean((1, 2))

        def our_patching():
            found = sweep(
                model,
                tokens.ids,
                [[hooks.patch(model, hooks.name_of(model, la, "z"), known, heads=[h])] for la, h in heads],
                read,
            )
            return found[:, :, read].mean((1, 2))

        most = limit(tokens.ids.shape[1], int(read.sum()))
        for what, plain, ours in (
            ("ablation, against run_with_hooks", plain_ablation, our_ablation),
            ("patching, against transformer_lens.patching", their_patching, our_patching),
        ):
            ours()  # the first use tests itself
            ratios, example = [], ()
            for _ in range(ROUNDS[batch]):
                seconds, values = [], []
                for way in (plain, ours):
                    start = time.perf_counter()
                    values.append(way())
                    seconds.append(time.perf_counter() - start)
                assert (values[0] - values[1]).abs().max() < 1e-4, "the two ways disagree"
                ratios.append(seconds[0] / seconds[1])
                example = example or tuple(seconds)
            ratios.sort()
            middle = ratios[len(ratios) // 2]
            print(
                f"{batch} x {tokens.ids.shape[1]}, {what}: plain {example[0]:.1f} s, ours {example[1]:.1f} s; "
                f"ratio {middle:.2f} ({ratios[0]:.2f} .. {ratios[-1]:.2f}), "
                f"limit {most:.2f}, {middle / most:.0%} of it",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("batches", type=int, nargs="*", metavar="{8,1}", help="sequences (default: 8, then 1)")
    main(parser.parse_args().batches or [8, 1])
