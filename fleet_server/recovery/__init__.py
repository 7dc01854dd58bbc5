"""Backup, restore and what follows: a new epoch, what comes back from machines and phones, what does not, projections made anew."""
