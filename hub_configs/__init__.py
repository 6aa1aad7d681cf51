"""What is published on the Hub: models.toml, one config folder per model, and tools that build and check folders."""
