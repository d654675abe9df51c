"""Workers as processes: forked, leased, followed to their ends. Import from the modules."""
