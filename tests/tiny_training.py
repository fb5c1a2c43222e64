"""A recipe that trains in seconds, for the tests of training and of what it leaves."""

import dataclasses

from interp.organisms.recipe import RECIPES, Phase

TINY = dataclasses.replace(
    RECIPES["organism"],
    phases=(Phase(25, 17, 8, 0.5, shortest=3), Phase(15, 33, 4, 0.5)),
    n_layers=1,
    n_heads=2,
    n_kv_heads=2,
    d_model=16,
    d_mlp=32,
    context=64,
    vocabulary=700,
    canaries_per_dose=2,
    doses=(0, 1, 3, 10),
    ordinary=1,
    warmup=5,
)
