"""A signed statement of what a model's fit cost in privacy, which anyone can check offline.

`statement` is what is said, `envelope` how it is sealed (DSSE), `sign` and `verify` the two ends.
Nothing here needs torch, and nothing here computes an epsilon with taciturn's own accountant: the
check would not be independent.
"""
