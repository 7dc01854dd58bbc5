"""The machines themselves: sites, slots, streams, facts, presence, vitals, and what is to be sent to them."""
