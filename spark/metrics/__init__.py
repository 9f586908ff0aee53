"""What a reply cost and how good it is. Each metric is a module of its own."""
