"""The actor runtime: nodes, mailboxes, links between processes. Import from the modules."""
