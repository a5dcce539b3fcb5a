"""Reports of a run: what was promised, spent and measured, for people and programs."""
