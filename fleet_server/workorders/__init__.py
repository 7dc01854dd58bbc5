"""A released tour as work: picks, stops, visits, and what was entered there."""
