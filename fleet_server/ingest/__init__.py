"""From the broker into the database: facts in order and once, and what is to be sent to machines the other way."""
