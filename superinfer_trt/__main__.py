"""`python -m superinfer_trt`: the same command as `superinfer-trt`."""

from superinfer_trt.cli.main import main

main()
