"""The language that dispensers and the fleet server speak; it imports nothing else of this project."""
