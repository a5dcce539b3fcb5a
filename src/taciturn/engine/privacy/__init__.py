"""The trusted kernel: everything the guarantee rests on, in torch and numpy only.

Read in this order: types, rng, sampling, per_example, clipping, noise, mechanism.
"""
