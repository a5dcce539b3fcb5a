"""Cost of a run: privacy events, their composition, and the noise that meets a budget.

Torch-free, so that whoever prices a job needs no engine. One way in per question:
`events.dpsgd_event` (what was run), `compose.epsilon` (what it cost) and
`calibrate.noise_multiplier` (what noise a budget asks for).
"""
