"""Methods side by side: same data, splits, seeds and tuning, from one file."""
