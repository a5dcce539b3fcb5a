"""`python -m taciturn`; with several processes, `torchrun --nproc-per-node 2 -m taciturn`."""

from taciturn.cli.main import main

main()
