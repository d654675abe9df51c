"""What the controller and the workers say to each other, as messages. Import from the modules."""
