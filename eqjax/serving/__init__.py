"""Endless panoramas for many viewers: the engine that draws them, and the page that shows them."""
