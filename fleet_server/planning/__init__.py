"""From rates, stock and faults to tours: which machines to visit today, why, and with what."""
