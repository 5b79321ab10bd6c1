"""The acts of examples/demo.py (beginning, four_ways, taking_back, proof) and the machinery behind them."""
