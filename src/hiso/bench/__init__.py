"""How fast and how small hiso is on this machine, as ratios taken in one run."""
