"""What runs in a worker: stages, their logs and the copies of them. Import from the modules."""
