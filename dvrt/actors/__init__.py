"""Actors: what runs in worker processes and in the controller. Import from the modules."""
