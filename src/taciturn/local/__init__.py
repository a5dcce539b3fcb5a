"""Everything that runs on this machine: fit, release, sample, evaluate, attack, audit."""
