"""Tests of the data plane, and the gateways, models and control plane that they and the benchmarks share."""
