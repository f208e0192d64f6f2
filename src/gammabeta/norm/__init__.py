"""Batch normalisation: functions, layers and the kernels behind them."""
