"""How people and monitoring look into a running node: the reports' shapes, the server, and its client."""
