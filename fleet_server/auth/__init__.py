"""Who may do what: users, roles, sessions, and the log of what they did."""
