"""The stock ledger: an append-only double entry, in packs, folded from facts and operations."""
