"""The experiments: a folder each, with the function of its name in `experiment.py`, and its table and figures in
`view.py`.

An experiment takes a model and what it asks for by name: `tokens` (a `Repeated` per pool), `singles` (the same with one
token of the pool among ordinary ones), `pools` and `draw` (all pools at once), or none of them, when it is about the
whole vocabulary; and `keep(name, make)`, which stores a finished part of a long run. Its keyword-only arguments are its
parameters, in Python and on the command line. It returns a labelled Dataset. `interp.catalog` finds them.
"""
