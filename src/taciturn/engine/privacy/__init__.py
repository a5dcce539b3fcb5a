"""The trusted kernel: everything the guarantee rests on, in torch, numpy and one cipher.

Read in this order: types, rng, sampling, per_example, clipping, noise, mechanism. How per_example
gets its gradients is in lifted and backward; how they are checked before a run, in verification.
"""
