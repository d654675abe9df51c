"""The controller and all it goes by, in the program that launched. Import from the modules."""
