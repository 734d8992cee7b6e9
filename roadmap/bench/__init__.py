"""Throughput, memory and % of peak FLOP/s of the networks."""
