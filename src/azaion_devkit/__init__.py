"""What development and tests need around the loader: servers, an engine, archives. Never in the shipped image."""
